"""What a user of notebooks sees: programs of the kind that models write, and the text that comes back.

`notebook_programs.txt` has the programs; `benchmarks/sandbox_jupyter.py` compares them with a Jupyter kernel and
writes the expected texts.
"""

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from agentrl_sandbox import Level, Limits, SandboxUnavailable, Status, open_sandbox
from agentrl_sandbox.server import SandboxServer, ServerSettings

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.sandbox_jupyter import PROGRAMS, read_programs

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIBRARIES = os.environ.get("AGENTRL_TEST_LIBRARIES")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox():
    here = os.listdir(LIBRARIES) if LIBRARIES else ()
    warm = [name for name in ("numpy", "sympy") if name in here]
    settings = {"zygotes": 1, "libraries": warm, "library_path": LIBRARIES, "limits": Limits(time_s=60.0)}
    async with open_sandbox("local", min_level=Level.FILTERED, **settings) as sandbox:
        yield sandbox


def _told(text):
    """What does not differ between versions of Python; all of it for the one that wrote the file."""
    text = re.sub(r"repeated \d+ more", "repeated N more", text)
    if sys.version_info[:2] == (3, 11):
        return text
    lines = [line for line in text.splitlines() if line.strip(" ~^")]
    return [lines[:1], lines[-1:]]


def _programs():
    for program in read_programs(PROGRAMS.read_text()):
        marks = [pytest.mark.hostile] if program["needs"] else []  # run where the libraries are
        yield pytest.param(program, id=program["name"].replace(" ", "_"), marks=marks)


@pytest.mark.parametrize("program", list(_programs()))
async def test_programs_of_models_say_what_they_say_in_a_notebook(sandbox, program):
    if program["needs"] and not os.path.isdir(os.path.join(LIBRARIES or "/nowhere", program["needs"])):
        pytest.skip(f"needs {program['needs']}: set AGENTRL_TEST_LIBRARIES")
    async with await sandbox.open() as session:
        said = [(await session.run(cell)).text for cell in program["cells"]]
    assert [*map(_told, said)] == [*map(_told, program["says"])]


