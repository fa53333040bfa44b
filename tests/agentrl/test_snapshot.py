"""Checkpoints that are written while the learner goes on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import AgentRLError, Interrupted, LearnerLost, StallError
from agentrl.storage.checkpoint import checkpoint_folders, checkpoint_version
from agentrl.storage.metrics import read_metrics
from agentrl.storage.run_folder import RunFolder
from agentrl.training.resume import resume
from tests.agentrl import conftest as parts

FLAGS = ("--run.deterministic=true", "--checkpoint.every=1", "--checkpoint.keep=9")


def versions(run: parts.LoopRun) -> list[int]:
    return [checkpoint_version(folder) for folder in checkpoint_folders(run.folder.checkpoints)]


async def test_steps_go_on_while_a_checkpoint_is_written(
    new_loop: Callable[..., Any], tmp_path: Path
) -> None:
    steps: list[list[int]] = []

    async def look() -> None:
        steps.append(versions(run))

    learner = parts.ArithmeticLearner(seconds=look)
    learner.disk = lambda: len(learner.batches) >= 3
    run = await new_loop(*FLAGS, "--checkpoint.every=2", learner=learner)
    await run.orchestrator.run()
    # That of version 2 was not there when the third step began.
    assert steps[:3] == [[0], [0], [0]]
    assert versions(run) == [0, 2, 4]
    assert len(run.learner.batches) == 4
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "step"]
    assert [row["checkpoint_s"] > 0 for row in rows] == [False, False, True, False]
    await run.close()
    # And it is version 2, not what the learner was when it was written.
    for folder in run.folder.checkpoints.glob("step_000004"):
        folder.rename(tmp_path / "gone")
    again = await parts.make_loop(RunFolder.open(tmp_path / "run"), FLAGS)
    await resume(again.orchestrator)
    assert (again.learner.digest, again.learner.weight) == (run.learner.digest, run.learner.weight)
    await again.close()


async def test_there_is_one_at_a_time_and_a_stop_waits_for_it(new_loop: Callable[..., Any]) -> None:
    asked = 0

    def disk() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    async def stop() -> None:
        if len(run.learner.batches) == 2:
            run.orchestrator.stop()

    # This learner refuses a second one.
    run = await new_loop(*FLAGS, learner=parts.ArithmeticLearner(seconds=stop, disk=disk))
    with pytest.raises(Interrupted):
        await run.orchestrator.run()
    assert versions(run) == list(range(run.orchestrator.version + 1))
    assert not list(run.folder.checkpoints.glob(".*"))
    await run.close()


async def test_it_waits_where_the_settings_say_so(new_loop: Callable[..., Any]) -> None:
    seen: list[list[int]] = []

    async def look() -> None:
        seen.append(versions(run))

    learner = parts.ArithmeticLearner(seconds=look, disk=lambda: False)
    run = await new_loop(*FLAGS, "--checkpoint.asynchronous=false", learner=learner)
    await run.orchestrator.run()
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    await run.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"cannot write the checkpoint of version 1 to .*step_000001: .*No space left on device; what was",
        ),
        (LearnerLost("learner rank 1 died"), "^learner rank 1 died"),
    ],
)
async def test_a_write_that_fails_ends_the_run_and_the_checkpoint_before_it_is_intact(
    error: Exception, told: str, new_loop: Callable[..., Any], tmp_path: Path
) -> None:
    def disk() -> bool:
        raise error

    run = await new_loop(*FLAGS, "--run.steps=40", learner=parts.ArithmeticLearner(disk=disk))
    kind = LearnerLost if isinstance(error, LearnerLost) else AgentRLError
    with pytest.raises(kind, match=told):
        await run.orchestrator.run()
    assert versions(run) == [0]
    assert not list(run.folder.checkpoints.glob(".*"))
    await run.close()
    again = await parts.make_loop(RunFolder.open(tmp_path / "run"), (*FLAGS, "--run.steps=4"))
    await resume(again.orchestrator)
    await again.orchestrator.run()
    assert again.orchestrator.version == 4
    await again.close()


async def test_a_disk_that_takes_too_long_is_named_by_who_waits_for_it(new_loop: Callable[..., Any]) -> None:
    learner = parts.ArithmeticLearner(disk=lambda: False)
    run = await new_loop(*FLAGS, "--run.wait_limit_s=0.5", learner=learner)
    with pytest.raises(StallError, match="the checkpoint of version 1 to be written"):
        await run.orchestrator.run()
    assert versions(run) == [0]
    assert not list(run.folder.checkpoints.glob(".*"))
    await run.close()
