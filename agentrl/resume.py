"""Takes an orchestrator back to a checkpoint, and brings up to date what happened since.

Draws made since the checkpoint are made again in the samplers, finished episodes are read from disk,
batches that were learned from are put back whole and in order, and pending episodes are started
again under their own index. It knows nothing of how a run goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentrl.checkpoint import RunState, checkpoint_folders, read_state
from agentrl.episode import Episode
from agentrl.errors import CheckpointError
from agentrl.ledger import Entry, State
from agentrl.orchestrator import Orchestrator
from agentrl.recorder import read_episodes
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
        await parts.learner.load(found[-1] / "learner")
    else:
        # Killed before its first checkpoint: it goes on from the beginning of the first attempt.
        state = replace(orchestrator.state(), ledger_position=0)
    batches = parts.ledger.learned_batches(state.version)
    orchestrator.attempt = parts.ledger.begin_attempt(state.version)
    _restore(orchestrator, state)
    _replay_draws(orchestrator, state.ledger_position)
    _refill(orchestrator, state, batches)
    _start_again(orchestrator)
    await parts.policy.load(await parts.learner.handle(orchestrator.version, orchestrator.attempt))


def _restore(orchestrator: Orchestrator, state: RunState) -> None:
    orchestrator.version = orchestrator.buffer.version = state.version
    orchestrator.credit.clocks = list(state.clocks)
    orchestrator.parts.pool.load_state_dict(state.pool)
    orchestrator.totals.load_state_dict(state.totals)
    orchestrator.evaluations = state.extra.get("evaluations", 0)
    orchestrator.begun = state.extra.get("begun", False)
    orchestrator.initialised = state.extra.get("initialised", False)
    orchestrator.buffer.staleness = state.extra.get("staleness", orchestrator.buffer.staleness)
    orchestrator.earlier_s = state.extra.get("elapsed_s", 0.0)
    orchestrator.earlier_cpu_s = state.extra.get("cpu_s", 0.0)
    orchestrator.stream.sampled_tokens = state.extra.get("tokens_generated", 0)
    if orchestrator.replay:
        orchestrator.replay.restore(state.previous)


def _replay_draws(orchestrator: Orchestrator, position: int) -> None:
    """Draw and give back in the samplers what was drawn and given back since the checkpoint."""
    pool, ledger = orchestrator.parts.pool, orchestrator.parts.ledger
    known = ledger.keys_before(position)
    drawn = {_unit(ledger.entries[key]) for key in known if key in ledger.entries}
    returned: set[str] = set()
    for record in ledger.events_since(position):
        entry = ledger.entries[record["k"]] if "k" in record else None
        if entry is None or not entry.key.startswith(TRAINING):
            continue
        prompt, unit = pool.index[entry.prompt_id], _unit(entry)
        if record["e"] == "pending" and unit not in drawn:
            drawn.add(unit)
            pool.claim(prompt)
        elif record["e"] == "failed" and entry.group is None:
            pool.failed(prompt)
        elif record["e"] in ("discarded", "abandoned") and unit not in returned:
            returned.add(unit)
            pool.returned(prompt)


def _unit(entry: Entry) -> str:
    """What was drawn together: an episode, or a group."""
    return entry.key if entry.group is None else f"group {entry.group}"


def _refill(orchestrator: Orchestrator, state: RunState, batches: Mapping[int, list[str]]) -> None:
    """Put finished episodes back into the buffer."""
    ledger, folder = orchestrator.parts.ledger, orchestrator.parts.folder
    finished = {entry.key for entry in ledger.in_state(State.FINISHED, TRAINING)}
    episodes: dict[str, Episode] = {e.episode_id: e for e in read_episodes(folder.episodes, finished)}
    counted = {episode.episode_id for episode in state.episodes}
    orchestrator.stream.sampled_tokens += sum(
        episode.num_sampled for key, episode in episodes.items() if key not in counted
    )
    episodes.update((episode.episode_id, episode) for episode in state.episodes)
    missing = sorted(finished - set(episodes))
    if missing:
        raise CheckpointError(
            f"{len(missing)} finished episodes ({', '.join(missing[:3])}, ...) are not in {folder.episodes}; "
            "they were deleted since, and the run cannot be continued exactly"
        )
    in_batches = {key for keys in batches.values() for key in keys}
    waiting = [episodes[e.key] for e in ledger.in_state(State.FINISHED, TRAINING) if e.key not in in_batches]
    orchestrator.buffer.restore(waiting, [[episodes[key] for key in keys] for keys in batches.values()])


def _start_again(orchestrator: Orchestrator) -> None:
    """Start pending episodes again, and what is missing of their groups."""
    ledger, pool, stream = orchestrator.parts.ledger, orchestrator.parts.pool, orchestrator.stream
    pending = ledger.in_state(State.PENDING, TRAINING)
    for entry in pending:
        stream.again.append((entry.key, pool.index[entry.prompt_id], entry.group))
    numbers = [int(key[len(TRAINING) :]) for key in ledger.entries if key.startswith(TRAINING)]
    stream.next_index = 1 + max(numbers, default=-1)
    stream.resume_groups(pending + ledger.in_state(State.FINISHED, TRAINING))