# Cells as they come from pages, terminals and other notebooks: (code, what the text must have, status).
CELLS = {
    "a fence": ("```python\n1 + 1\n```", "2", Status.OK),
    "a fence of tildes": ("~~~\n1 + 1\n~~~\n", "2", Status.OK),
    "a fence that was left at the end": ("1 + 1\n```", "2", Status.OK),
    "a fence and an indentation": ("```py\n    x = 1\n    x + 1\n```", "2", Status.OK),
    "no value but a name like ours": ("globals()[' value'] = 5", "(no output)", Status.OK),
    "a fence in a string": ('"""\n```\n"""', "'\\n```\\n'", Status.OK),
    "fences in the middle": ("Here it is:\n```python\n1\n```\n", "send only what is between", Status.ERROR),
    "a common indentation": ("    x = 1\n    if x:\n        x + 1\n    x + 1", "2", Status.OK),
    "an indentation of tabs": ("\tx = 1\n\tx + 1", "2", Status.OK),
    "an indented first line": ("  x = 1\nx + 1", "2", Status.OK),
    "an indentation and a comment": ("# first\n  x = 1\n  x + 1", "2", Status.OK),
    "an indentation that is wrong": ("  x = 1\n y = 2", "IndentationError", Status.ERROR),
    "a transcript": (">>> x = 1\n>>> x + 1\n2\n", "2\nLines without a prompt", Status.OK),
    "a transcript with blocks": (">>> def f():\n...     return 2\n...\n>>> f()", "2", Status.OK),
    "a transcript that is indented": ("    >>> x = 1\n    >>> x + 1", "2", Status.OK),
    "a transcript of IPython": ("In [1]: x = 1\n\nIn [2]: x + 1\nOut[2]: 2", "2", Status.OK),
    "a transcript with a mistake": (">>> x = (1\n", "was never closed", Status.ERROR),
    "prompts in a string": ('"""\n>>> 1\n"""; 2', "2", Status.OK),
    "a shell command": ("!ls -la", "subprocess.run('ls -la'", Status.ERROR),
    "a shell command with a value": ("files = !ls", "subprocess.run('ls'", Status.ERROR),
    "a shell prompt": ("$ python x.py", "subprocess.run('python x.py'", Status.ERROR),
    "a shell command in a block": ("if True:\n    !ls", "subprocess.run('ls'", Status.ERROR),
    "a shell command before a bad string": ("!echo hi\nx = 'abc", "Shell commands are no Python", Status.ERROR),
    "a line magic": ("%timeit sum(range(10))", "timeit.timeit(", Status.ERROR),
    "a line magic with a value": ("r = %timeit -o f()", "timeit.timeit(", Status.ERROR),
    "a cell magic": ("%%time\nx = 1", "time.perf_counter()", Status.ERROR),
    "a cell of bash": ("%%bash\nls", "subprocess.run(", Status.ERROR),
    "a file to write": ("%%writefile a.py\nx = 1", "open(name, 'w')", Status.ERROR),
    "an unknown magic": ("%frobnicate", "%frobnicate is a command of IPython", Status.ERROR),
    "a question": ("len?", "call help(len)", Status.ERROR),
    "a question in front": ("?str.join", "call help(str.join)", Status.ERROR),
    "two questions": ("len??", "call help(len)", Status.ERROR),
    "a line that sets up": ("%matplotlib inline\n1 + 1", "2\nIgnored: %matplotlib inline", Status.OK),
    "an installation": ("!pip install sympy\n1 + 1", "2\nIgnored: !pip install sympy (there is no", Status.OK),
    "an installation by magic": ("%pip install -q sympy\n1 + 1", "2\nIgnored: %pip install", Status.OK),
    "an installation as a line": ("pip install sympy", "(no output)", Status.OK),
    "a remainder is no magic": ("x = 7\ny = (x\n%3)\ny", "1", Status.OK),
    "a semicolon after a bracket": ("(\n1 + 1\n);", "(no output)", Status.OK),
    "a semicolon in a comment": ("1 + 1  # a; b", "2", Status.OK),
    "a semicolon in a string": ("'é;'", "'é;'", Status.OK),
    "a semicolon after letters of two bytes": ("'é' * 2;", "(no output)", Status.OK),
    "a form feed": ("x = 1\f\n1 / 0", "line 2", Status.ERROR),
    "line ends of another system": ("x = 1\r\nx + 1\r\n", "2", Status.OK),
    "a byte order mark": ("\ufeff1 + 1", "2", Status.OK),
    # What a session does not have, or ends by.
    "exit": ("print(1)\nexit()\nprint(2)", "1\nThe program exited with code 0.", Status.EXITED),
    "quit with a code": ("quit(3)", "The program exited with code 3.", Status.EXITED),
    "exit without brackets": ("exit", "exit() ends the program; the variables of the session stay", Status.OK),
    "exit with words": ("import sys\nsys.exit('no solution')", "no solution\nThe program exited with code 1.", Status.EXITED),
    "help": ("help(abs)", "Return the absolute value", Status.OK),
    "help without an object": ("help()", "Call help(object)", Status.OK),
    "input": ("input('n? ')", "EOFError: there is no standard input", Status.ERROR),
    "input in a loop": ("import sys\nfor line in sys.stdin: print(line)\nprint('end')", "end", Status.OK),
    "input of a program's own": ("import io, sys\nsys.stdin = io.StringIO('3\\n')\nint(input())", "3", Status.OK),
    "a debugger": ("breakpoint()\nprint('on')", "There is no debugger here", Status.OK),
    "a name of the network": ("import urllib.request\nurllib.request.urlopen('http://example.com')", "there is no network in this sandbox", Status.ERROR),
    "a number of the network": ("import socket\nsocket.create_connection(('1.1.1.1', 80), 1)", "there is no network in this sandbox", Status.ERROR),
    "the network, caught": ("import http.client\ntry: http.client.HTTPConnection('example.com').request('GET', '/')\nexcept Exception as e: print('Error:', e)", "there is no network in this sandbox", Status.OK),
    "the network by asyncio": ("import asyncio\nawait asyncio.open_connection('example.com', 80)", "there is no network in this sandbox", Status.ERROR),
    "a gethostbyname": ("import socket\nsocket.gethostbyname('example.com')", "there is no network in this sandbox", Status.ERROR),
}  # fmt: skip


