"""Writes what an attempt is at one moment: each step, checkpoints to resume from, weights to take elsewhere.

The counterpart of `agentrl.training.resume`. With every step goes what changed of the *light state*:
everything but weights and episodes that a resumed run needs; a checkpoint adds the weights to it. Both kinds
of folder get their final name only when all of it is on disk. It knows nothing of when they are due.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.episode import Episode
from agentrl.errors import AgentRLError, DiskError, LearnerError, StallError
from agentrl.storage import nested
from agentrl.storage.checkpoint import RunState, checkpoint_folders, checkpoint_version, commit, write_state
from agentrl.storage.durable import replace_folder
from agentrl.storage.metrics import Row, read_metrics
from agentrl.storage.run_folder import HELD_OUT
from agentrl.storage.steps import StepRecord, TokenValues
from agentrl.training.credit import Assignment

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.training.attempt import Attempt

POLL_S = 0.2
"""Between two questions to the learner whether its part is on disk; in a step it answers at the end."""


def light_state(attempt: Attempt) -> dict[str, Any]:
    """Everything besides weights, episodes and `Progress`, at this moment."""
    return {
        "ledger_position": attempt.parts.ledger.position,
        "pool": attempt.parts.pool.state_dict(),
        "clocks": np.array(attempt.credit.clocks),
        "parts": attempt.credit.state_dict(),
        "tokens": attempt.progress.tokens,
        "outages": attempt.outages.state_dict(),
        "control": attempt.control.state_dict(),
        "staleness": attempt.buffer.staleness,
        "stale_policy": attempt.buffer.stale_policy,
    }


async def write_step(
    attempt: Attempt,
    batch: Sequence[Episode],
    given: Assignment,
    values: Mapping[str, float],
    tokens: TokenValues | None,
    row: Row,
) -> int:
    """Write the step that led to the present version; it counts once the ledger says so. Returns its bytes.

    Raises:
        AgentRLError: the disk does not take it.
        StallError: the disk was waited for too long.
    """
    before, attempt.light = attempt.light, light_state(attempt)
    record = StepRecord(
        version=attempt.version,
        attempt=attempt.progress.attempt,
        episode_ids=[episode.episode_id for episode in batch],
        scores=given.scores,
        baselines=given.baselines,
        counts=given.counts,
        advantages=given.of_episodes(),
        of_tokens=given.of_tokens(),
        values=values,
        light=nested.difference(before, attempt.light),
        progress=attempt.progress.state_dict(),
        tokens=tokens,
        row=row,
    )
    with disk_errors(attempt.files.path(attempt.version)):
        return await attempt.limited(
            asyncio.to_thread(attempt.files.write, record), f"the disk to write step {attempt.version}"
        )


async def write_checkpoint(attempt: Attempt, *, wait: bool = True) -> None:
    """Write a checkpoint of this moment; episodes go on meanwhile.

    Args:
        attempt: whose.
        wait: until it is on disk. Else the learner only waits until its state is copied; an error that comes
            later ends the attempt.

    Raises:
        AgentRLError: the disk does not take it; the checkpoint before it is intact.
        StallError: learner or disk were waited for too long.
    """
    await written(attempt)  # one at a time
    parts = attempt.parts
    if attempt.version == 0:
        attempt.light = light_state(attempt)  # what the first step's changes are counted from
    state = RunState(
        run_id=parts.folder.identity["run_id"],
        light=attempt.light,
        progress=attempt.progress.state_dict(),
        episodes=attempt.buffer.episodes(),
        previous=attempt.replay.episodes() if attempt.replay else (),
    )
    parts.ledger.sync()
    final = parts.folder.checkpoints / f"step_{attempt.version:06d}"
    what = f"the checkpoint of version {attempt.version}"
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(_written_whole(final, what))
        await attempt.limited(parts.learner.save(temporary / "learner", wait=wait), "the learner to save")
        rest = _write_rest(attempt, state, temporary, final, what, stack.pop_all())
    if wait:
        await rest
        return
    attempt.writing = asyncio.create_task(rest, name=what)
    attempt.writing.add_done_callback(lambda task: _tell_failure(attempt, task))


async def written(attempt: Attempt) -> None:
    """Wait until no checkpoint is on its way to the disk.

    Raises:
        AgentRLError: the disk did not take it; the checkpoint before it is intact.
        StallError: it was waited for too long.
    """
    if attempt.writing is not None:
        # Whoever gives up waiting does not end the writing.
        await attempt.limited(asyncio.shield(attempt.writing), f"{attempt.writing.get_name()} to be written")
        attempt.writing = None


def _tell_failure(attempt: Attempt, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        attempt.fail(error)


async def _write_rest(
    attempt: Attempt, state: RunState, temporary: Path, final: Path, what: str, end: contextlib.ExitStack
) -> None:
    """All of a checkpoint but what the learner writes, and its name once that is on disk too."""
    parts, limited = attempt.parts, attempt.limited
    with end:
        await limited(asyncio.to_thread(write_state, temporary, state), f"the disk to write {temporary}")
        await limited(_until_saved(attempt), f"{what} to be written")
        keep = attempt.settings.checkpoint.keep
        await limited(asyncio.to_thread(commit, temporary, final, keep), f"the disk to take {final}")
    with disk_errors(parts.folder.episodes):
        await limited(
            asyncio.to_thread(parts.recorder.rotate), f"the disk to compress {parts.folder.episodes}"
        )
        oldest = checkpoint_folders(parts.folder.checkpoints)[0]
        attempt.files.delete_old(checkpoint_version(oldest), attempt.settings.stream.batch)


async def _until_saved(attempt: Attempt) -> None:
    while not await attempt.parts.learner.saved():  # noqa: ASYNC110 (it may be in another process)
        await asyncio.sleep(POLL_S)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Tell the disk's refusals as `DiskError`."""
    try:
        yield
    except StallError:
        raise
    except OSError as error:
        raise DiskError(path, error) from error


