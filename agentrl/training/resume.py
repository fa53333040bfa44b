"""Takes an orchestrator back to where its run was: the newest checkpoint, and the steps after it.

The learner learns again from the recorded episodes of those steps, with the advantages that they had.
Everything else is on disk as the newest step left it; what happened since (draws, ends of episodes) stands in
the ledger, and pending episodes are started again under their own index. What follows is not its business.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.episode import Episode
from agentrl.errors import AgentRLError, CheckpointError, DataError, LearnerLost, StallError
from agentrl.storage import nested
from agentrl.storage.checkpoint import (
    RunState,
    checkpoint_folders,
    checkpoint_version,
    read_state,
    set_damaged_aside,
)
from agentrl.storage.ledger import TRAINING, State
from agentrl.storage.metrics import read_metrics
from agentrl.storage.recorder import read_episodes
from agentrl.storage.steps import StepRecord
from agentrl.training.attempt import Attempt
from agentrl.training.orchestrator import Orchestrator

logger = logging.getLogger(__name__)


async def resume(orchestrator: Orchestrator) -> None:
    """Load the newest checkpoint of the run's folder that can be read, and begin a new attempt.

    Raises:
        CheckpointError: no checkpoint can be read; says what is wrong with each.
        Interrupted: the run was stopped meanwhile; what is on disk is as it was.
    """
    parts, position = orchestrator.parts, 0
    state = await _newest_state(orchestrator)
    episodes = _read(orchestrator, state)
    if state is not None:
        if orchestrator.replay:
            orchestrator.replay.restore(state.previous)
        steps = _steps(orchestrator, state.progress["version"], episodes)
        await _learn_again(orchestrator, steps, episodes)
        light = state.light
        for step in steps:
            light = nested.applied(light, step.light)
        _restore(orchestrator, light, steps[-1].progress if steps else state.progress)
        _write_lost_rows(orchestrator)
        position = light["ledger_position"]
    orchestrator.progress.attempt = parts.ledger.begin_attempt(orchestrator.version)
    _set_lost(orchestrator, episodes)
    redo(orchestrator, position, episodes)
    orchestrator.stream.start_again()
    finished = parts.ledger.in_state(State.FINISHED, TRAINING)
    orchestrator.buffer.restore([episodes[entry.key] for entry in finished], orchestrator.version)
    if orchestrator.forgive or parts.pool.exhausted:
        _forgive(orchestrator)
    await orchestrator.load_weights()


async def _newest_state(orchestrator: Orchestrator) -> RunState | None:
    """Load the newest checkpoint that is whole; those that are damaged get another name.

    None where the run was killed before its first one: it goes on from the beginning.
    """
    found = checkpoint_folders(orchestrator.parts.folder.checkpoints)
    damaged: dict[Path, str] = {}
    for folder in reversed(found):
        try:
            state = await _load(orchestrator, folder)
        except (StallError, LearnerLost):  # the learner's own, not the checkpoint's
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
    return None


async def _load(orchestrator: Orchestrator, folder: Path) -> RunState:
    state, ledger = read_state(folder), orchestrator.parts.ledger
    position = state.light["ledger_position"]
    version = checkpoint_version(folder)
    if position > ledger.position or (version and version - 1 not in ledger.learned_batches(version - 1)):
        raise CheckpointError(
            f"{folder} was written when the ledger had {position} bytes, and it has {ledger.position} now: "
            "its end is lost"
        )
    await orchestrator.limited(
        orchestrator.parts.learner.load(folder / "learner"), f"the learner to load {folder}"
    )
    return state


def _read(orchestrator: Orchestrator, state: RunState | None) -> dict[str, Episode]:
    """The episodes that wait, are learned from again or were discarded, by id."""
    ledger = orchestrator.parts.ledger
    version, position = 0, 0
    if state is not None:
        version, position = state.progress["version"], state.light["ledger_position"]
    wanted = {entry.key for entry in ledger.in_state(State.FINISHED, TRAINING)}
    wanted |= {key for keys in ledger.learned_batches(version).values() for key in keys}
    wanted |= {record["k"] for record in ledger.events_since(position) if record["e"] == "discarded"}
    # Of an episode that was played again after a kill, the last recording counts.
    found = read_episodes(orchestrator.parts.folder.episodes, wanted)
    episodes = {episode.episode_id: episode for episode in found}
    for episode in state.episodes if state is not None else ():
        episodes[episode.episode_id] = episode
    return episodes


def _steps(orchestrator: Orchestrator, version: int, episodes: Mapping[str, Episode]) -> list[StepRecord]:
    """The steps taken after a checkpoint, as far as everything of them is on disk."""
    steps: list[StepRecord] = []
    batches = orchestrator.parts.ledger.learned_batches(version)
    while (keys := batches.get(version)) is not None:
        try:
            step = orchestrator.files.read(version + 1)
        except DataError as error:
            logger.warning("%s; its batch is learned from as if for the first time", error)
            break
        if step.episode_ids != keys or any(key not in episodes for key in keys):
            logger.warning("step %d is not whole on disk; its episodes are learned from anew", version + 1)
            break
        steps.append(step)
        version += 1
    return steps


async def _learn_again(
    orchestrator: Orchestrator, steps: Sequence[StepRecord], episodes: Mapping[str, Episode]
) -> None:
    """Bring the learner from the checkpoint to the newest step."""
    parts = orchestrator.parts
    for done, step in enumerate(steps):
        orchestrator.check_stop("no step was lost; it goes on from the same place")
        parts.metrics.tell("progress", name="steps learned again", done=done, total=len(steps))
        orchestrator.progress.version = step.version - 1
        batch = [episodes[key] for key in step.episode_ids]
        await orchestrator.limited(
            parts.learner.step(
                [batch[place] for place in step.learned],
                step.given(),
                **orchestrator.learner_options(step.baselines[step.learned], step.values),
            ),
            f"the learner to learn again from step {step.version}",
        )
        if orchestrator.replay:
            await orchestrator.limited(orchestrator.replay.after_step(batch), "the learner to score again")


def _restore(orchestrator: Orchestrator, light: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    orchestrator.light = dict(light)
    orchestrator.parts.pool.load_state_dict(light["pool"])
    orchestrator.credit.clocks = light["clocks"].tolist()
    orchestrator.credit.load_state_dict(light.get("parts", {}))
    orchestrator.outages.load_state_dict(light["outages"])
    orchestrator.control.load_state_dict(light["control"])
    orchestrator.progress.load_state_dict(progress)
    orchestrator.progress.tokens = light["tokens"]
    _restore_staleness(orchestrator, light["staleness"], light["stale_policy"])


def _write_lost_rows(orchestrator: Orchestrator) -> None:
    """Write rows of steps again that a power cut took; the steps' own files have survived it."""
    parts, files = orchestrator.parts, orchestrator.files
    known = {row.get("step") for row in read_metrics(parts.folder.metrics) if row["kind"] == "step"}
    for version in range(1, orchestrator.version + 1):
        if version not in known and files.path(version).exists():
            parts.metrics.write(**files.read(version).row)


