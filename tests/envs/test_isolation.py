"""Environments in processes of their own: all that an environment can do, and what happens when one breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentrl_envs.isolation.host as host
import agentrl_envs.isolation.remote as remote
from agentrl.cli.main import main
from agentrl.config.loading import load_settings
from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, StopReason
from agentrl.errors import ConfigError
from agentrl.inference.scripted import ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, EnvError, ToolCall, load_env
from agentrl_envs.check import check_env
from agentrl_envs.errors import EnvNotFound, ServerFailure, SettingsError
from agentrl_envs.isolation import Isolation, end_hosts, isolated
from agentrl_sandbox import open_sandbox
from agentrl_sandbox.errors import SessionClosed
from tests.adapters.playing import END, Tokenizer
from tests.adapters.playing import tool_call as call

ROOT = Path(__file__).parents[2]
SHOP = f"{Path(__file__).parent / 'isolated' / 'shop.py'}:Shop"
ROW = {"problem": "What is 6 * 7?", "answer": "42"}


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    end_hosts()
    assert children() <= before


def children() -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(folder.name))
    return found


async def play(env_class: type[Env], script: list[str], sandbox: Any = None, **settings: Any) -> Episode:
    return await run_episode(
        lambda: env_class(sandbox=sandbox, rng=random.Random(7), **settings),
        ScriptedPolicy(script, tokenizer=Tokenizer()),
        make_renderer(Tokenizer(), "hermes"),
        row=ROW,
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(max_turns=12),
    )


SCRIPT = [
    call("buy", name="tea"),
    call("buy", name="milk").removesuffix(END) + call("refuse"),
    call("buy", nam="x"),
    call("ask", question="What else?"),
    call("buy", name="bread"),
    "Bread.<|end|>",
    call("compute", code="print(6 * 7)"),
    call("forget"),
    "It is \\boxed{42}.<|end|>",
]


async def test_an_episode_is_the_same_in_a_process_of_its_own() -> None:
    async with open_sandbox("local") as sandbox:
        here = await play(load_env(SHOP), SCRIPT, sandbox, discount=5)
        there = await play(isolated(SHOP, {"discount": 5}), SCRIPT, sandbox, discount=5)
    assert there.failure is None
    assert there.reward == 1.0
    assert [segment.token_ids for segment in there.segments] == [
        segment.token_ids for segment in here.segments
    ]
    assert [turn.reward for turn in there.turns] == [turn.reward for turn in here.turns]
    assert (there.reward_parts, there.verdict, there.counts) == (here.reward_parts, here.verdict, here.counts)
    assert len(there.segments) == 3  # the episode, the helper, and what follows the forgotten


async def test_finish_and_broken_machinery_keep_their_kind() -> None:
    env_class = isolated(SHOP)
    ended = await play(env_class, [call("finish")])
    assert (ended.stop_reason, ended.answer, ended.reward) == (StopReason.FINISHED, "\\boxed{42}", 1.0)
    broken = await play(env_class, [call("break_down")])
    assert broken.failure is not None
    assert (broken.failure.boundary, broken.failure.error) == ("sandbox", "SandboxFailure")
    assert broken.reward is None


async def test_what_dies_takes_its_own_episodes_and_nothing_else() -> None:
    env_class = isolated(SHOP)
    env, other = env_class(), env_class()
    await env.start(ROW)
    await other.start(ROW)
    with pytest.raises(
        ServerFailure,
        match=r"shop.py:Shop' \(pid \d+\) died in 'call': exit status 3; it wrote: out of memory",
    ):
        await env.call_tools([ToolCall("1", "die", {})])
    with pytest.raises(ServerFailure, match="died in"):
        await other.call_tools([ToolCall("1", "buy", {"name": "tea"})])
    await asyncio.gather(env.aclose(), other.aclose())
    died = await play(env_class, [call("die")])
    assert died.failure is not None
    assert (died.failure.error, died.reward) == ("ServerFailure", None)
    assert (await play(env_class, [call("buy", name="tea"), "\\boxed{42}<|end|>"])).reward == 1.0


@pytest.mark.slow
async def test_what_blocks_is_killed_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "GRACE_S", 0.2)
    blocked = await play(isolated(SHOP), [call("block")])
    assert blocked.failure is not None
    assert "did not answer 'call' within 1.2 s, and was killed" in blocked.failure.message
    assert blocked.reward is None


@pytest.mark.slow
async def test_what_reads_no_more_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "GRACE_S", 0.5)
    env_class = isolated(SHOP)
    env = env_class()
    await env.start(ROW)
    stopped: Any = env
    os.kill(stopped._host.pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(env.call_tools([ToolCall("1", "block", {"name": "x" * (8 << 20)})]))
    ticks = 0
    while not asked.done():  # no buffer between two processes holds 8 MB: who writes must wait elsewhere
        await asyncio.sleep(0.01)
        ticks += 1
    with pytest.raises(ServerFailure, match="did not answer 'call' within"):
        await asked
    assert ticks > 20
    await env.aclose()


@pytest.mark.slow
async def test_what_grows_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_LOOK_S", 0.0)
    env_class = isolated(SHOP, {}, Isolation(memory_mb=400))
    env = env_class()
    await env.start(ROW)
    first, *_ = await env.call_tools(
        [ToolCall("1", "process", {}), ToolCall("2", "grow", {"megabytes": 500})]
    )
    assert (await env.call_tools([ToolCall("3", "buy", {"name": "tea"})]))[0].ok  # the episode goes on
    await env.aclose()
    env = env_class()
    await env.start(ROW)
    assert (await env.call_tools([ToolCall("1", "process", {})]))[0].text != first.text
    await env.call_tools([ToolCall("2", "grow", {"megabytes": 1000})])
    with pytest.raises(ServerFailure, match="more than twice env.memory_mb"):
        await env.call_tools([ToolCall("3", "buy", {"name": "tea"})])
    await env.aclose()


async def test_workers_share_the_episodes() -> None:
    env_class = isolated(SHOP, {}, Isolation(workers=2))
    envs = [env_class() for _ in range(4)]
    for env in envs:
        await env.start(ROW)
    pids = [(await env.call_tools([ToolCall("1", "process", {})]))[0].text for env in envs]
    assert sorted(map(pids.count, set(pids))) == [2, 2]
    assert str(os.getpid()) not in pids
    await asyncio.gather(*(env.aclose() for env in envs))


async def soon(condition: Callable[[], bool]) -> bool:
    """Whether something comes true within ten seconds."""
    for _ in range(1000):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


def processes(env_class: Any) -> set[int]:
    return {one.pid for one in env_class.hosts._hosts}


async def test_an_episode_that_is_over_leaves_no_thread() -> None:
    env_class = isolated(SHOP)
    before: set[threading.Thread] = set()
    for number in range(12):
        env = env_class()
        await env.start(ROW)
        await env.aclose()
        before = before or set(threading.enumerate())
        assert number < 11 or len(set(threading.enumerate()) - before) < 5


@pytest.mark.slow
async def test_a_process_ends_when_it_was_idle_for_long_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "LINGER_S", 0.6)
    env_class = isolated(SHOP, {"discount": 11})
    pids = processes(env_class)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        env = env_class()
        await env.start(ROW)
        await env.aclose()
        await asyncio.sleep(0.1)
    assert processes(env_class) == pids
    assert await soon(lambda: not pids & children())
    assert not processes(env_class)


async def test_a_process_that_makes_rows_is_not_idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "LINGER_S", 0.1)
    (tmp_path / "slow.py").write_text(
        "import time\nfrom agentrl import Env\n"
        "class Slow(Env):\n"
        "    def prompt(self, row): return ''\n"
        "    def reward(self, row, answer): return 0.0\n"
        "    @classmethod\n"
        "    def generate_rows(cls, count, split='train', seed=0):\n"
        "        time.sleep(0.4)\n"
        "        return [{'id': str(number)} for number in range(count)]\n"
    )
    make: Any = isolated(f"{tmp_path / 'slow.py'}")
    env = make()
    await env.start(ROW)
    await env.aclose()
    assert len(make.generate_rows(2)) == 2


@pytest.mark.slow
async def test_cancelled_while_its_process_starts_an_episode_keeps_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "LINGER_S", 0.2)
    env_class: Any = isolated(SHOP, {"discount": 12})
    env_class.hosts.end()
    before = children()
    env = env_class()
    starting = asyncio.ensure_future(env.start(ROW))
    assert await soon(lambda: bool(children() - before))  # those of other tests may end meanwhile
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await env.aclose()
    assert await soon(lambda: bool(processes(env_class)))  # it starts all the same
    assert await soon(lambda: children() <= before)


async def test_an_episode_that_is_closed_while_it_begins_begins_no_further(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio, pathlib\nfrom agentrl import Env\n"
        "class Slow(Env):\n"
        "    async def setup(self):\n"
        f"        pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "        await asyncio.sleep(0.3)\n"
        f"        pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
        "    def prompt(self, row): return 'a'\n"
        "    def reward(self, row, answer): return 0.0\n"
    )
    env = isolated(f"{tmp_path / 'slow.py'}")()
    starting = asyncio.ensure_future(env.start(ROW))
    assert await soon((tmp_path / "begun").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await env.aclose()
    await asyncio.sleep(0.5)
    assert not (tmp_path / "done").exists()


async def test_what_cannot_be_left_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    env_class: Any = isolated(SHOP)

    def breaks(*_: Any) -> None:
        raise RuntimeError("no more threads")

    async with open_sandbox("local") as sandbox:
        env = env_class(sandbox=sandbox)
        await env.start(ROW)
        session = await env.sandbox.open()
        leave = env_class.hosts.leave
        given = env._host, env._number
        monkeypatch.setattr(env_class.hosts, "leave", breaks)
        with pytest.raises(RuntimeError, match="no more threads"):
            await env.aclose()
        leave(*given)
        with pytest.raises(SessionClosed):
            await session._session.run("1")


async def test_the_class_tells_of_itself_and_is_checked() -> None:
    env_class = isolated(SHOP)
    assert [spec.name for spec in env_class.tool_specs()][:2] == ["buy", "refuse"]
    make: Any = env_class
    assert make.generate_rows(2, split="test", seed=3)[1] == {"problem": "test 4", "answer": "1"}
    findings = await check_env(
        isolated(f"{Path(SHOP).parents[3]}/examples/word_count.py"), env_class.example_rows
    )
    assert {one.check: one.ok for one in findings}["rows have the fields it needs"]


@pytest.mark.parametrize(
    ("spec", "settings", "how", "kind", "said"),
    [
        ("none.py:Shop", {}, Isolation(), EnvNotFound, "no file none.py"),
        (SHOP, {"discont": 1}, Isolation(), SettingsError, "did you mean 'discount'"),
        ("program:sh", {}, Isolation(), EnvError, "a program is a process of its own already"),
        (SHOP, {}, Isolation(python="/no/python"), EnvError, "env.python = '/no/python' cannot be started"),
    ],
)
def test_what_cannot_be_loaded_is_said_as_ever(
    spec: str, settings: dict[str, Any], how: Isolation, kind: type[EnvError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        isolated(spec, settings, how)


def test_another_interpreter_needs_no_agentrl() -> None:
    made = isolated(SHOP, {}, Isolation(python=sys.executable))
    assert made.__name__ == "Shop"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the shop."""
    monkeypatch.setenv("AGENTRL_ENV_KEY", "a key of some length")
    run = 'ulimit -n 40; exec "$@"'
    serve = [sys.executable, "-m", "agentrl.cli.main", "serve", SHOP, "--serve.address=127.0.0.1:0"]
    command = ["sh", "-c", run, "sh", *serve]
    roots = [str(ROOT), str(ROOT / "envs"), str(ROOT / "sandbox")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].strip()
        end_hosts()
        process.kill()


