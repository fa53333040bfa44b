"""Writes what an orchestrator is at one moment: checkpoints to resume from, weights to take elsewhere.

The counterpart of `agentrl.resume`. Both kinds of folder get their final name only when all of it is on
disk. It knows nothing of when they are due.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from agentrl.checkpoint import RunState, commit, write_state
from agentrl.errors import AgentRLError, StallError
from agentrl.processor_time import cpu_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.orchestrator import Orchestrator


def run_state(orchestrator: Orchestrator) -> RunState:
    """Everything besides the learner, at this moment."""
    parts = orchestrator.parts
    return RunState(
        version=orchestrator.version,
        attempt=orchestrator.attempt,
        run_id=parts.folder.identity["run_id"],
        ledger_position=parts.ledger.position,
        clocks=list(orchestrator.credit.clocks),
        pool=parts.pool.state_dict(),
        totals=orchestrator.totals.state_dict(),
        episodes=orchestrator.buffer.episodes(),
        previous=orchestrator.replay.episodes() if orchestrator.replay else (),
        extra={
            "begun": orchestrator.begun,
            "initialised": orchestrator.initialised,
            "evaluations": orchestrator.evaluations,
            "staleness": orchestrator.buffer.staleness,
            "stale_policy": orchestrator.buffer.stale_policy,
            "elapsed_s": orchestrator.elapsed(),
            "cpu_s": orchestrator.earlier_cpu_s + cpu_seconds(),
            "tokens_generated": orchestrator.stream.sampled_tokens,
        },
    )


async def write_checkpoint(orchestrator: Orchestrator) -> None:
    """Write a checkpoint; episodes go on meanwhile, the learner does not.

    Raises:
        AgentRLError: the disk does not take it; the checkpoint before it is intact.
        StallError: learner or disk were waited for too long.
    """
    parts, limited = orchestrator.parts, orchestrator.limited
    state = run_state(orchestrator)
    parts.ledger.sync()
    final = parts.folder.checkpoints / f"step_{orchestrator.version:06d}"
    temporary = _empty(final)
    keep = orchestrator.settings.checkpoint.keep
    try:
        await limited(parts.learner.save(temporary / "learner"), "the learner to save")
        await limited(asyncio.to_thread(write_state, temporary, state), f"the disk to write {temporary}")
        await limited(asyncio.to_thread(commit, temporary, final, keep), f"the disk to take {final}")
    except StallError:
        raise  # an OSError by its ancestry, and not the disk's refusal
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise AgentRLError(
            f"cannot write the checkpoint of version {orchestrator.version} to {final}: {error}; "
            "the checkpoint before it is intact: free some space and resume"
        ) from error
    await limited(asyncio.to_thread(parts.recorder.rotate), f"the disk to compress {parts.folder.episodes}")


async def write_weights(orchestrator: Orchestrator) -> None:
    """Write Hugging Face weights of the present version."""
    parts = orchestrator.parts
    final = parts.folder.weights / f"step_{orchestrator.version}"
    temporary = _empty(final)
    await orchestrator.limited(parts.learner.save_weights(temporary), "the learner to write its weights")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def _empty(final: Path) -> Path:
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary
