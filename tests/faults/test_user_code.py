"""Code that a user wrote: whatever it raises, changes or leaves behind is one episode's matter, and is named.

Environments are used as the rollout uses them, through the face of `Env`, and in real runs of the bundled model.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import errno
import gzip
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentrl_envs import Env, EnvError, Finish, ToolCall, ToolError, ToolFailure, Transcript, tool

pytestmark = pytest.mark.timeout(300)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def group(*members: BaseException) -> BaseException:
    return BaseExceptionGroup("several tasks failed", members)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ANYTHING: dict[str, Callable[[], BaseException]] = {
    "CancelledError": lambda: asyncio.CancelledError("a future of a client"),
    "futures.CancelledError": lambda: concurrent.futures.CancelledError(),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(),
    "GeneratorExit": lambda: GeneratorExit(),
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": lambda: StopAsyncIteration(),
    "group": lambda: group(KeyError("one"), SystemExit(2)),
    "Unspeakable": lambda: Unspeakable(),
    "RecursionError": lambda: RecursionError("deep"),
    "megabytes": lambda: ValueError("x" * 10**6),
}


def environment(hook: str, make: Callable[[], BaseException], *, sync: bool) -> type[Env]:
    """An environment one of whose methods raises."""

    def fail(self: Env, *arguments: Any) -> Any:
        raise make()

    async def fail_later(self: Env, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        raise make()

    body = {
        "prompt": lambda self, row: "?",
        "reward": lambda self, row, answer: 1.0,
        "reply": lambda self, m: None,
    }
    return type("Wild", (Env,), body | {hook: fail if sync else fail_later})


async def play(env: Env, row: dict[str, Any] | None = None) -> float:
    await env.start(row or {})
    await env.respond("42")
    return (await env.score(row or {}, "42", Transcript())).value


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ANYTHING)
async def test_whatever_a_hook_raises_is_an_error_that_names_method_file_and_line(
    kind: str, sync: bool
) -> None:
    hook = ("setup", "prompt", "reply", "reward")[list(ANYTHING).index(kind) % 4]
    env = environment(hook, ANYTHING[kind], sync=sync)()
    with pytest.raises(EnvError, match=rf"Wild\.{hook} raised .*test_user_code\.py:\d+\)$") as raised:
        await play(env)
    assert len(str(raised.value)) < 3000
    assert asyncio.current_task().cancelling() == 0
    await env.aclose()


@pytest.mark.parametrize("kind", ["CancelledError", "SystemExit", "group", "Unspeakable"])
async def test_whatever_close_raises_is_an_error_that_names_it(kind: str) -> None:
    env = environment("close", ANYTHING[kind], sync=kind == "SystemExit")()
    assert await play(env) == 1.0
    with pytest.raises(EnvError, match=r"Wild\.close raised .*:\d+\)"):
        await env.aclose()


class Tools(Env):
    """Tools that raise what they are told to."""

    hook_timeout_s = 20.0
    tool_timeout_s = 20.0
    make: Any = None

    def prompt(self, row: Any) -> str:
        return "?"

    def reward(self, row: Any, answer: str | None) -> float:
        return 0.0

    @tool
    def fail(self) -> str:
        "Fail in a thread."
        raise self.make()

    @tool
    async def fail_later(self) -> str:
        "Fail in the event loop."
        raise self.make()

    @tool(parallel=True)
    async def together(self, number: int) -> str:
        "Fail beside others."
        if number:
            await asyncio.sleep(30)
        raise self.make()

    @tool
    def calculate(self, code: str) -> str:
        "Evaluate an expression."
        return str(eval(code))

    @tool
    def broken(self) -> str:
        "Have a bug."
        return undefined_name  # noqa: F821


async def result_of(name: str, make: Any = None, env_class: type[Env] = Tools, **arguments: Any) -> Any:
    env = env_class(make=make)
    await env.start({})
    try:
        return (await env.call_tools([ToolCall("0", name, arguments)]))[0]
    finally:
        await env.aclose()


@pytest.mark.parametrize("name", ["fail", "fail_later"])
@pytest.mark.parametrize(
    "kind", ["CancelledError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "group"]
)
async def test_what_only_leaves_a_program_fails_the_episode_of_a_tool(kind: str, name: str) -> None:
    with pytest.raises(ToolFailure, match=rf"Tools\.{name} .*test_user_code\.py:\d+\)"):
        await result_of(name, ANYTHING[kind])


@pytest.mark.parametrize("kind", ["SystemExit", "CancelledError"])
async def test_one_of_several_parallel_tools_fails_the_episode_and_ends_the_others(kind: str) -> None:
    env = Tools(make=ANYTHING[kind])
    await env.start({})
    began = time.monotonic()
    with pytest.raises(ToolFailure, match=r"Tools\.together"):
        await env.call_tools([ToolCall(str(i), "together", {"number": i}) for i in range(3)])
    assert time.monotonic() - began < 25
    await env.aclose()


@pytest.mark.parametrize(
    "code",
    [
        "1 +",
        "undefined",
        "1 / 0",
        "[][3]",
        "(1).nope",
        "int('x')",
        "exit()",
        "__import__('nope')",
        "open('/nope')",
        # what a service that is down would raise, raised by the model's own text
        "(_ for _ in ()).throw(ConnectionResetError('x'))",
        "(_ for _ in ()).throw(TimeoutError('x'))",
        "(_ for _ in ()).throw(OSError(28, 'full'))",
        "(_ for _ in ()).throw(MemoryError('x'))",
    ],
)
async def test_what_the_model_wrote_is_the_models_to_read(code: str) -> None:
    result = await result_of("calculate", code=code)
    assert (result.ok, result.status) == (False, "error")
    assert re.match(r"ToolError: \w+(Error|Exit)", result.text)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad date"),
        AssertionError("x must be positive"),
        AttributeError("'NoneType' object has no attribute 'group'"),
        MemoryError(),
        NotImplementedError("unit 'furlong'"),
        ToolError("no such page"),
        FileNotFoundError(errno.ENOENT, "no file", "x"),
        OSError(errno.ENAMETOOLONG, "name too long"),
        Unspeakable(),
        group(ValueError("one"), KeyError("two")),
        group(ToolError("no such page")),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_arguments_cause_is_the_models_to_read(error: BaseException) -> None:
    result = await result_of("fail_later", lambda: copy.copy(error))
    assert (result.ok, result.status) == (False, "error")
    assert result.text.startswith("ToolError: ")


async def test_a_name_that_the_tools_own_file_lacks_is_a_bug() -> None:
    with pytest.raises(ToolFailure, match=r"Tools\.broken has a bug: NameError.*test_user_code\.py:\d+"):
        await result_of("broken")


def broken_services() -> dict[str, BaseException]:
    from concurrent.futures.process import BrokenProcessPool

    import aiohttp
    import httpx2
    import requests
    import urllib3

    return {
        "httpx": httpx2.ConnectError("refused"),
        "aiohttp": aiohttp.ServerDisconnectedError(),
        "requests": requests.ConnectionError("reset"),
        "urllib3": urllib3.exceptions.ProtocolError("aborted"),
        "pool": BrokenProcessPool("a child died"),
        "time": TimeoutError(),
        "disk": OSError(errno.ENOSPC, "no space"),
        "group": group(ValueError("one"), ConnectionResetError("two")),
        "cause": caused(ValueError("cannot fetch"), ConnectionRefusedError("refused")),
        "nested": caused(RuntimeError("again"), caused(KeyError("x"), httpx2.ReadTimeout("slow"))),
    }


@pytest.mark.parametrize("name", broken_services())
async def test_a_service_that_is_down_fails_the_episode(name: str) -> None:
    with pytest.raises(ToolFailure, match=r"Tools\.fail could not reach what it needs.*:\d+\)"):
        await result_of("fail", lambda: broken_services()[name])


async def test_the_environment_can_say_otherwise() -> None:
    class Told(Tools):
        told_errors = (ConnectionError,)
        failing_errors = (ZeroDivisionError,)

    assert (await result_of("fail", lambda: ConnectionResetError("reset"), Told)).status == "error"
    with pytest.raises(ToolFailure, match="ZeroDivisionError"):
        await result_of("fail", ZeroDivisionError, Told)
    converted = caused(ToolError("the page is gone"), ConnectionResetError("reset"))
    assert (await result_of("fail", lambda: converted)).text == "ToolError: the page is gone"


async def test_finish_ends_the_episode_out_of_a_group_too() -> None:
    with pytest.raises(Finish):
        await result_of("fail_later", lambda: group(Finish(reward=1.0)))


async def test_a_cancelled_episode_is_cancelled() -> None:
    class Slow(Tools):
        @tool
        async def wait(self) -> str:
            "Wait."
            await asyncio.sleep(30)
            return ""

    task = asyncio.ensure_future(result_of("wait", env_class=Slow))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_tasks_left_behind_end_with_the_episode_and_cannot_end_the_loop() -> None:
    left: list[asyncio.Task[None]] = []

    class Leaves(Tools):
        async def setup(self) -> None:
            left.append(asyncio.create_task(asyncio.sleep(3600)))
            left.append(asyncio.create_task(self.leave()))

        async def leave(self) -> None:
            sys.exit(4)

    env = Leaves()
    await env.start({})
    await env.aclose()
    _, pending = await asyncio.wait(left, timeout=20)
    assert not pending
    assert left[0].cancelled()
    assert isinstance(left[1].exception(), RuntimeError)


def test_defaults_and_settings_that_an_episode_changes_are_its_own() -> None:
    class Collects(Env):
        names: list[str] = ["a"]  # noqa: RUF012
        options: dict[str, list[int]] = {}  # noqa: RUF012

    given = {"deep": [1]}
    first, second = Collects(options=given), Collects(options=given)
    first.names.append("b")
    first.options["deep"].append(2)
    assert (second.names, Collects.names) == (["a"], ["a"])
    assert (second.options, given) == ({"deep": [1]}, {"deep": [1]})


async def test_what_a_tool_changes_is_neither_in_the_next_call_nor_in_the_record() -> None:
    class Collects(Tools):
        @tool
        def add(self, number: int, to: list[int] = [], seen: dict[str, Any] = {}) -> str:  # noqa: B006
            "Add."
            to.append(number)
            seen[str(number)] = to
            return f"{to} {len(seen)}"

    for _ in range(2):
        env = Collects()
        await env.start({})
        calls = [
            ToolCall("0", "add", {"number": 1}),
            ToolCall("1", "add", {"number": 2}),
            ToolCall("2", "add", {"number": 3, "to": [7], "seen": {"a": [1]}}),
        ]
        results = await env.call_tools(calls)
        assert [result.text for result in results] == ["[1] 1", "[2] 1", "[7, 3] 2"]
        assert calls[2].arguments == {"number": 3, "to": [7], "seen": {"a": [1]}}
        await env.aclose()


TAKEN = {
    "tool reply": "@tool\n    def reply(self, message: str) -> str: 'Reply.'",
    "tool close": "@tool\n    def close(self) -> str: 'Close.'",
    "tool setup": "@tool\n    async def setup(self) -> str: 'Set up.'",
    "tool start": "@tool\n    def start(self, level: int) -> str: 'Start.'",
    "tool score": "@tool\n    def score(self) -> str: 'Score.'",
    "tool reward": "@tool(parallel=True)\n    def reward(self, x: int) -> int: 'R.'",
    "tool sandbox": "@tool\n    def sandbox(self, code: str) -> str: 'Run.'",
    "setting prompt": "prompt: str = 'hello'",
    "setting close": "close: bool = True",
    "setting rng": "rng: int = 3",
    "setting grader": "grader: str = 'exact'",
    "method start": "def start(self, level): ...",
    "method score": "def score(self): ...",
    "value reward": "reward = 1.0",
    "signature reward": "def reward(self, answer): ...",
    "signature prompt": "def prompt(self): ...",
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_name_that_agentrl_uses_is_refused_when_the_class_is_made(what: str) -> None:
    source = f"from agentrl_envs import Env, tool\nclass Game(Env):\n    {TAKEN[what]}\n"
    with pytest.raises(EnvError, match=rf"Game\.{what.split()[1]}.*(write|such as)"):
        exec(source, {"__name__": "made"})


def test_the_remedy_for_a_tool_of_a_taken_name_works() -> None:
    class Mail(Env):
        @tool(name="reply")
        def reply_tool(self, text: str) -> str:
            "Reply."
            return text

    assert [spec.name for spec in Mail.tool_specs()] == ["reply"]


def test_an_attribute_that_would_hide_a_method_is_refused() -> None:
    class Game(Env):
        def setup(self) -> None:
            self.score = 0

    with pytest.raises(
        EnvError, match=r"self\.score = \.\.\. would hide Game\.score.*test_user_code\.py|hide"
    ):
        asyncio.run(Game().start({}))


WILD = """
import asyncio, sys, threading, time
from agentrl import Env, tool


