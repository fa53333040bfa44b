"""MCP servers as environments: real servers of the package mcp, over standard streams and HTTP.

They need the package: `pip install 'agentrl[mcp]'`, or `make test-agents`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("mcp", "no package mcp (pip install 'agentrl[mcp]')")

from agentrl.config.settings import EnvSettings, RolloutSettings
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl.tasks.task import Task
from agentrl.tasks.task import env_class as class_of
from agentrl_envs import Env, EnvError, ToolCall, ToolResult, load_env
from agentrl_envs.check import check_env
from agentrl_envs.errors import ServerFailure
from agentrl_envs.isolation import Isolation, end_hosts, isolated
from agentrl_envs.mcp import env as env_module
from agentrl_envs.mcp.session import Server
from tests.adapters.playing import END, Tokenizer, tool_call
from tests.agents.training import two_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).parent / "servers" / "notes.py"
COMMAND = shlex.join([sys.executable, str(SERVER)])
VARIABLES = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
EXAMPLE = shlex.join([sys.executable, str(ROOT / "examples" / "agents" / "mcp_server.py")])
OURS = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "sandbox"), VARIABLES["PYTHONPATH"]]))}
KEYED = """
from agentrl_envs import Env, tool
class Keyed(Env):
    api_key: str = ""
    example_rows = ({"problem": "1"},)
    def prompt(self, row): return row["problem"]
    def reward(self, row, answer): return 0.0
    @tool
    def key(self) -> str:
        "The key."
        return self.api_key
"""
ROW = {"problem": "What is 19 + 23?", "answer": "42"}


def notes(where: str = COMMAND, **settings: Any) -> tuple[type[Env], dict[str, Any]]:
    settings = {"variables": VARIABLES, **settings}
    return load_env(f"mcp:{where}", settings), settings


@asynccontextmanager
async def episode(
    where: str = COMMAND, changed: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Env]:
    """An environment whose episode has begun; `changed` are settings that only the episode has."""
    env_class, settings = notes(where, **settings)
    env = env_class(**{**settings, **(changed or {})})
    counts: dict[str, int] = {}
    env.attach(_Counting(counts))
    env.counts = counts
    try:
        await env.start(ROW)
        yield env
    finally:
        await env.aclose()


class _Counting:
    """The part of a model that environments tell what happened."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


async def use(env: Env, name: str, /, **arguments: Any) -> ToolResult:
    (result,) = await env.call_tools([ToolCall("1", name, arguments)])
    return result