@pytest.mark.slow
async def test_an_environment_on_another_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env_class = load_env(f"remote:{address}", {"discount": 5})
    async with open_sandbox("local") as sandbox:
        here = await play(load_env(SHOP), SCRIPT, sandbox, discount=5)
        there = await play(env_class, SCRIPT, sandbox, discount=5)
    assert there.failure is None
    assert [one.token_ids for one in there.segments] == [one.token_ids for one in here.segments]
    died = await play(env_class, [call("die")], discount=5)
    assert died.failure is not None
    assert died.failure.message == f"the environment at {address} died in 'call': the connection was lost"
    assert (await play(env_class, [f"\\boxed{{42}}{END}"], discount=5)).reward == 1.0
    monkeypatch.setenv("AGENTRL_ENV_KEY", "another key of some length")
    with pytest.raises(EnvError, match="key in AGENTRL_ENV_KEY is not the server's") as raised:
        load_env(f"remote:{address}", {"discount": 6})
    assert "of some length" not in str(raised.value)


@pytest.mark.slow
def test_a_server_outlives_more_connections_than_it_has_room_for(address: str) -> None:
    place = remote.place_of(address, "")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(place))
        time.sleep(0.5)
    assert load_env(f"remote:{address}", {"discount": 7}).__name__ == "Shop"


