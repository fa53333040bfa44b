"""`agentrl serve --openenv`: environments of ours, played by the real client of OpenEnv."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.needed import needed

needed("openenv", "make test-agents installs it")

from openenv import GenericEnvClient
from openenv.core.mcp_client import MCPToolClient

from agentrl.cli.main import main
from agentrl_envs import load_env
from tests.adapters.playing import END, play, shown, tool_call

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

GAME = '''
from agentrl_envs import Env, Finish, ToolError, tool


class Game(Env):
    """Guess the number."""

    max_turns = 4
    example_rows = ({"text": "at most 5", "answer": "3"}, {"text": "at most 9", "answer": "7"})

    def prompt(self, row):
        self.first = self.rng.randrange(100)
        return f"Guess it, {row['text']}."

    @tool
    def guess(self, number: int) -> str:
        "Guess."
        if number == 13:
            raise ToolError("thirteen is unlucky")
        if number == 666:
            raise ConnectionError("the oracle is gone")
        if number == 1000:
            raise Finish(reward=0.25, text="enough")
        return "low" if number < int(self.row_answer()) else "not low"

    def row_answer(self):
        return 3

    @tool
    def luck(self) -> int:
        "A number of this episode."
        return self.first

    def reply(self, message):
        return "Say a number." if message == "hm" else None

    def reward(self, row, answer):
        return answer == row["answer"]
'''


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Address of a server of the game."""
    (folder / "game.py").write_text(GAME)
    command = [sys.executable, "-m", "agentrl.cli.main", "serve", str(folder / "game.py")]
    process = subprocess.Popen(
        [*command, "--openenv", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait(60) is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("game")) as at:
        yield at


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "call_tool", "tool_name": name, "arguments": arguments}


async def test_one_connection_plays_many_episodes(url: str) -> None:
    async with GenericEnvClient(base_url=url) as env:
        for seed, answer in ((0, "3"), (1, "7"), (2, "3")):
            told = await env.reset(seed=seed)
            assert told.observation["prompt"] == f"Guess it, at most {5 if answer == '3' else 9}."
            step = await env.step(call("guess", number=2))
            assert (step.observation["result"], step.reward, step.done) == ("low", None, False)
            step = await env.step(call("submit", answer="hm"))
            assert (step.observation["result"], step.done) == ("Say a number.", False)
            assert (await env.state())["step_count"] == 2
            step = await env.step(call("submit", answer=answer))
            assert (step.reward, step.done) == (1.0, True)
            with pytest.raises(Exception, match="the episode is over: send a reset"):
                await env.step(call("submit", answer=answer))


async def test_a_seed_is_the_episodes_random_stream(url: str) -> None:
    async with GenericEnvClient(base_url=url) as env:
        luck = []
        for seed in (5, 5, 6):
            await env.reset(seed=seed)
            luck.append((await env.step(call("luck"))).observation["result"])
    assert luck[0] == luck[1] != luck[2]


async def test_tools_are_listed_and_their_errors_told(url: str) -> None:
    async with GenericEnvClient(base_url=url) as env:
        listed = (await env.step({"type": "list_tools"})).observation["tools"]
        assert [one["name"] for one in listed] == ["guess", "luck", "submit"]
        assert listed[0]["input_schema"]["properties"]["number"]["type"] == "integer"
        await env.reset()
        for number, said in ((13, "thirteen is unlucky"), ("x", "expected an integer")):
            step = await env.step(call("guess", number=number))
            assert said in step.observation["error"]["message"]
        step = await env.step(call("guess", number=1000))
        assert (step.observation["result"], step.reward, step.done) == ("enough", 0.25, True)
        await env.reset()
        ends = [(await env.step(call("guess", number=1))).done for _ in range(4)]
        assert ends == [False, False, False, True], "max_turns"


async def test_an_episode_that_breaks_has_no_reward_and_the_next_can_begin(url: str) -> None:
    async with GenericEnvClient(base_url=url) as env:
        await env.reset()
        with pytest.raises(Exception, match="the episode failed: .*the oracle is gone"):
            await env.step(call("guess", number=666))
        with pytest.raises(Exception, match="no episode has begun"):
            await env.step(call("guess", number=1))
        await env.reset()
        assert (await env.step(call("guess", number=1))).observation["result"] == "low"


async def test_what_cannot_be_read_is_said_in_one_sentence(url: str) -> None:
    sent = [
        ("{", "INVALID_JSON", "Invalid JSON"),
        ('{"type": "jump"}', "UNKNOWN_TYPE", "a message of type 'jump'; want reset, step, state or close"),
        ('{"type": "reset", "data": {"row": 2}}', "VALIDATION_ERROR", "row=2: there are 2 rows"),
        ('{"type": "reset", "data": {"seed": "x"}}', "VALIDATION_ERROR", "seed='x': want a whole number"),
        ('{"type": "reset"}', "", ""),
        ('{"type": "step", "data": {"by": 1}}', "VALIDATION_ERROR", 'want {"type": "call_tool"'),
        ('{"type": "step", "data": {"tool_name": "submit"}}', "VALIDATION_ERROR", "submit wants an answer"),
        ('{"type": "step", "data": {"tool_name": "no"}}', "", ""),
    ]
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws") as socket:
        for text, code, said in sent:
            await socket.send_str(text)
            answer = (await socket.receive_json())["data"]
            assert answer.get("code", "") == code, answer
            assert said in answer.get("message", "")
        await socket.send_bytes(b"\x00\xff")
        assert (await socket.receive_json())["data"]["code"] == "INVALID_JSON"


async def test_limits_of_the_server(tmp_path: Path) -> None:
    with served(tmp_path, "--serve.sessions=1", "--serve.idle_s=3") as url:
        async with GenericEnvClient(base_url=url) as first:
            await first.reset()
            second = GenericEnvClient(base_url=url)
            with pytest.raises(Exception, match=r"all 1 sessions are taken \(serve.sessions\)"):
                await second.reset()
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws") as socket:
            said = (await socket.receive_json(timeout=60))["data"]["message"]
            assert said == "the session said nothing for 3 s (serve.idle_s)"
    with pytest.raises(Exception, match="GenericEnvClient"), served(tmp_path) as url:
        async with MCPToolClient(base_url=url) as client:
            await client.reset()


async def test_ours_plays_ours(url: str) -> None:
    env = load_env(f"openenv:{url}")
    script = [tool_call("guess", number=2), tool_call("submit", answer="7")]
    episode = await play(env, {"row": 1}, script)
    assert (episode.failure, episode.reward, len(episode.turns)) == (None, 1.0, 2)
    assert "Guess it, at most 9." in shown(episode)
    broken = await play(env, {"row": 1}, [tool_call("guess", number=666), f"7{END}"])
    assert "the oracle is gone" in str(broken.failure)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--openenv", "8000"], "want HOST:PORT"),
        (["--openenv", "127.0.0.1:0", "--serve.submit=true"], "not with serve.openenv"),
        (["--openenv", "127.0.0.1:0", "--serve.address=127.0.0.1:0"], "are two servers"),
    ],
)
def test_settings_that_cannot_be(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "arithmetic", *options]) == 1
    assert said in capsys.readouterr().err
