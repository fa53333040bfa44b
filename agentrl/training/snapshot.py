"""Writes what an attempt is at one moment: checkpoints to resume from, weights to take elsewhere.

The counterpart of `agentrl.training.resume`. Both kinds of folder get their final name only when all of it
is on disk. It knows nothing of when they are due.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.errors import AgentRLError, DiskError, LearnerError, StallError
from agentrl.storage.checkpoint import RunState, commit, write_state
from agentrl.storage.durable import replace_folder

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.training.attempt import Attempt


def run_state(attempt: Attempt) -> RunState:
    """Everything besides the learner, at this moment."""
    parts = attempt.parts
    return RunState(
        version=attempt.version,
        attempt=attempt.attempt,
        run_id=parts.folder.identity["run_id"],
        ledger_position=parts.ledger.position,
        clocks=list(attempt.credit.clocks),
        pool=parts.pool.state_dict(),
        totals=attempt.totals.state_dict(),
        episodes=attempt.buffer.episodes(),
        previous=attempt.replay.episodes() if attempt.replay else (),
        extra={
            "begun": attempt.begun,
            "evaluation_due": attempt.evaluation_due,
            "initialised": attempt.initialised,
            "evaluations": attempt.evaluations,
            "staleness": attempt.buffer.staleness,
            "stale_policy": attempt.buffer.stale_policy,
            "elapsed_s": attempt.elapsed(),
            "cpu_s": attempt.earlier_cpu_s + cpu_seconds(),
            "tokens_generated": attempt.stream.sampled_tokens,
            "outages": attempt.outages.state_dict(),
            "parts": attempt.credit.state_dict(),
        },
    )


async def write_checkpoint(attempt: Attempt) -> None:
    """Write a checkpoint; episodes go on meanwhile, the learner does not.

    Raises:
        AgentRLError: the disk does not take it; the checkpoint before it is intact.
        StallError: learner or disk were waited for too long.
    """
    parts, limited = attempt.parts, attempt.limited
    state = run_state(attempt)
    parts.ledger.sync()
    final = parts.folder.checkpoints / f"step_{attempt.version:06d}"
    keep = attempt.settings.checkpoint.keep
    with _written_whole(final, f"the checkpoint of version {attempt.version}") as temporary:
        await limited(parts.learner.save(temporary / "learner"), "the learner to save")
        await limited(asyncio.to_thread(write_state, temporary, state), f"the disk to write {temporary}")
        await limited(asyncio.to_thread(commit, temporary, final, keep), f"the disk to take {final}")
    try:
        await limited(
            asyncio.to_thread(parts.recorder.rotate), f"the disk to compress {parts.folder.episodes}"
        )
    except StallError:
        raise
    except OSError as error:
        raise DiskError(parts.folder.episodes, error) from error


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


@contextlib.contextmanager
def _written_whole(final: Path, what: str) -> Iterator[Path]:
    """A folder to write in that is given its final name in the block; of one that failed nothing stays."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, StallError | LearnerError | DiskError) or not isinstance(error, Exception):
            raise  # not the disk's refusal
        raise AgentRLError(
            f"cannot write {what} to {final}: {error}; what was written before is intact: free some space "
            "and go on with `agentrl train --resume`"
        ) from error