def test_a_key_that_comes_byte_by_byte_has_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_KEY_S", 0.2)
    ours, theirs = socket.socketpair()
    waiting = threading.Thread(target=remote._admit, args=(theirs, b"k" * 32, SHOP))
    waiting.start()
    began = time.monotonic()
    with ours, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - began < 1.5:
            ours.sendall(b"k")
            time.sleep(0.1)
    assert time.monotonic() - began < 1.0
    waiting.join(5.0)
    assert not waiting.is_alive()


def test_what_was_overheard_opens_nothing() -> None:
    answers, overheard = [], b""
    for _ in range(2):  # the right answer, then the same once more
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
        waiting = threading.Thread(target=remote._admit, args=(theirs, b"k" * 32, SHOP))
        waiting.start()
        with ours:
            nonce = remote._received(ours, remote._NONCE, 5.0)
            overheard = overheard or remote._signed(b"k" * 32, nonce)
            ours.sendall(overheard)
            answers.append(remote._received(ours, 1, 5.0))
        waiting.join(20.0)
        assert not waiting.is_alive()
    assert answers == [b"+", b"-"]


class Listens(Exception):
    """Ends a server that has told its address."""


def listens(address: str) -> None:
    with socket.create_connection(remote.place_of(address, ""), 5.0):
        raise Listens(address)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_a_server_listens_at_an_address_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_ENV_KEY", "a key of some length")
    with pytest.raises(Listens, match=r"\[::1\]:\d+"):
        remote.serve_remotely(SHOP, "[::1]:0", listens)