class Wild(Env):
    names: list[str] = []

    def setup(self):
        self.names.append("x")
        assert len(self.names) == 1

    async def prompt(self, row):
        kind = row["kind"]
        if kind == "exit":
            sys.exit(3)
        if kind == "cancelled":
            raise asyncio.CancelledError
        if kind == "threads":
            for _ in range(10):
                asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
            threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
        if kind == "tasks":
            asyncio.create_task(self.never())
            asyncio.create_task(self.leave())
        assert row.pop("once")
        return row["problem"]

    async def leave(self):
        sys.exit(4)

    async def never(self):
        for _ in range(1000):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    def reward(self, row, answer):
        if row["kind"] == "key":
            return row["nested"]
        return len(answer or "") % 2
"""


@pytest.fixture(scope="module")
def wild_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A real run in which a third of the rows goes wrong."""
    folder = tmp_path_factory.mktemp("wild")
    (folder / "wild.py").write_text(WILD)
    kinds = ["long", "exit", "cancelled", "key", "threads", "tasks", "key", "key"] + ["good"] * 8
    rows = [
        {
            "id": f"{kind}-{i}",
            "kind": kind,
            "once": [1],
            "problem": f"What is {i}+{i}?" + "long " * 900 * (kind == "long"),
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = files("agentrl.demo") / "model"
    program = "import sys; from importlib.metadata import entry_points as e; "
    program += "sys.exit(next(iter(e(group='console_scripts', name='agentrl'))).load()())"
    words = f"train wild.py --model {model} --data rows.jsonl --run.steps=2 --run.name=wild --stream.batch=8"
    words += " --rollout.max_tokens=16 --rollout.format=code --engine.slots=8 --engine.context_tokens=512"
    done = subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done, folder / "runs" / "wild"


def test_a_run_goes_on_and_its_process_ends(wild_run: Any) -> None:
    done, folder = wild_run
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "summary.json").read_text())["policy_versions"] == 2


