"""Shapers and weights of the package: worked by hand, what they promise, and that memory survives a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.shapers import call_reward
from agentrl.config import registry
from agentrl.episode import Episode
from tests.agentrl import conftest as parts
from tests.agentrl.algorithms.test_estimators import CALL, make_episode


def with_calls(calls: int, reward: float = 1.0, **more: Any) -> Episode:
    episode = make_episode((2,), reward=reward, **more)
    return replace(episode, turns=(replace(episode.turns[0], tool_calls=(CALL,) * calls),))


def test_the_reward_of_calls() -> None:
    # Nothing needed: 1, cos(pi / 3), cos(2 pi / 5), cos(3 pi / 7). Two needed: 1, sin(3 pi / 5), sin(4 pi / 6).
    assert [call_reward(calls, 0, 1.0) for calls in range(4)] == pytest.approx([1.0, 0.5, 0.309017, 0.222521])
    assert [call_reward(calls, 2, 1.0) for calls in (2, 3, 4)] == pytest.approx([1.0, 0.951057, 0.866025])
    with pytest.raises(ValueError, match="1 calls are fewer than the fewest, 2"):
        call_reward(1, 2, 1.0)


def test_otc() -> None:
    part = registry.make("shaper", "otc", {})
    rows = [with_calls(2), with_calls(3), with_calls(3, reward=0.0), with_calls(0)]
    # Before anything is known each is its own fewest; a wrong answer stays wrong.
    assert [part(row) for row in rows] == [1.0, 1.0, 0.0, 1.0]
    part.fold(rows[0])
    part.fold(rows[2])  # wrong: nothing is learned from its three calls
    assert [part(row) for row in rows] == pytest.approx([1.0, 0.951057, 0.0, 1.0])
    # The trap: with the fewest of before, 2, an answer without a call has sin 0 = 0.
    part.fold(rows[3])
    assert part(rows[3]) == 1.0
    assert part(with_calls(1)) == pytest.approx(0.5)
    assert part(with_calls(1, prompt_id="other")) == 1.0


def test_the_fewest_calls_of_otc_can_rise_again() -> None:
    part = registry.make("shaper", "otc", {"memory": 2})
    for calls in (0, 2, 2):
        part.fold(with_calls(calls))
    assert part(with_calls(2)) == 1.0


@given(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=5), st.floats(0.51, 1.0))
def test_a_right_answer_stays_above_a_wrong_one(calls: int, before: list[int], reward: float) -> None:
    part = registry.make("shaper", "otc", {})
    for count in before:
        part.fold(with_calls(count))
    shaped = part(with_calls(calls, reward=reward))
    assert 0.0 < shaped <= reward


def test_the_memory_of_otc_survives_json() -> None:
    part, other = registry.make("shaper", "otc", {}), registry.make("shaper", "otc", {})
    part.fold(with_calls(2))
    other.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert other(with_calls(3)) == pytest.approx(0.951057)


def test_soft_length() -> None:
    part = registry.make("shaper", "soft_length", {"limit": 100, "margin": 20})
    right = [part(make_episode((tokens,))) for tokens in (80, 90, 100, 120)]
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert part(make_episode((100,), reward=0.25)) == 0.0
    # Rewards -1 and 1, as in the paper: a penalty of 1 at the limit.
    assert part(make_episode((100,), reward_range=(-1.0, 1.0))) == pytest.approx(0.0)


def test_gaussian_weights() -> None:
    part = registry.make("sampler", "gaussian", {})
    values = np.array([0.0, 0.1, 0.25, 0.5, 1.0])
    # exp(-.25 / .245) = .360448, exp(-.16 / .245) = .520450, exp(-.0625 / .245) = .774837; and .02.
    expected = [0.380448, 0.540450, 0.794837, 1.02, 0.380448]
    assert part(values, np.ones(5)).tolist() == pytest.approx(expected, abs=2e-6)


async def test_what_a_shaper_remembers_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counting.py").write_text(COUNTING)
    flags = ("--shaper.kind=counting.py:Counting", "--checkpoint.every=1", "--run.deterministic=true")
    for steps in (1, 2):
        run = await parts.make_loop(tmp_path / "run", (*flags, f"--run.steps={steps}"))
        await run.play()
        await run.close()
    # 8 episodes of the first attempt were known to the second when its first was folded.
    counts = [int(line) for line in (tmp_path / "counts.txt").read_text().split()]
    assert counts == list(range(1, 17))


async def test_an_estimator_remembers_what_episodes_counted_for(
    new_loop: Callable[..., Any], tmp_path: Path
) -> None:
    # Otherwise what it predicts is on another scale than the scores that it is subtracted from.
    (tmp_path / "halves.py").write_text(HALVES)
    flags = [f"--shaper.kind={tmp_path}/halves.py:Half", f"--estimator.kind={tmp_path}/halves.py:Seen"]
    run = await new_loop("--run.steps=1", *flags)
    await run.orchestrator.run()
    state = run.orchestrator.credit.state_dict()
    assert sorted(state["estimator"]["folded"]) == sorted(state["estimator"]["asked"])
    assert set(state["estimator"]["folded"]) == {0.0, 0.5}
    assert set(state["shaper"]["folded"]) == {0.0, 1.0}
    await run.close()


HALVES = """
class Seen:
    def __init__(self):
        self.asked, self.folded = [], []

    def __call__(self, batch):
        self.asked = batch.scores.tolist()
        return batch.scores

    def fold(self, episode):
        self.folded.append(episode.score)

    def state_dict(self):
        return {"asked": self.asked, "folded": self.folded}

    def load_state_dict(self, state):
        self.asked, self.folded = state["asked"], state["folded"]


class Half(Seen):
    def __call__(self, episode):
        return episode.reward / 2
"""

COUNTING = '''
class Counting:
    """Counts folded episodes, and writes the count down."""

    folded = 0

    def __call__(self, episode):
        return episode.reward

    def fold(self, episode):
        self.folded += 1
        with open("counts.txt", "a") as file:
            file.write(f"{self.folded}\\n")

    def state_dict(self):
        return {"folded": self.folded}

    def load_state_dict(self, state):
        self.folded = state["folded"]
'''