@pytest.mark.parametrize(
    ("spec", "address", "said"),
    [
        ("/nonexistent_env.py", "127.0.0.1:0", "no file"),
        (SHOP, "127.0.0.1:99999", "want HOST:PORT"),
        (SHOP, "9000", "want HOST:PORT"),
        (SHOP, "no.such.host.invalid:0", "cannot listen at 'no.such.host.invalid:0'"),
    ],
)
def test_what_cannot_be_served_announces_nothing(
    monkeypatch: pytest.MonkeyPatch, spec: str, address: str, said: str
) -> None:
    monkeypatch.setenv("AGENTRL_ENV_KEY", "a key of some length")
    with pytest.raises(EnvError, match=said):
        remote.serve_remotely(spec, address, listens)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--row=3"], ": serve.row\n"),
        (["--data=rows.jsonl", "--serve.submit=true"], ": data.train, serve.submit\n"),
        (["--sandbox=docker"], ": sandbox.backend\n"),
    ],
)
def test_serving_runs_refuses_what_each_run_brings(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AGENTRL_ENV_KEY", raising=False)
    assert main(["serve", SHOP, "--serve.address=127.0.0.1:0", *flags]) == 1
    told = capsys.readouterr().err
    assert "not with serve.address" in told
    assert told.endswith(said)


def test_what_answers_no_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_ENV_KEY", "a key of some length")
    monkeypatch.setattr(remote, "_CONNECT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ServerFailure, match=r"did not answer the key: timed out"),
    ):
        load_env("remote:{}:{}".format(*server.getsockname()), {"discount": 8})


def test_a_remote_environment_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_ENV_KEY", "a key of some length")
    with pytest.raises(EnvError, match="no environment at 127.0.0.1:9: .*refused"):
        load_env("remote:127.0.0.1:9")
    with pytest.raises(EnvError, match="want remote:HOST:PORT"):
        load_env("remote:here")
    monkeypatch.delenv("AGENTRL_ENV_KEY")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(EnvError, match="needs a key of 16"):
        load_env(f"remote:127.0.0.1:{server.getsockname()[1]}")


def test_settings_of_a_process_need_one() -> None:
    with pytest.raises(ConfigError, match=r'env.workers is for env.isolation = "process"'):
        load_settings(None, ["--env.name=arithmetic", "--env.workers=2"])
    assert load_settings(None, ["--env.workers=2", "--env.isolation=process"]).env[0].workers == 2