def servers() -> list[int]:
    """Processes of the server, other than the one over HTTP, whose command goes on."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().endswith(f"{SERVER}\0".encode()):
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


async def test_tools_state_and_results() -> None:
    async with episode(tool_timeout_s=3.0) as env, episode(tool_timeout_s=3.0) as other:
        assert (await use(env, "add", text="a")).text == "1 notes"
        assert (await use(env, "add", text="b")).text == "2 notes"
        assert (await use(other, "add", text="c")).text == "1 notes"  # a server of its own
        assert (await use(env, "total", numbers="[1, 2]", sign="minus")).text == "-3"
        assert (await use(env, "count", tree={"name": "a", "below": [{"name": "b"}]})).text == "2"
        refused = await use(env, "total", numbers="many")
        assert (refused.status, "argument 'numbers'" in refused.text) == ("bad_arguments", True)
        said = await use(env, "refuse")
        assert (said.status, said.text.startswith("ToolError: ")) == ("error", True)
        shown = await use(env, "picture")
        assert [part["type"] for part in shown.parts] == ["text", "image_url"]
        assert shown.parts[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        late = await use(env, "hang", seconds=60.0)
        assert late.text == "ToolError: hang did not end within 3 s"
        assert (await use(env, "noise")).text == "written"
        assert env.counts == {"mcp/timeouts": 1, "mcp/unreadable": 2}
    assert servers() == []


async def test_a_long_result_is_cut() -> None:
    async with episode(tool_timeout_s=120.0) as env:
        long = await use(env, "big", characters=10_000_000)
        assert len(long.text) < 257_000
        assert long.text.endswith("[... the rest of 10,000,000 characters was left out ...]")
        assert env.counts == {"mcp/cut": 1}
    assert servers() == []


@pytest.mark.parametrize(
    ("tool", "arguments", "limit_s", "said"),
    [
        ("die", {}, 120.0, "is gone in a call of die: .*; it wrote: out of memory"),
        (
            "freeze",
            {"seconds": 60.0},
            3.0,
            "the call of freeze did not end within 3 s, and the MCP server .* either",
        ),
        (
            "big",
            {"characters": 40_000_000},
            120.0,
            "is gone in a call of big: .*; it wrote a line of more than 32 MB",
        ),
    ],
)
async def test_a_server_that_breaks_fails_the_episode(
    tool: str, arguments: dict[str, Any], limit_s: float, said: str
) -> None:
    async with episode(tool_timeout_s=limit_s) as env:
        with pytest.raises(ServerFailure, match=said):
            await use(env, tool, **arguments)
    assert servers() == []


async def test_a_server_that_changes_its_tools_fails_the_episode() -> None:
    async with episode(tool_timeout_s=120.0) as env:
        await use(env, "vanish", name="total")
        with pytest.raises(ServerFailure, match="has changed its tools: total gone"):
            await use(env, "total", numbers=[1])
        assert env.counts["mcp/tools_changed"] == 1
    with pytest.raises(ServerFailure, match="has changed its tools: big gone"):
        async with episode(
            tool_timeout_s=120.0, changed={"variables": {**VARIABLES, "NOTES_WITHOUT": "big"}}
        ):
            pass
    assert servers() == []


async def test_over_http_every_episode_has_a_session_and_leaves_none(address: str) -> None:
    async with episode(address) as env, episode(address) as other:
        assert (await use(env, "total", numbers=[20, 22])).text == "42"
        assert (await use(other, "total", numbers=[1])).text == "1"
        said = await use(env, "refuse")
        assert said.status == "error"


async def test_a_shared_server_ends_when_it_was_idle_for_long_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(env_module, "_LINGER_S", 3.0)
    async with episode(shared=True):
        pids = servers()
    await asyncio.sleep(2.0)
    async with episode(shared=True):
        pass
    await asyncio.sleep(1.5)  # the first has left longer ago than servers are kept
    assert servers() == pids
    assert await none_is_left()


async def test_cancelled_while_a_shared_server_starts_an_episode_keeps_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(env_module, "_LINGER_S", 0.5)
    env_class, settings = notes(shared=True)
    starting = asyncio.ensure_future(env_class(**settings).start(ROW))
    for _ in range(1000):
        if servers():
            break
        await asyncio.sleep(0.01)
    assert servers()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await none_is_left()


async def none_is_left() -> bool:
    """Whether no server is left, soon, nor any task that ends one."""
    for _ in range(100):
        if not servers() and len(asyncio.all_tasks()) == 1:
            return True
        await asyncio.sleep(0.1)
    return False


async def test_a_shared_server_serves_all_and_is_started_again() -> None:
    async with episode(shared=True) as env, episode(shared=True) as other:
        assert (await use(env, "add", text="a")).text == "1 notes"
        assert (await use(other, "add", text="b")).text == "2 notes"
        assert len(servers()) == 1
        with pytest.raises(ServerFailure):
            await use(env, "die")
    async with episode(shared=True) as env:
        assert (await use(env, "add", text="a")).text == "1 notes"
        await use(env, "add", text="b")
        with pytest.raises(ServerFailure):
            await use(env, "die")
    assert servers() == []


async def test_an_episode_that_is_cancelled_leaves_no_server() -> None:
    started = asyncio.Event()

    async def play() -> None:
        async with episode() as env:
            started.set()
            await use(env, "hang", seconds=60.0)

    task = asyncio.ensure_future(play())
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert servers() == []


@pytest.mark.parametrize(
    ("where", "settings", "said"),
    [
        (
            "no_such_program --stdio",
            {},
            "MCP server 'no_such_program --stdio' does not start: FileNotFoundError",
        ),
        ("sh -c 'echo wrong key >&2; exit 3'", {}, "does not start: .*it wrote: wrong key"),
        (
            "sleep 60",
            {"start_s": 1.0},
            r"'sleep 60' did not tell its tools within 1 s \(the setting start_s\)",
        ),
        ("http://127.0.0.1:9/mcp", {}, "MCP server 'http://127.0.0.1:9/mcp' does not start: .*"),
        (COMMAND, {"only": ["totals"]}, "has no tool totals; it has: add, total"),
        (
            "http://127.0.0.1:9/mcp",
            {"headers": {"Authorization": "Bearer $NO_SUCH_KEY"}},
            "the header Authorization .* is read from the variable NO_SUCH_KEY, which is not set",
        ),
        (
            "http://127.0.0.1:9/mcp",
            {"headers": {"Authorization": "Basic $HOME:$NO_SUCH_KEY"}},
            "the variable NO_SUCH_KEY, which is not set",
        ),
        (COMMAND, {"variables": {"GH_PAT": "$NO_SUCH_KEY"}}, "the variable GH_PAT .*NO_SUCH_KEY, which"),
        (
            f"{COMMAND} --api-key $NO_SUCH_KEY",
            {},
            "^what follows '--api-key' is read from the variable NO_SUCH_KEY, which is not set: export",
        ),
        (
            "http://127.0.0.1:9/mcp?key=hidden",
            {},
            r"server 'http://127.0.0.1:9/mcp\?key=\*\*\*' does not start",
        ),
        ("no_such_program --api-key hidden", {}, r"server 'no_such_program --api-key \*\*\*' does not"),
        ("sh 'open", {}, "cannot be read: No closing quotation"),
        (COMMAND, {"share": True}, "unknown setting 'share'.*did you mean 'shared'"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(
    where: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(EnvError, match=said) as refused:
        notes(where, **settings)
    assert "hidden" not in str(refused.value)
    assert servers() == []


async def test_variables_are_read_when_a_server_is_asked_and_when_it_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GONE", "total")
    monkeypatch.setenv("AT_NIGHT", "k$x")
    written = EnvSettings(
        name=f"mcp:{COMMAND}",
        settings={"variables": {**VARIABLES, "NOTES_WITHOUT": "$GONE", "A_KEY": "$AT_NIGHT"}},
    )
    loaded = class_of(written.name, written.settings, written)
    assert "total" not in [spec.name for spec in loaded.tool_specs()]
    env = Task(written.name, loaded, loaded.check_settings(written.settings), 1.0, (ROW,)).make(None, None)
    await env.start(ROW)  # with the same tools: it was started with the same variables
    await env.aclose()
    for variable in ("GONE", "AT_NIGHT"):
        assert os.environ[variable] not in repr((vars(loaded)["server"], env.variables))
    server = Server("serve --api-key $AT_NIGHT --about=$GONE")
    assert server.arguments() == ["serve", "--api-key", "k$x", "--about=$GONE"]


async def test_a_served_environment_has_what_its_variables_hold(tmp_path: Path) -> None:
    (tmp_path / "keyed.py").write_text(KEYED)
    (tmp_path / "keyed.toml").write_text(
        f'[env]\nname = "{tmp_path}/keyed.py"\n[env.settings]\napi_key = "$SEARCH_KEY"\n'
    )
    where = shlex.join([sys.executable, "-m", "agentrl.cli.main", "serve", str(tmp_path / "keyed.toml")])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs"), OURS["PYTHONPATH"]])
    async with episode(where, variables={"PYTHONPATH": paths, "SEARCH_KEY": "the key"}) as env:
        assert (await use(env, "key")).text == "the key"


async def test_the_example_goes_through_three_tool_calls() -> None:
    script = [f"<code>\n{code}\n</code>" for code in ("a = 6 * 7; print(a)", "print(a + 1)", "print(2 * a)")]
    env_class, settings = notes(EXAMPLE, variables=OURS)
    seen = await run_episode(
        lambda: env_class(**settings),
        ScriptedPolicy([*script, "It is \\boxed{84}.<|end|>"], tokenizer=ByteTokenizer()),
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row={"problem": "What is 6 * 7 * 2?", "answer": "84"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )
    assert seen.failure is None
    assert (seen.reward, len(seen.turns), len(seen.segments)) == (1.0, 4, 1)
    text = ByteTokenizer().decode(seen.segments[0].token_ids)
    assert [text.count(result) > 0 for result in ("42\n", "43\n", "84\n")] == [True] * 3


def test_the_example_is_trained_for_two_steps(tmp_path: Path) -> None:
    needed("torch", "the learner needs torch (pip install agentrl[train])")
    variables = f"shared = true\nvariables = {{PYTHONPATH = {json.dumps(OURS['PYTHONPATH'])}}}"
    steps = two_steps(tmp_path, f"mcp:{EXAMPLE}", variables)
    assert sum(row["tool_calls_mean"] for row in steps) > 0


async def test_check_tries_a_server() -> None:
    env_class, settings = notes(only=["add", "total"], shared=True)
    findings = await check_env(env_class, [ROW], settings=settings)
    assert [one.check for one in findings if one.ok is False] == []
    assert {one.check: one.detail for one in findings}["tools can be described"] == "add, total"


async def test_an_environment_is_served_and_played_as_a_server() -> None:
    agentrl_command = [
        sys.executable,
        "-m",
        "agentrl.cli.main",
        "serve",
        str(ROOT / "examples" / "word_count.py"),
    ]
    where = shlex.join([*agentrl_command, "--row", "1", "--serve.submit=true"])
    ours = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs"), OURS["PYTHONPATH"]])}
    async with episode(where, variables=ours) as env:
        assert [spec.name for spec in type(env).tool_specs()] == ["letters", "submit"]
        assert (await use(env, "letters", word="hello")).text == "5"
        assert (
            await use(env, "submit", answer="\\boxed{3}")
        ).text == '{"reward": 1.0, "parts": {"reward": 1.0}}'
        assert (await use(env, "letters", word="hello")).text == "ToolError: the episode is over"
    beyond = shlex.join([*agentrl_command, "--row", "2"])
    with pytest.raises(EnvError, match="does not start: .*--row 2: there are 2 rows, counted from 0"):
        notes(beyond, variables=ours)


async def test_another_interpreter_has_the_package() -> None:
    how = Isolation(python=sys.executable)
    env_class = isolated(f"mcp:{COMMAND}", {"variables": VARIABLES}, how)
    seen = await run_episode(
        lambda: env_class(variables=VARIABLES),
        ScriptedPolicy(
            [tool_call("add", text="a"), tool_call("noise"), f"\\boxed{{42}}{END}"], tokenizer=Tokenizer()
        ),
        make_renderer(Tokenizer(), "hermes"),
        row=ROW,
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )
    assert (seen.failure, seen.reward, seen.counts["mcp/unreadable"]) == (None, 1.0, 2)
    end_hosts()
    assert servers() == []