@pytest.mark.parametrize("what", CELLS)
async def test_cells_are_read_as_people_write_them_and_what_there_is_not_is_said_in_words(sandbox, what):
    code, says, status = CELLS[what]
    async with await sandbox.open() as session:
        result = await session.run(code)
        if says == "(no output)":
            assert result.value is None
        else:
            assert says in result.text, result.text
        assert (result.status, result.session_alive) == (status, True), result.text
        assert (await session.run("40 + 2")).value == "42"


@pytest.mark.parametrize("level", [Level.CONTAINED, Level.NAMESPACED, Level.FILTERED])
async def test_scripts_started_through_the_interpreter_find_the_libraries(level, tmp_path):
    # At `filtered` fails where the directory of the standard library cannot be listed.
    (tmp_path / "ballast.py").write_text("WEIGHT = 7\n")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    async with (
        open_sandbox(
            "local", max_level=level, min_level=Level.FILTERED, zygotes=1, library_path=str(tmp_path)
        ) as own,
        await own.open() as session,
    ):
        code = (
            "import subprocess, sys\nopen('script.py', 'w').write('import ballast; print(ballast.WEIGHT)')\n"
            "done = subprocess.run([sys.executable, 'script.py'], capture_output=True, text=True)\n"
            "done.stdout + done.stderr"
        )
        result = await session.run(code)
        assert result.value == "'7\\n'", result.text


async def test_scripts_have_as_many_threads_as_the_limit_of_processes_allows(sandbox):
    # Fails without MALLOC_ARENA_MAX: 64 MiB for each of eight threads are all that a process may map.
    code = (
        "import threading, time\n"
        "threads = [threading.Thread(target=time.sleep, args=(1,), daemon=True) for _ in range(28)]\n"
        "for thread in threads: thread.start()\nprint(len(threads))"
    )
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], text=True, capture_output=True)"
    async with await sandbox.open(Limits(processes=48)) as session:
        result = await session.run(script, 10)
        assert "stdout='28\\n'" in result.value, result.text


async def test_the_last_three_values_have_names(sandbox):
    async with await sandbox.open() as session:
        for number in (1, 2, 3):
            await session.run(str(number))
        assert (await session.run("(_, __, ___)")).value == "(3, 2, 1)"
        # A `_` of the program's own is left alone.
        await session.run("for _ in range(5): pass")
        await session.run("10 + 1")
        assert (await session.run("_")).value == "4"


@pytest.mark.slow
async def test_tasks_live_on_from_cell_to_cell_and_an_interrupted_one_does_not(sandbox):
    async with await sandbox.open() as session:
        await session.run("import asyncio\nasync def f():\n    await asyncio.sleep(0.01); return 5")
        await session.run("task = asyncio.create_task(f()); await asyncio.sleep(0)")
        assert (await session.run("await task")).value == "5"
        late = await session.run("await asyncio.sleep(1)\nprint('LATE')", timeout=0.2)
        assert late.status is Status.TIMEOUT
        assert "LATE" not in (await session.run("await asyncio.sleep(1.5)\n1")).text
        await session.run("asyncio.get_event_loop().close()")
        assert (await session.run("await f()")).value == "5"


@contextlib.asynccontextmanager
async def _backend(name):
    if name == "remote":
        server = SandboxServer(
            open_sandbox("local", zygotes=1, min_level="filtered"), ServerSettings(port=0, drain_s=0)
        )
        try:
            async with open_sandbox("remote", urls=await server.start()) as sandbox:
                yield sandbox
        finally:
            await server.stop()
    elif name == "docker":
        async with open_sandbox("docker", libraries=(), warm=2) as sandbox:
            yield sandbox
    else:
        async with open_sandbox("local", zygotes=1, max_level=name, min_level=name) as sandbox:
            yield sandbox


@pytest.mark.hostile  # for its length
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    ["contained", "namespaced", "filtered", "remote", pytest.param("docker", marks=pytest.mark.docker)],
)
async def test_every_backend_and_level_says_the_same(sandbox, name):
    programs = [code for code, _, _ in CELLS.values()]

    async def texts(where):
        said = {}
        for code in programs:
            async with await where.open() as session:
                said[code] = (await session.run(code)).text
        return said

    try:
        async with _backend(name) as other:
            there = await texts(other)
    except SandboxUnavailable as error:
        pytest.skip(str(error)[:200])
    assert there == await texts(sandbox)
