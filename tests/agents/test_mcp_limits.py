"""Limits on the memory and the CPU time of MCP servers: a real server that eats both.

They need the package: `pip install 'agentrl[mcp]'`, or `make test-agents`.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("mcp", "no package mcp (pip install 'agentrl[mcp]')")

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.scripted import ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import ToolCall, load_env
from agentrl_envs.errors import ServerFailure
from agentrl_envs.mcp import limits
from agentrl_envs.messages import Transcript
from agentrl_envs.stand_in import StandIn
from tests.adapters.playing import END, Tokenizer, tool_call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROW = {"problem": "What is 19 + 23?", "answer": "42"}
HUNGRY = shlex.join([sys.executable, str(Path(__file__).parent / "servers" / "hungry.py")])


# Where no control group may be made there is one way less.
@pytest.fixture(params=["looks", *(["control group"] if limits._groups() is not None else [])])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which the limits of a server are held."""
    if request.param == "looks":
        monkeypatch.setattr(limits, "_groups", lambda: None)
    return request.param


async def played(script: list[str], **settings: Any) -> Episode:
    env_class = load_env(f"mcp:{HUNGRY}", settings)
    return await run_episode(
        lambda: env_class(**settings),
        ScriptedPolicy(script, tokenizer=Tokenizer()),
        make_renderer(Tokenizer(), "hermes"),
        row=ROW,
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )


@pytest.mark.parametrize(
    ("name", "much", "settings", "words"),
    [
        ("memory", 300, {"memory_mb": 150}, "it used more than its memory_mb = 150"),
        ("child_memory", 300, {"memory_mb": 150}, "it used more than its memory_mb = 150"),
        ("cpu", 60, {"cpu_s": 1.0}, "it used more than its cpu_s = 1"),
        ("child_cpu", 60, {"cpu_s": 1.0}, "it used more than its cpu_s = 1"),
    ],
)
async def test_a_server_over_its_limit_is_named_counted_and_no_reward(
    held: str, name: str, much: int, settings: Any, words: str
) -> None:
    """Also where the model says the right answer all the same."""
    script = [tool_call(name, much=much), f"\\boxed{{42}}{END}"]
    episode = await played(script, tool_timeout_s=60.0, **settings)
    assert episode.failure is not None
    assert (episode.failure.error, episode.reward) == ("ServerFailure", None)
    assert re.search(words, episode.failure.message), episode.failure.message


async def test_what_a_server_started_counts_between_calls_too(held: str) -> None:
    env = load_env(f"mcp:{HUNGRY}", {"memory_mb": 150})(memory_mb=150)
    model = StandIn()
    env.attach(model)
    try:
        await env.start(ROW)
        (said,) = await env.call_tools([ToolCall("1", "child_memory_later", {"much": 300})])
        assert said.text == "started"
        while not env._session.over:  # noqa: ASYNC110 - the limit of the test is the limit of this
            await asyncio.sleep(0.05)
        with pytest.raises(ServerFailure, match=r"was killed; it used more than its memory_mb = 150"):
            await env.score(ROW, "\\boxed{42}", Transcript())
    finally:
        await env.aclose()


async def test_a_server_within_its_limits_is_let_be(held: str) -> None:
    script = [tool_call("memory", much=50), tool_call("child_cpu", much=0), f"\\boxed{{42}}{END}"]
    episode = await played(script[:1] + script[2:], memory_mb=300, cpu_s=30.0)
    assert (episode.failure, episode.reward) == (None, 1.0)