def test_failures_of_a_run_name_method_file_and_line(wild_run: Any) -> None:
    found = {}
    for path in (wild_run[1] / "episodes").iterdir():
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            episodes = [json.loads(line) for line in file]
        found |= {e["prompt_id"].partition("-")[0]: e["failure"][2] for e in episodes if e.get("failure")}
    for message in found.values():
        assert re.search(r"Wild\.(prompt|reward) raised \w+.*\(wild\.py:\d+\)$", message), message
    assert "key" in found
    assert not {"good", "long", "exit", "cancelled"} & set(found)


def test_rows_that_cannot_be_played_are_named_and_the_run_starts(wild_run: Any) -> None:
    rows = [json.loads(line) for line in (wild_run[1] / "metrics.jsonl").read_text().splitlines()]
    left_out = next(row["rows"] for row in rows if row["kind"] == "left_out")
    assert "the context holds 512" in left_out["long-0"]
    assert "SystemExit: 3 (wild.py:" in left_out["exit-1"]
    last = next(row for row in reversed(rows) if row["kind"] == "step")
    assert last["set_aside"] == {"wild.py": len(left_out)}


def test_more_than_a_twentieth_failed_is_a_warning_with_the_first_failure(wild_run: Any) -> None:
    done, folder = wild_run
    assert "of the episodes failed, the first one: " in done.stderr + done.stdout
    assert "of the episodes failed, which biases what is learned" in (folder / "report.html").read_text()