def _restore_staleness(orchestrator: Orchestrator, before: int, policy: str) -> None:
    """Take the staleness that was in force where a controller steers it; else the settings say.

    Raises:
        CheckpointError: a hard bound that waiting episodes were not admitted under.
    """
    settings, buffer = orchestrator.settings.stream, orchestrator.buffer
    buffer.staleness = orchestrator.control.staleness(buffer.staleness)
    if settings.stale_policy == "wait" and (buffer.staleness < before or policy != "wait"):
        raise CheckpointError(
            f"the run had stream.staleness = {before} and stream.stale_policy = {policy!r}: its episodes may "
            f"be older than the {buffer.staleness} that stale_policy = 'wait' promises now; resume with "
            "what it had, or with stream.stale_policy = 'correct'"
        )


def _set_lost(orchestrator: Orchestrator, episodes: Mapping[str, Episode]) -> None:
    """Play finished episodes again that are not on disk: a power cut may keep the ledger's lines alone."""
    ledger = orchestrator.parts.ledger
    lost = [entry.key for entry in ledger.in_state(State.FINISHED, TRAINING) if entry.key not in episodes]
    if lost:
        ledger.lost(lost)
        logger.warning(
            "%d finished episodes (%s, ...) are not in %s; they are played again",
            len(lost),
            ", ".join(lost[:3]),
            orchestrator.parts.folder.episodes,
        )


def redo(attempt: Attempt, position: int, episodes: Mapping[str, Episode]) -> None:
    """Do to samplers, tracker and outages what the ledger says since a step.

    Args:
        attempt: as the step left it.
        position: of the ledger after the step, in bytes.
        episodes: those that were discarded since, by id, for parts that remember them.
    """
    ledger, pool, outages = attempt.parts.ledger, attempt.parts.pool, attempt.outages
    for record in ledger.events_since(position):
        if record["e"] == "forgiven":
            pool.forgive()
        if not record.get("k", "").startswith(TRAINING):
            continue
        entry = ledger.entries[record["k"]]
        name = pool.task(pool.index[entry.prompt_id]).name
        if record["e"] == "finished":
            attempt.progress.tokens += record["t"]
            outages.redo(name, entry.prompt_id, succeeded=True, counted=False)
        elif record["e"] == "failed":
            outages.redo(name, entry.prompt_id, succeeded=False, counted=not record.get("o"))
        elif record["e"] == "discarded":
            attempt.credit.fold_score(entry.key, entry.prompt_id, record["s"], entry.start_version)
            if entry.key in episodes:
                attempt.credit.remember(episodes[entry.key], record["s"])
        if "do" in record:
            pool.do(record["do"], entry.prompt_id)


def _forgive(orchestrator: Orchestrator) -> None:
    """Draw prompts again that an earlier attempt had set aside."""
    pool, parts = orchestrator.parts.pool, orchestrator.parts
    set_aside = {name: len(ids) for name, ids in pool.set_aside.items()}
    pool.forgive()
    if set_aside:
        parts.ledger.forgiven()
        parts.metrics.write("forgiven", step=orchestrator.version, environments=set_aside)
