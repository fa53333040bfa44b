"""Servers of the real OpenEnv, in processes of their own, played by a scripted engine over their protocol."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("openenv", "make test-agents installs it")

from agentrl.cli.main import main
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, play, shown, tool_call

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]
SERVER = Path(__file__).parent / "openenv_server.py"


@contextlib.contextmanager
def served(kind: str) -> Iterator[tuple[str, Any]]:
    """Address and process of a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), kind, str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.2)
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def counting() -> Iterator[str]:
    with served("counting") as (url, _):
        yield f"openenv:{url}"


async def test_an_episode_is_played_to_its_end(counting: str) -> None:
    env = load_env(counting)
    script = [tool_call("step", by=3), tool_call("step", by="4"), tool_call("step", by=1)]
    episode = await play(env, {"seed": 2, "prompt": "Count to ten."}, script)
    assert (episode.failure, len(episode.turns)) == (None, 3)
    assert episode.reward == pytest.approx(0.8)
    assert [turn.reward for turn in episode.turns] == pytest.approx([0.3, 0.4, 0.1])
    assert "Count to ten.\n\nat 2" in shown(episode)
    assert "Count up by some." in shown(episode)
    last = await play(lambda **given: env(rewards="last", **given), {"seed": 2}, script)
    assert last.reward == pytest.approx(0.1)


async def test_what_is_refused_or_fails_is_told(counting: str) -> None:
    script = [tool_call("step", by=13), tool_call("step", by="x"), tool_call("step", by=5), f"Enough.{END}"]
    episode = await play(load_env(counting), {"seed": 0}, script)
    assert (episode.failure, episode.reward) == (None, 0.5)
    assert "thirteen is unlucky" in shown(episode)
    assert "expected an integer, got 'x'" in shown(episode)


async def test_a_server_that_hangs_or_says_too_much_is_no_reward(counting: str) -> None:
    env = load_env(counting)
    slow = await play(lambda **given: env(tool_timeout_s=1, **given), {"seed": 0}, [tool_call("step", by=99)])
    huge = await play(env, {"seed": 0}, [tool_call("step", by=1000)])
    assert slow.failure is not None
    assert "did not answer within 0.9 s" in slow.failure.message
    assert huge.failure is not None
    assert "closed the connection" in huge.failure.message


async def test_tools_that_the_server_lists() -> None:
    needed("fastmcp", "make test-agents installs it")
    with served("tools") as (url, _):
        env = load_env(f"openenv:{url}", {"instructions": "Use the tool."})
        script = [tool_call("add", first=2, second=2), tool_call("add", first=-1, second=2), f"4{END}"]
        episode = await play(lambda **given: env(instructions="Use the tool.", **given), {"seed": 1}, script)
    assert episode.failure is None
    assert episode.turns[0].tool_calls[0].result == "4"
    assert "no negative numbers" in shown(episode)
    assert "Add two numbers." in shown(episode)


def test_two_tools_of_one_name_are_refused() -> None:
    needed("fastmcp", "make test-agents installs it")
    with (
        served("twins") as (url, _),
        pytest.raises(EnvError, match="has two tools that a model would call 'first_one'"),
    ):
        load_env(f"openenv:{url}")


async def test_one_place_is_said_to_be_taken_and_a_dead_server_is_named() -> None:
    with served("crowded") as (url, process):
        env = load_env(f"openenv:{url}")
        first = env()
        await first.prompt({"seed": 0})
        second = await play(env, {"seed": 0}, [f"Hm.{END}"])
        assert second.failure is not None
        assert "max_concurrent_envs" in second.failure.message
        await first.close()
        for _ in range(50):  # the server lets go of a place a moment after its connection ended
            third = await play(env, {"seed": 9}, [tool_call("step", by=1)])
            if third.failure is None:
                break
        assert third.reward == pytest.approx(0.1)
        process.kill()
        process.wait()
        dead = await play(env, {"seed": 0}, [f"Hm.{END}"])
        assert dead.failure is not None
        assert "no OpenEnv server at" in dead.failure.message


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("localhost:8000", {}, EnvNotFound, "want the address of a server"),
        ("http://127.0.0.1:9", {}, EnvNotFound, "no OpenEnv server answers at http://127.0.0.1:9/schema"),
        ("", {"reward": 1}, SettingsError, "did you mean 'rewards'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    name: str, settings: Any, kind: type[EnvError], said: str, counting: str
) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"openenv:{name}" if name else counting, settings)


def test_check(counting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", counting]) == 0, capsys.readouterr().out