def test_check_counts_the_rows_that_cannot_be_begun(command: Any, tmp_path: Path) -> None:
    source = "from agentrl import Env\nclass One(Env):\n    example_rows = ({'a': 1}, {'b': 2})\n"
    source += (
        "    def prompt(self, row): return str(row['a'])\n    def reward(self, row, answer): return 0.0\n"
    )
    (tmp_path / "one.py").write_text(source)
    done = command("check", "one.py", "--sandbox=none", timeout_s=120)
    assert done.returncode == 1
    assert re.search(
        r"1 of 2 episodes failed \(50%\).*One\.prompt raised KeyError: 'a' \(one\.py:4\)", done.stdout
    )


@pytest.mark.parametrize("some", ["first", "mixed", "later", "all"])
def test_rows_that_end_in_their_prompt_end_as_the_environment_says(
    command: Any, tmp_path: Path, some: str
) -> None:
    source = """
from agentrl import Env, Finish


class Ends(Env):
    def prompt(self, row):
        if row["ends"]:
            raise Finish(reward=0.25)
        return row["problem"]

    def reward(self, row, answer):
        return len(answer or "") % 2
"""
    (tmp_path / "ends.py").write_text(source)
    ends = {
        "first": lambda i: i < 8,
        "mixed": lambda i: i % 2,
        "later": lambda i: i > 0,
        "all": lambda i: True,
    }[some]
    rows = [{"id": f"r{i}", "problem": f"{i} + 1 =", "ends": ends(i)} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = f"train ends.py --model {files('agentrl.demo') / 'model'} --data rows.jsonl --run.steps=2 --run.name=ends"
    words += " --stream.batch=8 --rollout.max_tokens=16 --rollout.format=code --engine.slots=8"
    words += " --engine.context_tokens=256 --model.device=cpu --quiet"
    done = command(*words.split(), timeout_s=120)
    assert "Traceback" not in done.stderr
    refusals = {
        "all": "their episodes end before the model is asked",
        "later": "ended before a token was sampled",
    }
    if some in refusals:  # one prompt never fills a batch of 8
        assert done.returncode == 1
        assert refusals[some] in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "runs/ends/metrics.jsonl").read_text().splitlines()]
    assert not [row for row in found if row["kind"] == "left_out"]
    last = [row for row in found if row["kind"] == "step"][-1]
    assert last["failures"] == 0
    assert set(last["set_aside"]) <= {"ends.py"}
    episodes = []
    for path in (tmp_path / "runs/ends/episodes").iterdir():
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            episodes += [json.loads(line) for line in file]
    rewards = {e["reward"] for e in episodes if ends(int(e["prompt_id"][1:]))}
    assert rewards == {0.25}
    assert {e["reward"] for e in episodes if not ends(int(e["prompt_id"][1:]))} <= {0, 1}
