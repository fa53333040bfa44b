"""Fresh copies: what waits for what, and whose baseline is what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.loading import load_settings
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.episode import Episode
from agentrl.errors import ConfigError
from agentrl.storage.ledger import Entry, State
from agentrl.storage.metrics import read_metrics
from agentrl.training.copies import FreshCopies
from agentrl.training.credit import Credit, make_estimator


class Pool:
    """Two prompts of which the second was seen."""

    def is_fresh(self, prompt: int) -> bool:
        return prompt == 0


def episode(index: int, group: int | None, score: float = 1.0) -> Any:
    return SimpleNamespace(episode_id=f"t{index}", dispatch_index=index, group=group, score=score)


def sets() -> tuple[FreshCopies, list[Sequence[Episode]]]:
    frozen: list[Sequence[Episode]] = []
    return FreshCopies(3, Pool(), frozen.append), frozen  # type: ignore[arg-type]


def test_copies_are_released_when_the_last_has_ended_or_failed() -> None:
    it, frozen = sets()
    assert it.open(0, room=9) == 0
    assert [it.next_member(lambda prompt: True) for _ in range(3)] == [(0, 0), (0, 0), None]
    first, last = episode(0, 0), episode(2, 0)
    assert it.add(last) == []
    assert it.failed(0) == []
    assert list(it.incomplete) == [[last]]
    assert it.add(first) == [(first,), (last,)]
    assert frozen == [[first, last]]
    assert not list(it.incomplete)


def test_a_prompt_that_was_seen_or_has_no_room_is_played_once() -> None:
    it, _ = sets()
    assert it.open(1, room=9) is None
    assert it.open(0, room=1) is None
    assert it.open(0, room=2) == 0
    assert it.count_of(0) == 2
    other = episode(5, None)
    assert it.add(other) == [(other,)]


def test_sets_of_an_earlier_attempt_go_on() -> None:
    it, _ = sets()
    entries = [
        Entry("t0", "p", State.FINISHED, 1, group=4, copies=3),
        Entry("t1", "p", State.PENDING, 1, group=4, copies=3),
        Entry("t2", "q", State.LEARNED, 1, group=3, copies=2),
        Entry("t3", "q", State.FINISHED, 1, group=3, copies=2),
    ]
    it.restore(entries, {"p": 0, "q": 1})
    # One copy of set 4 was not started yet; set 3 waited for nobody, and what is left of it does not either.
    assert it.next_member(lambda prompt: True) == (4, 0)
    assert it.next_member(lambda prompt: True) is None
    one = episode(3, 3)
    assert it.add(one) == [(one,)]
    assert it.add(episode(0, 4)) == []
    assert it.open(0, room=9) == 5


def test_each_copy_has_the_mean_of_the_others_as_its_baseline() -> None:
    settings = load_settings(None, ["--sampler.fresh_copies=4"])
    credit = Credit(settings, Any, make_estimator(settings.estimator))  # type: ignore[arg-type]
    credit.freeze([episode(number, 0, score) for number, score in enumerate((1.0, 0.0, 0.0, 1.0))])
    # (2 - 1) / 3 and (2 - 0) / 3, each the mean of three scores.
    frozen = credit.state_dict()["frozen"]
    assert frozen == {"t0": (1 / 3, 3), "t1": (2 / 3, 3), "t2": (2 / 3, 3), "t3": (1 / 3, 3)}
    credit.freeze([episode(9, 1, 1.0)])  # alone: it has the prompt's value, like any other
    assert "t9" not in credit.state_dict()["frozen"]


def test_unseen_prompts_are_weighed_by_the_episode() -> None:
    tracker = ValueTracker(2, TrackerSettings())
    tracker.initialise(0, [1.0, 0.0])
    plain = PromptSampler(tracker, SamplerSettings(), seed=0).probabilities()
    # Both at value 1/2: one draw of prompt 1 starts four episodes, so it is drawn a quarter as often.
    assert plain == pytest.approx([0.5, 0.5])
    copies = PromptSampler(tracker, SamplerSettings(fresh_copies=4), seed=0).probabilities()
    assert copies == pytest.approx([0.8, 0.2])


async def test_a_run_with_fresh_copies_learns_from_all_of_them(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--sampler.fresh_copies=4", "--tracker.kind=trend", "--run.deterministic=true")
    given: list[np.ndarray] = []
    assign = run.orchestrator.credit.assign

    def spy(batch: Sequence[Episode]) -> Any:
        found = assign(batch)
        given.append(found.baselines)
        sets: dict[int | None, list[Episode]] = {}
        for one in batch:
            sets.setdefault(one.group, []).append(one)
        for one, baseline, count in zip(batch, found.baselines, found.counts, strict=True):
            others = [other.score for other in sets[one.group] if other is not one]
            if one.group is not None and others:
                assert baseline == pytest.approx(np.mean(others))
                assert count == len(others)
        return found

    run.orchestrator.credit.assign = spy
    await run.orchestrator.run()
    # A batch of 8 is two sets of 4 while there are prompts that were never seen: 6 of 8 after the first.
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "step"]
    assert rows[0]["unseen_share"] == pytest.approx(1 - 2 / len(run.orchestrator.parts.pool))
    assert run.orchestrator.parts.ledger.summary() == {"learned": 32}
    assert len(given) == 4
    pool = run.orchestrator.parts.pool
    assert not pool.samplers[0].pending_prompts()
    assert pool.tracker.visits(range(len(pool))).sum() == 32
    assert len(pool.tracker.state_dict()["trends"]) == 5
    await run.close()


def test_copies_and_groups_are_refused_together() -> None:
    flags = ["--sampler.fresh_copies=4", "--estimator.kind=grpo", "--estimator.group_size=8"]
    with pytest.raises(ConfigError, match="played as a group"):
        load_settings(None, flags)
