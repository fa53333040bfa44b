"""Agents of other people's libraries, in processes of their own: unchanged, token-exact, and trained.

They need those libraries in an environment of their own: `make test-agents` makes it. AGENTRL_AGENTS_PYTHON names
its interpreter; without one, these tests are skipped, or fail where AGENTRL_REQUIRE_ADAPTERS is set.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs.program import program_env
from tests.agents.training import two_steps
from tests.needed import missing, needed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
PYTHON = os.environ.get("AGENTRL_AGENTS_PYTHON", str(Path(__file__).parents[2] / ".venv-agents/bin/python"))


@cache
def lacks(module: str) -> str:
    """Why the environment of the agents does not have a module; empty where it has it."""
    if not Path(PYTHON).exists():
        return f"no {PYTHON}: run `make test-agents`, or set AGENTRL_AGENTS_PYTHON"
    alone = {**os.environ, "PYTHONPATH": ""}  # what is there for this process has versions of its own
    done = subprocess.run(
        [PYTHON, "-c", f"import {module}"], capture_output=True, text=True, timeout=120, env=alone
    )
    return "" if done.returncode == 0 else f"{PYTHON} cannot import {module}: {done.stderr[-200:]}"


def command(name: str) -> str:
    """How an example is started; skips the test where its library is not there."""
    if name.endswith(".sh"):
        if shutil.which("curl") is None:
            missing("no curl on this machine")
        return shlex.join(["sh", str(EXAMPLES / name)])
    module = {
        "smolagents_agent.py": "smolagents",
        "openai_agents_agent.py": "agents",
        "langgraph_agent.py": "langgraph",
    }[name]
    if why := lacks(module):
        missing(why)
    return shlex.join([PYTHON, str(EXAMPLES / name)])


def code(text: str, said: str = "") -> str:
    return f"{said}<code>\n{text}\n</code>"


CALLS = [code("print(6 * 7)"), code("print(42 + 1)", "Now one more.\n"), code("print(43 * 2)")]
PROGRAMS = {
    # smolagents takes the code of a message itself, and ends when it calls final_answer.
    "smolagents_agent.py": [*CALLS, code("final_answer(86)")],
    "openai_agents_agent.py": [*CALLS, "86<|end|>"],
    "langgraph_agent.py": [*CALLS, "86<|end|>"],
    "curl_agent.sh": [*CALLS, "86<|end|>"],
}


async def play(started: str, script: Sequence[str]) -> Episode:
    return await run_episode(
        program_env(started),
        ScriptedPolicy(list(script), tokenizer=ByteTokenizer()),
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row={"problem": "Work it out.", "answer": "86"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_goes_through_three_tool_calls_in_one_segment(name: str) -> None:
    episode = await play(command(name), PROGRAMS[name])
    assert episode.failure is None
    assert (episode.reward, episode.answer, len(episode.turns)) == (1.0, "86", 4)
    # Every turn after the first goes on from exact tokens: the messages are the script's, whole.
    assert (len(episode.segments), episode.counts["gateway/extended"]) == (1, 3)
    (segment,) = episode.segments
    said = bytes(t for t, mask in zip(segment.token_ids, segment.loss_mask, strict=True) if mask and t < 256)
    assert said.decode() == "".join(text.removesuffix("<|end|>") for text in PROGRAMS[name])
    text = ByteTokenizer().decode(segment.token_ids)
    assert [text.count(result) > 0 for result in ("42\n", "43\n", "86\n")] == [True] * 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_trained_for_two_steps(name: str, tmp_path: Path) -> None:
    needed("torch", "the learner needs torch (pip install agentrl[train])")
    steps = two_steps(tmp_path, f"program:{command(name)}")
    assert all(row["counts"]["gateway/requests"] >= 3 for row in steps)
