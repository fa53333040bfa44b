"""A deterministic run that is interrupted anywhere, and again, ends in the numbers of an undisturbed one.

An interruption here is a disk that is gone from one durable write on: whatever the run does after that
moment is lost, as after SIGKILL (which `tests/chaos` sends to real processes), but a run takes
milliseconds, so many moments can be tried.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.errors import AgentRLError, CheckpointError, ConfigError, DiskError, Interrupted, LearnerError
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.storage import durable
from agentrl.storage.metrics import read_metrics
from agentrl.storage.recorder import EpisodeRecorder, read_episodes
from agentrl.storage.run_folder import RunFolder
from agentrl.training.initial_values import InitialStream
from agentrl.training.resume import resume
from tests.agentrl import conftest as parts


class Unlucky(parts.Echo):
    """Its machinery breaks in one of six episodes: which ones, their seeds decide."""

    def reward(self, row: Any, answer: str | None) -> bool:
        if self.rng.random() < 1 / 6:
            raise RuntimeError("unlucky")
        return super().reward(row, answer)


GRPO = ("--estimator.kind=grpo", "--estimator.group_size=2")
DYNAMIC = (*GRPO, "--estimator.dynamic_sampling=true", "--sampler.gamma=0.5")
FLAGS = ("--run.deterministic=true", "--run.steps=5", "--checkpoint.every=2")
ARMS: dict[str, tuple[tuple[str, ...], Any]] = {
    "spo": (("--tracker.initial_rollouts=1",), parts.Echo),
    "wait": (("--stream.stale_policy=wait", "--tracker.drift=replay"), parts.Echo),
    "failures": (("--sampler.quarantine_after=50",), Unlucky),
    "copies": (("--sampler.fresh_copies=3", "--tracker.kind=trend"), parts.Echo),
    "copies-failures": (("--sampler.fresh_copies=3", "--sampler.quarantine_after=50"), Unlucky),
    "grpo": (GRPO, parts.Echo),
    "dynamic": (DYNAMIC, parts.Echo),
    "remembers": (("--estimator.kind=gdpo_value", "--stream.batch=12"), parts.Echo),
    "dynamic-failures": (
        (*DYNAMIC, "--sampler.quarantine_after=2", "--sampler.copies_per_prompt=3"),
        Unlucky,
    ),
}


class Disk:
    """Counts durable writes; from the moment that `fails_at` is set to, none reaches the disk."""

    def __init__(self) -> None:
        self.moments = 0
        self.fails_at = 0

    def pass_by(self, name: str) -> None:
        self.moments += 1
        if self.fails_at and self.moments >= self.fails_at:
            raise DiskError(name, OSError(5, "the disk is gone"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(durable, "kill_point", disk.pass_by)
    return disk


def play(path: Path, arm: str, disk: Disk, fails_at: int = 0) -> dict[str, Any] | None:
    """One attempt of a run; None when it was interrupted."""
    return asyncio.run(attempt(path, arm, disk, fails_at))  # waits for threads that are still writing


async def attempt(path: Path, arm: str, disk: Disk, fails_at: int) -> dict[str, Any] | None:
    flags, env = ARMS[arm]
    disk.moments, disk.fails_at = 0, 0
    run = await parts.make_loop(path, (*FLAGS, *flags), env=env)
    disk.fails_at = fails_at
    try:
        await run.play()
    except AgentRLError as error:
        assert "the disk is gone" in str(error)  # noqa: PT017 - any other failure is one of the test
        await run.close()
        return None
    pool, ledger = run.orchestrator.parts.pool, run.orchestrator.parts.ledger
    result = {
        "weights": (run.learner.weight, run.learner.digest),
        "tracker": pool.tracker.state_dict(),
        "sampler": pool.samplers[0].state_dict(),
        "ledger": ledger.summary(),
        "totals": run.orchestrator.progress.totals.state_dict()["values"],
        "tokens": run.orchestrator.progress.tokens,
        "steps": [row["step"] for row in read_metrics(run.folder.metrics) if row["kind"] == "step"],
    }
    await run.close()
    return result


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part, value in expected.items():
        if part in ("tracker", "sampler"):
            found["sampler"]["resting"] = sorted(map(tuple, found["sampler"]["resting"]))  # a heap
            expected["sampler"]["resting"] = sorted(map(tuple, expected["sampler"]["resting"]))
            for name, array in value.items():
                np.testing.assert_array_equal(found[part][name], array, err_msg=f"{part}: {name}")
        else:
            assert found[part] == value, part


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("arm", sorted(ARMS))
def test_any_interruptions_change_nothing(arm: str, tmp_path: Path, disk: Disk) -> None:
    # Fails when `redo` does not fold what was discarded, when `_restore` leaves out what parts remember, when
    # `Groups.restore` forgets failures, and when episodes of a deterministic run are settled one by one
    # (`TrainingStream._end`).
    expected = play(tmp_path / "whole", arm, disk)
    assert expected is not None
    moments = disk.moments
    if arm.startswith("dynamic"):
        assert expected["ledger"]["discarded"] > 8
    if "failures" in arm:
        assert expected["ledger"]["failed"] > 4
    for number, first in enumerate(range(3, moments, max(1, moments // 8))):
        path = tmp_path / f"run{number}"
        interrupted = play(path, arm, disk, fails_at=first) is None
        # Again, in the middle of redoing what was lost, and once more.
        for again in (4 + number, 30):
            if interrupted:
                interrupted = play(path, arm, disk, fails_at=again) is None
        result = play(path, arm, disk) if interrupted else None
        if result is not None:
            compare(result, expected)


async def test_a_group_that_lost_all_it_had_goes_on_after_a_resume(tmp_path: Path, disk: Disk) -> None:
    # Fails when `resume_groups` looks at pending and finished episodes only: the group is forgotten and
    # its prompt stays pending for good.
    failed: set[str] = set()

    class FailsOnce(parts.Echo):
        def reward(self, row: Any, answer: str | None) -> bool:
            if row["word"] not in failed:
                failed.add(row["word"])
                raise RuntimeError("once")
            return super().reward(row, answer)

    flags = (*FLAGS, *GRPO, "--stream.in_flight=1", "--run.deterministic=false")
    run = await parts.make_loop(RunFolder.create(tmp_path, "run"), flags, env=FailsOnce)
    ledger, dispatched = run.orchestrator.parts.ledger, run.orchestrator.parts.ledger.dispatched

    def gone(key: str, *more: Any, **also: Any) -> None:
        if key == "t1":
            raise DiskError("ledger.jsonl", OSError(5, "the disk is gone"))
        dispatched(key, *more, **also)

    ledger.dispatched = gone
    with pytest.raises(DiskError):
        await run.orchestrator.run()
    await run.close()
    again = await parts.make_loop(RunFolder.open(tmp_path / "run"), flags, env=FailsOnce)
    await resume(again.orchestrator)
    await asyncio.wait_for(again.orchestrator.run(), 30)
    pool = again.orchestrator.parts.pool
    assert pool.samplers[0].pending_prompts() == {}
    assert again.orchestrator.parts.ledger.summary()["learned"] == 40
    await again.close()


async def once(
    path: Path, *flags: str, dies_at: int = -1, stops_at: int = -1, step_s: float = 0.0, **given: Any
) -> Any:
    """One attempt whose learner dies, or that is asked to stop, at a version; what it ended with."""
    run: Any = None

    async def before_step() -> None:
        await asyncio.sleep(step_s)
        if run.orchestrator.version == dies_at:
            raise LearnerError("killed here")
        if run.orchestrator.version == stops_at:
            run.orchestrator.stop()

    learner = parts.ArithmeticLearner(seconds=before_step)
    run = await parts.make_loop(path, ("--run.wait_limit_s=10", *flags), learner=learner, **given)
    try:
        await run.play()
    except (LearnerError, Interrupted, CheckpointError) as error:
        return error
    finally:
        await run.close()
    return run


async def test_a_run_stopped_while_it_redoes_can_be_resumed(tmp_path: Path) -> None:
    # Fails when a checkpoint is written in the middle of the redo: its samplers are behind its ledger.
    path, flags = tmp_path / "run", ("--run.steps=8", "--checkpoint.every=100", "--run.deterministic=true")
    assert isinstance(await once(path, *flags, dies_at=5), LearnerError)
    assert isinstance(await once(path, *flags, stops_at=1), Interrupted)
    ended = await once(path, *flags)
    whole = await once(tmp_path / "whole", *flags)
    assert ended.learner.digest == whole.learner.digest
    assert ended.orchestrator.parts.pool.samplers[0].draws == whole.orchestrator.parts.pool.samplers[0].draws


async def test_a_run_goes_on_from_the_checkpoint_before_the_newest(tmp_path: Path) -> None:
    # Fails as above: `checkpoint.every` came due again in the middle of the redo.
    path, flags = tmp_path / "run", ("--run.steps=12", "--checkpoint.every=4")
    assert isinstance(await once(path, *flags, dies_at=11), LearnerError)
    shutil.rmtree(path / "checkpoints" / "step_000008")
    assert isinstance(await once(path, *flags, dies_at=9), LearnerError)
    assert (await once(path, *flags)).orchestrator.parts.ledger.summary()["learned"] == 96


@pytest.mark.slow
async def test_a_damaged_step_is_learned_from_as_if_for_the_first_time(tmp_path: Path) -> None:
    path, flags = tmp_path / "run", ("--run.steps=8", "--checkpoint.every=100", "--stream.staleness=2")
    assert isinstance(await once(path, *flags, dies_at=5), LearnerError)
    step = path / "steps" / "000003.npz"
    step.write_bytes(step.read_bytes()[:-200])
    ended = await once(path, *flags)
    # Two steps are learned again, and the six that follow are new, of whatever had finished by then.
    assert len(ended.learner.batches) == 8
    assert ended.orchestrator.parts.ledger.summary()["learned"] == 64
    assert ended.orchestrator.parts.pool.samplers[0].pending_prompts() == {}
    assert ended.orchestrator.parts.pool.tracker.visits(range(12)).sum() == 64


async def test_a_row_that_a_power_cut_took_is_written_again(tmp_path: Path) -> None:
    # Fails when a step that counts is not learned again, and its row is nowhere.
    path, flags = tmp_path / "run", ("--run.steps=6", "--checkpoint.every=100")
    assert isinstance(await once(path, *flags, dies_at=4), LearnerError)
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    await once(path, *flags)
    rows = [row for row in read_metrics(path / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3]["attempt"] == 1


async def test_a_checkpoint_whose_step_the_ledger_lost_gives_way_to_the_one_before(tmp_path: Path) -> None:
    # Fails when only the ledger's length is compared: the batch is then learned from twice.
    path, flags = tmp_path / "run", ("--run.steps=4", "--checkpoint.every=2", "--run.deterministic=true")
    whole = await once(path, *flags)
    ledger = path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if b'"learned"' in line)
    ledger.write_bytes(b"".join(lines[:last]))
    again = await once(path, *flags)
    assert (path / "checkpoints" / "damaged_step_000004").exists()
    assert again.learner.digest == whole.learner.digest


@pytest.mark.slow
async def test_nothing_is_started_again_before_its_draw_was_redone(tmp_path: Path, disk: Disk) -> None:
    # Fails when `TrainingStream` starts pending episodes during the redo: one that fails gives back the
    # draw of another episode of its prompt ("no episode pending").
    draws = random.Random(0)

    class Fails(parts.Echo):
        def reward(self, row: Any, answer: str | None) -> bool:
            if self.rng.random() < 1 / 4:
                raise RuntimeError("unlucky")
            return super().reward(row, answer)

    async def attempt_until(path: Path, fails_at: int) -> Any:
        disk.moments, disk.fails_at = 0, fails_at
        policy = ScriptedPolicy(
            parts.default_script,
            tokenizer=ByteTokenizer(),
            seconds=lambda request, text: draws.choice((0.0, 0.0, 0.0005, 0.004)),
        )
        try:
            return await once(path, *flags, env=Fails, policy=policy, step_s=0.001)
        except DiskError:
            return None

    flags = (
        "--run.steps=6",
        "--checkpoint.every=50",
        "--stream.staleness=2",
        "--sampler.quarantine_after=50",
    )
    for number in range(16):
        path = tmp_path / f"run{number}"
        for _ in range(4):
            await attempt_until(path, draws.randrange(60, 200))
        ended = await attempt_until(path, 0)
        assert ended.orchestrator.parts.ledger.summary()["learned"] == 48
        assert ended.orchestrator.parts.pool.samplers[0].pending_prompts() == {}


async def test_staleness_given_on_resume_is_in_force(tmp_path: Path) -> None:
    # Fails when the checkpoint's staleness is taken without asking who set it.
    every = "--checkpoint.every=1"
    await once(tmp_path / "run", every, "--stream.staleness=3", dies_at=2)
    ended = await once(tmp_path / "run", every, "--stream.staleness=0")
    assert ended.orchestrator.buffer.staleness == 0
    # What a controller steers is kept, within what is allowed now.
    steered = (every, "--controller.kind=effective_share")
    await once(tmp_path / "steered", *steered, "--stream.staleness=3", dies_at=2)
    ended = await once(tmp_path / "steered", *steered, "--stream.staleness=1")
    assert ended.orchestrator.buffer.staleness <= 1


async def test_a_hard_bound_is_not_lowered_below_what_was_admitted(tmp_path: Path) -> None:
    wait = ("--checkpoint.every=1", "--stream.stale_policy=wait")
    await once(tmp_path / "run", *wait, "--stream.staleness=3", dies_at=2)
    error = await once(tmp_path / "run", *wait, "--stream.staleness=0")
    assert "may be older than the 0 that stale_policy = 'wait' promises now" in str(error)
    assert (await once(tmp_path / "run", *wait, "--stream.staleness=3")).orchestrator.version == 4


async def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    # Fails when only the number of prompts is compared: every value then belongs to another prompt.
    rows = [{"id": word, "word": word} for word in parts.WORDS]
    await once(tmp_path / "run", "--checkpoint.every=1", dies_at=2, rows=rows)
    error = await once(tmp_path / "run", "--checkpoint.every=1", rows=rows[::-1])
    assert isinstance(error, CheckpointError)
    assert "or stand in another order" in str(error)
    assert (await once(tmp_path / "run", "--checkpoint.every=1", rows=rows)).orchestrator.version == 4


async def test_another_number_of_initial_rollouts_on_resume_is_refused(new_loop: Any) -> None:
    # Fails when a score is credited to the prompt whose turn the rollout's number would be today.
    run = await new_loop()
    pool, ledger = run.orchestrator.parts.pool, run.orchestrator.parts.ledger
    ledger.begin_attempt(0)
    for number in range(8):  # four of each: `ab` always solved, `cd` never
        ledger.dispatched(f"i{number}.0", "ab" if number < 4 else "cd", 0)
        ledger.evaluated(f"i{number}.0", float(number < 4), 5)
    recorder = run.orchestrator.parts.recorder
    given: dict[str, Any] = {"pool": pool, "ledger": ledger, "recorder": recorder, "seed": 0}
    assert InitialStream(**given, rollouts=4).scores[:2] == [[1.0] * 4, [0.0] * 4]
    with pytest.raises(ConfigError, match=r"i2\.0 .* was of prompt ab and would now be of cd"):
        InitialStream(**given, rollouts=2)
    await run.close()


async def test_files_of_killed_attempts_are_packed_with_the_next(tmp_path: Path) -> None:
    # Fails when `rotate` packs the present file only: what killed attempts wrote stays as it is for ever.
    run = await once(tmp_path / "run", "--run.steps=1")
    episode = next(read_episodes(run.folder.episodes))
    folder = tmp_path / "recorded"

    async def write(key: str) -> EpisodeRecorder:
        recorder = EpisodeRecorder(folder, keep=0)
        recorder.record(replace(episode, episode_id=key), lambda: None)
        await recorder.flush()
        return recorder

    for key in ("t0", "t1"):
        await (await write(key)).close()  # without a rotation, as after a kill
    with (folder / "000002.jsonl").open("ab") as file:
        file.write(b'{"episode_id": "torn')
    recorder = await write("t2")
    recorder.rotate()
    assert sorted(path.name for path in folder.iterdir()) == ["000003.jsonl.gz", "000004.jsonl"]
    assert gzip.decompress((folder / "000003.jsonl.gz").read_bytes()).count(b"\n") == 3
    assert [one.episode_id for one in read_episodes(folder)] == ["t0", "t1", "t2"]
    await recorder.close()


def test_a_refused_resume_leaves_the_settings_of_the_running_one(tmp_path: Path) -> None:
    # Fails when `config.toml` is written before the folder is locked.
    from agentrl.training.train import resume as resume_run

    running = RunFolder.create(tmp_path, "run")
    running.lock()
    running.config.write_text(
        '[run]\nsteps = 4\n[model]\npath = "nowhere"\n[data]\ntrain = "generated:train:16"\n'
        '[[env]]\nname = "arithmetic"\n'
    )
    before = running.config.read_text()
    with pytest.raises(ConfigError, match="another process"):
        resume_run(running.path, ["--learner.learning_rate=0.5"])
    assert running.config.read_text() == before
    running.unlock()
