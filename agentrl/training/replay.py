"""Learns again from the recorded episodes of a run: the same batches, in the same order, from the same start.

`replay("runs/001", "again")` writes the weights that come out. On the machine and with the libraries of
the run they equal its own bit for bit, however asynchronous it was: what is random in a run (which
prompt, which token, who finishes first) is in the recorded episodes and the order of the ledger. It
plays nothing: neither engine nor sandbox is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.cluster import event_loop
from agentrl.config import loading
from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.errors import DataError
from agentrl.storage.ledger import TOO_OLD, Ledger
from agentrl.storage.recorder import read_episodes
from agentrl.storage.run_folder import RunFolder
from agentrl.storage.steps import read_credit
from agentrl.tasks.task import load_tasks
from agentrl.training.control import Control
from agentrl.training.credit import Credit, make_estimator, shuffled
from agentrl.training.drift_replay import DriftReplay
from agentrl.training.initial_values import (
    initialise,
    needs_initial_rollouts,
    read_initial_file,
    recorded_scores,
)
from agentrl.training.learner_thread import AsyncLearner, LearnerThread
from agentrl.training.plan import make_pool
from agentrl.training.prompts import PromptPool


def replay(
    path: Path | str,
    weights: Path | str,
    *,
    shuffle_rewards: bool = False,
    values: Mapping[str, Any] | None = None,
) -> ValueTracker:
    """Replay all steps of a run with a fresh learner.

    Args:
        path: folder of the run.
        weights: folder for the weights that come out.
        shuffle_rewards: whether the run was the control whose rewards are dealt out anew.
        values: settings to change, as `loading.load_settings` takes them.

    Returns:
        The value tracker that came out. It is the run's own too, but for the folds of groups that were
        discarded (GRPO only), which no weight depends on.

    Raises:
        ConfigError: there is no run, or it is running.
        DataError: an episode that was learned from is not recorded any more (`run.episodes_kept`), or
            scores of episodes that were too old were folded, nobody knows between which steps exactly.
    """
    from agentrl.training.assembly import make_learner

    folder = RunFolder.open(Path(path))
    settings = loading.load_settings(folder.config, (), values)
    pool = make_pool(load_tasks(settings.env, settings.data), settings)
    output = Path(weights)
    output.mkdir(parents=True, exist_ok=True)

    async def run() -> None:
        learner = LearnerThread(make_learner(settings))
        try:
            await replay_steps(folder, settings, pool, learner, shuffle_rewards=shuffle_rewards)
            await learner.save_weights(output)
        finally:
            await learner.close()

    folder.lock()
    try:
        event_loop.run(run())
    finally:
        folder.unlock()
    return pool.tracker


async def replay_steps(
    folder: RunFolder,
    settings: Settings,
    pool: PromptPool,
    learner: AsyncLearner,
    *,
    shuffle_rewards: bool = False,
) -> int:
    """Give a fresh learner and a fresh tracker every batch of a run; returns the number of steps.

    Args:
        folder: of the run; nobody else may be writing into it.
        settings: of the run.
        pool: its prompts, with a tracker that has seen nothing.
        learner: with the weights that the run started from.
        shuffle_rewards: see `replay`.

    Raises:
        DataError: an episode that was learned from is not recorded any more.
    """
    estimator = make_estimator(settings.estimator)
    credit = Credit(settings, pool, estimator)
    ledger = Ledger(folder.ledger)
    ledger.close()
    if any(entry.reason == TOO_OLD for entry in ledger.entries.values()):
        raise DataError(
            f"{folder.path} dropped episodes by age (stream.stale_policy = 'drop'); their scores moved values"
            " while the learner worked, and the ledger does not say before which baselines: it has no replay"
        )
    _initialise(pool, settings, ledger)
    keys = list(ledger.learned_batches(0).values())
    control = Control(settings)
    controlled = {row["version"]: row.get("controlled", {}) for row in read_credit(folder.path)}
    for copies in _sets_of_copies(folder, ledger):
        credit.freeze(copies)
    drift_replay = DriftReplay(learner) if settings.tracker.drift == "replay" else None
    for version, batch in enumerate(_batches(folder, keys)):
        if shuffle_rewards:
            batch = shuffled(batch, settings.run.seed + version)
        given = credit.assign(batch)
        options = credit.learner_options(given.baselines[given.learned])
        options |= control.learner_options(controlled.get(version + 1, {}))
        learned = await learner.step(given.trained, given.advantages, **options)
        credit.advance(float(learned.get("drift") or 0.0))
        drifts = await drift_replay.after_step(batch) if drift_replay else None
        credit.fold_values(batch, drifts)
    return len(keys)


def _sets_of_copies(folder: RunFolder, ledger: Ledger) -> list[list[Episode]]:
    """The graded members of each set of fresh copies; some may have been learned from in no batch."""
    keys = {entry.key for entry in ledger.entries.values() if entry.copies}
    episodes = {one.episode_id: one for one in read_episodes(folder.episodes, keys)} if keys else {}
    sets: dict[int | None, list[Episode]] = {}
    for episode in sorted(episodes.values(), key=lambda one: one.dispatch_index):
        if episode.failure is None:
            sets.setdefault(episode.group, []).append(episode)
    return list(sets.values())


def _initialise(pool: PromptPool, settings: Settings, ledger: Ledger) -> None:
    if settings.tracker.initial_file:
        read_initial_file(pool, Path(settings.tracker.initial_file))
    elif needs_initial_rollouts(settings):
        initialise(pool, recorded_scores(pool, ledger))


def _batches(folder: RunFolder, keys: Sequence[Sequence[str]]) -> list[list[Episode]]:
    wanted = {key for batch in keys for key in batch}
    # Of an episode that was played again after a kill, the last recording counts.
    episodes = {episode.episode_id: episode for episode in read_episodes(folder.episodes, wanted)}
    missing = sorted(wanted - episodes.keys())
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} episodes ({', '.join(missing[:3])}, ...) are not in "
            f"{folder.episodes} any more; run.episodes_kept says how many are kept"
        )
    return [[episodes[key] for key in batch] for batch in keys]
