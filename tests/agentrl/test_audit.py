"""The bias audit: silent where all that is dispatched is learned from, loud for a first-finisher rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agentrl.episode import Episode, Segment, StopReason
from agentrl.training.audit import BiasAudit


def episode(index: int, tokens: int) -> Episode:
    return Episode(
        episode_id=f"t{index}",
        dispatch_index=index,
        prompt_id="p",
        segments=(Segment([1] * tokens, b"\x01" * tokens, [-1.0] * tokens, [0] * tokens),),
        turns=(),
        reward=1.0,
        stop_reason=StopReason.ANSWERED,
        start_version=0,
        temperature=1.0,
        seconds=tokens / 10,
    )


def lengths(count: int) -> list[int]:
    rng = np.random.default_rng(0)
    return [int(value) for value in np.where(rng.random(count) < 0.2, 200, rng.integers(5, 20, count))]


def test_learning_from_everything_is_no_bias() -> None:
    audit = BiasAudit()
    for index, tokens in enumerate(lengths(400)):
        one = episode(index, tokens)
        audit.dispatched(one, 0.5)
        audit.learned(one)
    report = audit.report(frontier=400)
    assert report["learned_share"] == 1.0
    assert report["bias_tokens"] == report["bias_seconds"] == report["bias_z"] == 0.0


def test_a_first_finisher_buffer_is_seen() -> None:
    # Of each 48 dispatched, the first 24 to finish are learned from, as in the paper's figure 5b.
    audit = BiasAudit()
    sizes = lengths(480)
    for start in range(0, 480, 48):
        batch = [episode(start + place, tokens) for place, tokens in enumerate(sizes[start : start + 48])]
        for one in batch:
            audit.dispatched(one, 0.5)
        for one in sorted(batch, key=lambda e: e.seconds)[:24]:
            audit.learned(one)
    report = audit.report(frontier=480)
    assert report["learned_share"] == 0.5
    assert report["bias_tokens"] < -0.5
    assert report["bias_z"] > 4.0


def test_episodes_above_the_frontier_are_not_compared() -> None:
    audit = BiasAudit()
    for index in range(64):
        one = episode(index, 10)
        audit.dispatched(one, 0.5)
        if index < 40:
            audit.learned(one)
    assert audit.report(frontier=40)["learned_share"] == 1.0
    assert audit.report(frontier=10) == {}


def test_means_are_worked_by_hand() -> None:
    # 32 episodes of 10 tokens and 32 of 30, the latter left out: learned mean 10, dispatched mean 20.
    audit = BiasAudit()
    for index in range(64):
        one = replace(episode(index, 10 if index % 2 else 30))
        audit.dispatched(one, 0.5)
        if index % 2:
            audit.learned(one)
    assert audit.report(frontier=64)["bias_tokens"] == -0.5
