"""Takes an orchestrator back to a checkpoint, and brings up to date what happened since.

Finished episodes are read from disk, batches that were learned from are put back whole and in order,
what happened between them in samplers and tracker is done again (`History`), and pending episodes are
started again under their own index. It knows nothing of how a run goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentrl.checkpoint import RunState, checkpoint_folders, read_state
from agentrl.episode import Episode
from agentrl.errors import CheckpointError
from agentrl.history import History, discarded_since
from agentrl.ledger import State
from agentrl.orchestrator import Orchestrator
from agentrl.recorder import read_episodes
from agentrl.snapshot import run_state
from agentrl.streams import TRAINING


async def resume(orchestrator: Orchestrator) -> None:
    """Load the newest checkpoint of the run's folder and begin a new attempt.

    Raises:
        CheckpointError: the checkpoint, or an episode that the ledger calls finished, cannot be read.
    """
    parts = orchestrator.parts
    found = checkpoint_folders(parts.folder.checkpoints)
    if found:
        state = read_state(found[-1])
        await orchestrator.limited(
            parts.learner.load(found[-1] / "learner"), f"the learner to load {found[-1]}"
        )
    else:
        # Killed before its first checkpoint: it goes on from the beginning of the first attempt.
        state = replace(run_state(orchestrator), ledger_position=0)
    orchestrator.attempt = parts.ledger.begin_attempt(state.version)
    batches = parts.ledger.recorded_batches(state.version)
    _restore(orchestrator, state)
    episodes = _read(orchestrator, state)
    orchestrator.history = History(
        orchestrator.settings,
        parts.ledger,
        parts.pool,
        orchestrator.credit,
        episodes,
        position=state.ledger_position,
        version=state.version,
        last=state.version + len(batches),
    )
    _start_again(orchestrator)
    _refill(orchestrator, episodes, batches)
    orchestrator.redo()
    await orchestrator.load_weights()


def _restore(orchestrator: Orchestrator, state: RunState) -> None:
    orchestrator.version = orchestrator.buffer.version = state.version
    orchestrator.credit.clocks = list(state.clocks)
    orchestrator.parts.pool.load_state_dict(state.pool)
    orchestrator.totals.load_state_dict(state.totals)
    orchestrator.evaluations = state.extra.get("evaluations", 0)
    orchestrator.begun = state.extra.get("begun", False)
    orchestrator.initialised = state.extra.get("initialised", False)
    _restore_staleness(orchestrator, state)
    orchestrator.earlier_s = state.extra.get("elapsed_s", 0.0)
    orchestrator.earlier_cpu_s = state.extra.get("cpu_s", 0.0)
    orchestrator.stream.sampled_tokens = state.extra.get("tokens_generated", 0)
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
    """The episodes whose rewards are needed once more, by id."""
    ledger, folder = orchestrator.parts.ledger, orchestrator.parts.folder
    wanted = {entry.key for entry in ledger.in_state(State.FINISHED, TRAINING)}
    wanted |= discarded_since(ledger, state.ledger_position)
    # Of an episode that was played again after a kill, the last recording counts.
    episodes = {episode.episode_id: episode for episode in read_episodes(folder.episodes, wanted)}
    counted = {episode.episode_id for episode in state.episodes}
    orchestrator.stream.sampled_tokens += sum(
        episode.num_sampled for key, episode in episodes.items() if key not in counted
    )
    episodes.update((episode.episode_id, episode) for episode in state.episodes)
    missing = sorted(wanted - set(episodes))
    if missing:
        raise CheckpointError(
            f"{len(missing)} finished episodes ({', '.join(missing[:3])}, ...) are not in {folder.episodes}; "
            "they were deleted since, and the run cannot be continued exactly"
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