async def write_weights(attempt: Attempt) -> None:
    """Write Hugging Face weights of the present version.

    Raises:
        AgentRLError: the disk does not take them.
    """
    parts, limited = attempt.parts, attempt.limited
    final = parts.folder.weights / f"step_{attempt.version}"
    with _written_whole(final, f"the weights of version {attempt.version}") as temporary:
        await limited(parts.learner.save_weights(temporary), "the learner to write its weights")
        await limited(
            asyncio.to_thread(replace_folder, temporary, final, "weights"), f"the disk to take {final}"
        )


async def keep_best(attempt: Attempt) -> None:
    """Keep the weights of the present version where no version measured before it scored as well.

    Scores stand in the metrics, and what is kept beside the weights, so a resumed run goes on from there. A
    version that was kept before a kill, and is measured again after it, stays with its first score.

    Raises:
        AgentRLError: the disk does not take them; the best before it is intact.
    """
    parts, limited, version = attempt.parts, attempt.limited, attempt.version
    read = await limited(
        asyncio.to_thread(read_metrics, parts.folder.metrics), "the disk to read the metrics"
    )
    rows = [row for row in read if row["kind"] == "eval"]
    scores = {row["version"]: row["reward_mean"] for row in rows if row.get("reward_mean") is not None}
    if not version or version not in scores:
        return
    score, kept = scores[version], parts.folder.best_version()
    if kept is not None and (kept["version"] == version or kept["score"] >= score):
        return
    if any(other >= score for earlier, other in scores.items() if earlier < version):
        return
    final = parts.folder.best
    with _written_whole(final, f"the best weights, of version {version}") as temporary:
        written = parts.folder.weights / f"step_{version}"
        if written.is_dir():
            await limited(asyncio.to_thread(_link, written, temporary), f"the disk to link {written}")
        else:
            await limited(parts.learner.save_weights(temporary), "the learner to write its best weights")
        (temporary / HELD_OUT).write_text(json.dumps({"version": version, "score": score}))
        await limited(
            asyncio.to_thread(replace_folder, temporary, final, "best"), f"the disk to take {final}"
        )


def _link(source: Path, target: Path) -> None:
    """The same files under another name; copies where the disk links none."""

    def link(file: str, other: str) -> None:
        try:
            os.link(file, other)
        except OSError:
            shutil.copyfile(file, other)

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


@contextlib.contextmanager
def _written_whole(final: Path, what: str) -> Iterator[Path]:
    """A folder to write in that is given its final name in the block; of one that failed nothing stays."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
    except BaseException as error:
        # A thread may be about to give it its name, which must not go to what is half deleted.
        gone = final.with_name(f".{final.name}.gone.tmp")
        with contextlib.suppress(OSError):
            temporary.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if isinstance(error, StallError | LearnerError | DiskError) or not isinstance(error, Exception):
            raise  # not the disk's refusal
        raise AgentRLError(
            f"cannot write {what} to {final}: {error}; what was written before is intact: free some space "
            "and go on with `agentrl train --resume`"
        ) from error
