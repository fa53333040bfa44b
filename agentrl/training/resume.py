"""Takes an orchestrator back to a checkpoint, and brings up to date what happened since.

Finished episodes are read from disk, batches that were learned from are put back whole and in order,
what happened between them in samplers and tracker is done again (`History`), and pending episodes are
started again under their own index. It knows nothing of how a run goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agentrl.episode import Episode
from agentrl.errors import AgentRLError, CheckpointError, StallError
from agentrl.storage.checkpoint import RunState, checkpoint_folders, read_state, set_damaged_aside
from agentrl.storage.ledger import TRAINING, State
from agentrl.storage.recorder import read_episodes
from agentrl.training.history import History, discarded_since
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.snapshot import run_state

logger = logging.getLogger(__name__)


async def resume(orchestrator: Orchestrator) -> None:
    """Load the newest checkpoint of the run's folder that can be read, and begin a new attempt.

    Raises:
        CheckpointError: no checkpoint can be read; says what is wrong with each.
    """
    parts = orchestrator.parts
    state = await _newest_state(orchestrator)
    _restore(orchestrator, state)
    orchestrator.attempt = parts.ledger.begin_attempt(state.version)
    episodes = _read(orchestrator, state)
    batches = parts.ledger.recorded_batches(state.version)
    orchestrator.history = History(
        orchestrator.settings,
        parts.ledger,
        parts.pool,
        orchestrator.credit,
        orchestrator.outages,
        episodes,
        orchestrator.log.count_again,
        position=state.ledger_position,
        version=state.version,
        last=state.version + len(batches),
    )
    _start_again(orchestrator)
    _refill(orchestrator, episodes, batches)
    orchestrator.redo()
    await orchestrator.load_weights()


async def _newest_state(orchestrator: Orchestrator) -> RunState:
    """Load the newest checkpoint that is whole; those that are damaged get another name."""
    found = checkpoint_folders(orchestrator.parts.folder.checkpoints)
    damaged: dict[Path, str] = {}
    for folder in reversed(found):
        try:
            state = await _load(orchestrator, folder)
        except StallError:
            raise
        except Exception as error:  # whatever reading damaged bytes raises
            damaged[folder] = str(error) if isinstance(error, AgentRLError) else f"{folder}: {error!r}"
            continue
        for other, why in damaged.items():
            name = set_damaged_aside(other)
            logger.warning("%s; going on from %s, and it is called %s now", why, folder, name)
        return state
    if damaged:
        raise CheckpointError(
            f"no checkpoint can be loaded: {'; '.join(damaged.values())}; bring one back from a copy, or "
            "begin a new run"
        )
    # Killed before its first checkpoint: it goes on from the beginning of the first attempt.
    return replace(run_state(orchestrator), ledger_position=0)


async def _load(orchestrator: Orchestrator, folder: Path) -> RunState:
    state, ledger = read_state(folder), orchestrator.parts.ledger
    if state.ledger_position > ledger.position:
        raise CheckpointError(
            f"{folder} was written when the ledger had {state.ledger_position} bytes, and it has "
            f"{ledger.position} now: its end is lost"
        )
    await orchestrator.limited(
        orchestrator.parts.learner.load(folder / "learner"), f"the learner to load {folder}"
    )
    return state


def _restore(orchestrator: Orchestrator, state: RunState) -> None:
    orchestrator.version = orchestrator.buffer.version = state.version
    orchestrator.credit.clocks = list(state.clocks)
    orchestrator.credit.load_state_dict(state.extra.get("parts", {}))
    orchestrator.parts.pool.load_state_dict(state.pool)
    orchestrator.totals.load_state_dict(state.totals)
    orchestrator.evaluations = state.extra.get("evaluations", 0)
    orchestrator.begun = state.extra.get("begun", False)
    orchestrator.evaluation_due = state.extra.get("evaluation_due", False)
    orchestrator.initialised = state.extra.get("initialised", False)
    _restore_staleness(orchestrator, state)
    orchestrator.earlier_s = state.extra.get("elapsed_s", 0.0)
    orchestrator.earlier_cpu_s = state.extra.get("cpu_s", 0.0)
    orchestrator.stream.sampled_tokens = state.extra.get("tokens_generated", 0)
    orchestrator.outages.load_state_dict(state.extra.get("outages", {}))
    if orchestrator.replay:
        orchestrator.replay.restore(state.previous)


def _restore_staleness(orchestrator: Orchestrator, state: RunState) -> None:
    """Take the staleness in force from the checkpoint where the run steers it; else the settings say.

    Raises:
        CheckpointError: a hard bound that waiting episodes were not admitted under.
    """
    settings, buffer = orchestrator.settings.stream, orchestrator.buffer
    before = state.extra.get("staleness", buffer.staleness)
    policy = state.extra.get("stale_policy", settings.stale_policy)
    if settings.min_effective_share and not orchestrator.settings.run.deterministic:
        buffer.staleness = min(before, buffer.staleness)
    elif settings.stale_policy == "wait" and (buffer.staleness < before or policy != "wait"):
        raise CheckpointError(
            f"the run had stream.staleness = {before} and stream.stale_policy = {policy!r}: its episodes may "
            f"be older than the {buffer.staleness} that stale_policy = 'wait' promises now; resume with "
            "what it had, or with stream.stale_policy = 'correct'"
        )


def _read(orchestrator: Orchestrator, state: RunState) -> dict[str, Episode]:
    """The episodes whose rewards are needed once more, by id.

    A power cut may keep the ledger's newest lines and lose the episodes' own: those are played again.
    """
    ledger, folder = orchestrator.parts.ledger, orchestrator.parts.folder
    wanted = {entry.key for entry in ledger.in_state(State.FINISHED, TRAINING)}
    wanted |= discarded_since(ledger, state.ledger_position)
    # Of an episode that was played again after a kill, the last recording counts.
    episodes = {episode.episode_id: episode for episode in read_episodes(folder.episodes, wanted)}
    episodes.update((episode.episode_id, episode) for episode in state.episodes)
    lost = [entry.key for entry in ledger.in_state(State.FINISHED, TRAINING) if entry.key not in episodes]
    if lost:
        ledger.lost(lost)
        logger.warning(
            "%d finished episodes (%s, ...) are not in %s; they are played again",
            len(lost),
            ", ".join(lost[:3]),
            folder.episodes,
        )
    return episodes


def _refill(
    orchestrator: Orchestrator, episodes: Mapping[str, Episode], batches: Mapping[int, list[str]]
) -> None:
    """Put finished episodes back into the buffer."""
    in_batches = {key for keys in batches.values() for key in keys}
    finished = orchestrator.parts.ledger.in_state(State.FINISHED, TRAINING)
    waiting = [episodes[entry.key] for entry in finished if entry.key not in in_batches]
    orchestrator.buffer.restore(waiting, [[episodes[key] for key in keys] for keys in batches.values()])


def _start_again(orchestrator: Orchestrator) -> None:
    """Start pending episodes again, and what is missing of their groups."""
    ledger, pool, stream = orchestrator.parts.ledger, orchestrator.parts.pool, orchestrator.stream
    for entry in ledger.in_state(State.PENDING, TRAINING):
        stream.again.append((entry.key, pool.index[entry.prompt_id], entry.group))
    numbers = [int(key[len(TRAINING) :]) for key in ledger.entries if key.startswith(TRAINING)]
    stream.next_index = 1 + max(numbers, default=-1)
    stream.resume_groups()
