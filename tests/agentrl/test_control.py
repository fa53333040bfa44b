"""A controller changes numbers between steps; resumed, the run goes on as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.algorithms.advantage import CreditBatch
from agentrl.algorithms.controllers import EffectiveShare
from agentrl.config.loading import load_settings
from agentrl.errors import ConfigError, LearnerError, PartError
from agentrl.storage.metrics import read_metrics
from agentrl.storage.steps import read_credit
from agentrl.training.control import Control
from tests.agentrl import conftest as parts

REMEMBERS = """
class Remembers:
    controls = ("loss.entropy_coefficient", "learner.learning_rate")

    def __init__(self):
        self.sum = 0.0

    def __call__(self, metrics, batch, values):
        assert len(batch.episodes) == 8 and metrics["kind"] == "step"
        self.sum = 0.5 * self.sum + metrics["reward_mean"]
        return {"loss.entropy_coefficient": self.sum, "learner.learning_rate": values["learner.learning_rate"] / 2}

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]
"""


class Controlled(parts.ArithmeticLearner):
    """Keeps what it is told of numbers in force, by version; dies where it is asked to."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []
        self.dies_at = dies_at

    async def step(self, *arguments: Any, controls: dict[str, float], **more: Any) -> dict[str, Any]:
        if len(self.seen) == self.dies_at:
            raise LearnerError("killed here")
        self.seen.append(dict(controls))
        return await super().step(*arguments, **more)


async def play(path: Path, *flags: str, dies_at: int = -1) -> tuple[Any, Controlled]:
    learner = Controlled(dies_at)
    every = ("--run.deterministic=true", "--run.steps=5", "--checkpoint.every=100")
    run = await parts.make_loop(path, (*every, *flags), learner=learner)
    try:
        await run.play()
    except LearnerError:
        pass
    finally:
        await run.close()
    return run.orchestrator, learner


async def test_numbers_in_force_survive_a_kill(tmp_path: Path) -> None:
    # Fails when `Control` is left out of the light state, or a step is learned again with the newest numbers.
    (tmp_path / "remembers.py").write_text(REMEMBERS)
    flags = (f"--controller.kind={tmp_path / 'remembers.py'}:Remembers", "--learner.learning_rate=0.8")
    whole, learner = await play(tmp_path / "whole", *flags)
    assert [seen["learner.learning_rate"] for seen in learner.seen] == [0.8, 0.4, 0.2, 0.1, 0.05]
    assert learner.seen[0]["loss.entropy_coefficient"] == 0.0
    assert len({seen["loss.entropy_coefficient"] for seen in learner.seen}) == 5
    await play(tmp_path / "killed", *flags, dies_at=3)
    again, resumed = await play(tmp_path / "killed", *flags)
    assert resumed.seen == learner.seen  # three steps learned again, two for the first time
    assert resumed.digest == learner.digest
    assert again.control.state_dict() == whole.control.state_dict()
    logged = [row["controlled"] for row in read_credit(tmp_path / "killed")]
    assert logged == learner.seen
    rows = [row for row in read_metrics(tmp_path / "killed" / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["controlled"] for row in rows] == learner.seen


async def test_a_setting_that_is_changed_on_resume_begins_there(tmp_path: Path) -> None:
    (tmp_path / "remembers.py").write_text(REMEMBERS)
    kind = f"--controller.kind={tmp_path / 'remembers.py'}:Remembers"
    await play(tmp_path / "run", kind, "--learner.learning_rate=0.8", dies_at=3)
    _, resumed = await play(tmp_path / "run", kind, "--learner.learning_rate=0.02")
    rates = [seen["learner.learning_rate"] for seen in resumed.seen]
    assert rates == [0.8, 0.4, 0.2, 0.02, 0.01]


def control(tmp_path: Path, code: str, *flags: str) -> Control:
    (tmp_path / "part.py").write_text(code)
    return Control(load_settings(None, [f"--controller.kind={tmp_path / 'part.py'}:Part", *flags]))


def part(controls: str, gives: str = "{}") -> str:
    return (
        f"class Part:\n    controls = {controls}\n    def __call__(self, *given):\n        return {gives}\n"
    )


@pytest.mark.parametrize(
    ("controls", "flags", "message"),
    [
        ("()", (), r"needs an attribute `controls` with names among learner.learning_rate, .*; it has \(\)"),
        ("('stream.batch',)", (), r"it has \['stream.batch'\]"),
        ("('stream.staleness',)", ("--stream.stale_policy=wait",), "a soft bound then"),
        ("('stream.staleness',)", ("--run.deterministic=true",), "which is 0 where run.deterministic"),
        ("('loss.kl_coefficient',)", (), "keeps no reference weights: begin with a value above 0"),
    ],
)
def test_what_cannot_be_controlled_is_refused_at_the_start(
    tmp_path: Path, controls: str, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        control(tmp_path, part(controls), *flags)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("{'learner.learning_rate': -1.0}", r"gave learner.learning_rate = -1.0: .*at least 0"),
        ("{'learner.learning_rate': float('nan')}", "must be a finite number"),
        ("{'loss.entropy_coefficient': 0.1}", "it controls learner.learning_rate"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_a_controller_gives_is_checked(tmp_path: Path, gives: str, message: str) -> None:
    steering = control(tmp_path, part("('learner.learning_rate',)", gives))
    with pytest.raises(PartError, match=message):
        steering.act({}, CreditBatch(scores=np.zeros(1)))


def test_staleness_is_not_steered_below_what_publishing_seldom_needs(tmp_path: Path) -> None:
    # Published every 3 steps, episodes begin up to 2 versions old: with less no batch could fill.
    code = part('("stream.staleness",)', '{"stream.staleness": 0}')
    steered = control(tmp_path, code, "--stream.staleness=4", "--learner.publish_every=3")
    steered.act({}, CreditBatch(scores=np.zeros(1)))
    assert steered.staleness(4) == 2
    # Nor after a resume that publishes more seldom than the run did before.
    before = control(tmp_path, code, "--stream.staleness=4")
    before.act({}, CreditBatch(scores=np.zeros(1)))
    assert before.staleness(4) == 0
    resumed = control(tmp_path, code, "--stream.staleness=4", "--learner.publish_every=3")
    resumed.load_state_dict(before.state_dict())
    assert resumed.staleness(4) == 2


def test_staleness_falls_with_the_effective_share_and_rises_to_the_setting_again() -> None:
    settings = load_settings(None, ["--controller.kind=effective_share", "--stream.staleness=2"])
    steering, batch = Control(settings), CreditBatch(scores=np.zeros(1))
    found = []
    for share in (0.9, 0.4, 0.4, 0.4, 0.5, 0.6, 0.6, None):
        steering.act({"effective_share": share}, batch)
        found.append(steering.staleness(7))
    assert found == [2, 1, 0, 0, 1, 2, 2, 2]
    assert EffectiveShare.controls == ("stream.staleness",)
    assert steering.learner_options(steering.values) == {}
