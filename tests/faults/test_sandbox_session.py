"""A program in the sandbox as a person runs it: text that a model can act on, and nothing left on the machine."""

import tempfile
from pathlib import Path

import pytest

PROGRAMS = {
    "an escape without an end": ("print('17', '\\x1b]', 'never ended')\n1 / 0", "ZeroDivisionError", "error"),
    "no open files": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
        "limit of open files was lowered to 0.\nThe interpreter was restarted",
        "ok",
    ),
    "a shell command": ("!ls", "subprocess.run('ls'", "error"),
    "the network": (
        "import urllib.request as u\nu.urlopen('http://example.com')",
        "there is no network",
        "error",
    ),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_what_a_program_is_told(command, tmp_path, what):
    code, says, status = PROGRAMS[what]
    (tmp_path / "program.py").write_text(code)
    ran = command("sandbox", "run", "program.py", "--min-level", "filtered")
    assert says in ran.stdout, ran
    assert f"{status}, " in ran.stderr


def test_no_run_leaves_a_folder_among_the_temporary_files(command, tmp_path):
    (tmp_path / "program.py").write_text("open('x', 'w').write('x')")
    rooms = tmp_path / "temporary"
    rooms.mkdir()
    for parent in rooms.parents:
        if parent.is_relative_to(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    command("sandbox", "run", "program.py", "--min-level", "filtered", TMPDIR=str(rooms))
    assert list(rooms.iterdir()) == []


def test_a_server_is_told_what_its_clients_may_ask_for_at_most(command):
    wrong = command("sandbox", "serve", "--ceiling", "memory=1")
    assert wrong.returncode == 2
    assert "'memory' is no limit; there are time_s, memory_mb" in wrong.stderr
