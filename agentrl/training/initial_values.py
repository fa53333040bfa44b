"""The value every prompt starts from: rollouts of the first policy, or rewards of earlier ones from a file.

Rollouts for initial values are played with the training settings and are never learned from. This
module knows nothing of what values are used for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.config import registry
from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.errors import AgentRLError, ConfigError
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Dispatch, episode_seed
from agentrl.storage.ledger import INITIAL, Ledger, State
from agentrl.storage.recorder import EpisodeRecorder
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.prompts import PromptPool

if TYPE_CHECKING:
    from agentrl.training.attempt import Attempt


TRIES = 3
"""Times a rollout is tried before its prompt does without it."""


def needs_initial_rollouts(settings: Settings) -> bool:
    """Whether anybody will read the values that rollouts would set."""
    if settings.tracker.initial_file or settings.tracker.initial_rollouts == 0:
        return False
    parts = (("estimator", settings.estimator.kind), ("loss", settings.loss.kind))
    readers = any("baselines" in registry.declared(family, kind).requires for family, kind in parts)
    return readers or settings.sampler.kind != "uniform"


def read_initial_file(pool: PromptPool, path: Path) -> int:
    """Set initial values from a jsonl of `prompt_id` and `rewards` (mapped to [0, 1]) of earlier rollouts.

    Returns:
        Prompts of the pool that the file knows.

    Raises:
        AgentRLError: the file cannot be used, or knows no prompt of the pool.
    """
    if not path.is_file():
        raise AgentRLError(f"tracker.initial_file = {str(path)!r} does not exist")
    known = 0
    for number, line in enumerate(_lines(path), 1):
        if not _is_initial(line):
            raise AgentRLError(
                f"{path}, line {number}: want prompt_id and a list of rewards from 0 to 1, got {line}"
            )
        prompt = pool.index.get(str(line["prompt_id"]))
        if prompt is not None and line["rewards"]:
            pool.tracker.initialise(prompt, [float(reward) for reward in line["rewards"]])
            known += 1
    if not known:
        raise AgentRLError(f"{path} has no reward of any of the {len(pool)} prompts of this run")
    pool.refresh_all()
    return known


def _lines(path: Path) -> Iterator[Any]:
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            yield json.loads(text)
        except ValueError as error:
            raise AgentRLError(f"{path}, line {number} is not JSON: {error}") from error


def _is_initial(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and "prompt_id" in line
        and isinstance(line.get("rewards"), list)
        and all(isinstance(reward, int | float) and 0 <= reward <= 1 for reward in line["rewards"])
    )


def initialise(pool: PromptPool, scores: Sequence[Sequence[float]]) -> None:
    """Set the value of every prompt that has scores; `scores` holds a list per prompt."""
    for prompt, found in enumerate(scores):
        if found:
            pool.tracker.initialise(prompt, found)
    pool.refresh_all()


def recorded_scores(pool: PromptPool, ledger: Ledger) -> list[list[float]]:
    """Scores that rollouts for initial values got, a list per prompt."""
    scores: list[list[float]] = [[] for _ in range(len(pool))]
    for entry in ledger.in_state(State.EVALUATED, INITIAL):
        if entry.score is not None:
            scores[pool.index[entry.prompt_id]].append(entry.score)
    return scores


class InitialStream:
    """n0 rollouts of every prompt that set its initial value; never learned from.

    Args:
        pool: prompts.
        ledger: scores of an earlier attempt are taken from it.
        recorder: writes the episodes.
        seed: the run's.
        rollouts: n0.
        outages: which environments are paused, because everything of them fails.
    """

    def __init__(
        self,
        *,
        pool: PromptPool,
        ledger: Ledger,
        recorder: EpisodeRecorder,
        seed: int,
        rollouts: int,
        outages: Outages | None = None,
    ) -> None:
        self._pool, self._ledger, self._recorder, self._seed = pool, ledger, recorder, seed
        self._outages = outages or Outages(())
        self._tries: Counter[str] = Counter()
        self.scores: list[list[float]] = [[] for _ in range(len(pool))]
        self.sampled_tokens = 0
        """Those of earlier attempts included."""
        self.done = asyncio.Event()
        self.ended = 0
        """Rollouts that ended in this attempt, failed or not."""
        self.last_failure = ""
        self._left = len(pool) * rollouts
        self._todo: deque[tuple[str, int]] = deque()
        for number in range(len(pool) * rollouts):
            self._plan(number, number // rollouts)
        if self._left == 0:
            self.done.set()

    def _plan(self, number: int, prompt: int) -> None:
        """Take the score of an earlier attempt, or play the rollout (again)."""
        for attempt in itertools.count():  # those of earlier attempts of the run do not count
            key = f"{INITIAL}{number}.{attempt}"
            entry = self._ledger.entries.get(key)
            if entry is not None and entry.prompt_id != self._pool.prompt_ids[prompt]:
                raise ConfigError(
                    f"rollout {key} for initial values was of prompt {entry.prompt_id} and would now be of "
                    f"{self._pool.prompt_ids[prompt]}: tracker.initial_rollouts or the data changed while "
                    "they were being played; resume with what the run began with, or begin a new run"
                )
            if entry is not None and entry.state is State.EVALUATED and entry.score is not None:
                self.scores[prompt].append(entry.score)
                self.sampled_tokens += entry.tokens
                self._left -= 1
                return
            if entry is None or entry.state is State.PENDING:
                self._todo.append((key, prompt))
                return

    def next(self) -> Dispatch | None:
        """The next rollout."""
        pairs = (todo for todo in self._todo if self._outages.admits(self._environment(todo[1])))
        todo = next(pairs, None)
        if todo is None:
            return None
        self._todo.remove(todo)
        key, prompt = todo
        self._outages.started(self._environment(prompt), key)
        prompt_id = self._pool.prompt_ids[prompt]
        self._ledger.dispatched(key, prompt_id, 0)
        number = key.removeprefix(INITIAL).partition(".")[0]
        return Dispatch(
            episode_id=key,
            dispatch_index=int(number),
            prompt_id=prompt_id,
            start_version=0,
            environment=self._environment(prompt),
            seed=episode_seed(self._seed, key, 0),
        )

    def _environment(self, prompt: int) -> str:
        return self._pool.task(prompt).name

    def finished(self, episode: Episode) -> None:
        """Keep its score once it is on disk."""
        self._recorder.record(episode, lambda: self._written(episode))

    def _written(self, episode: Episode) -> None:
        self.ended += 1
        self._outages.succeeded(episode)
        self._ledger.evaluated(episode.episode_id, episode.score, episode.num_sampled)
        self.sampled_tokens += episode.num_sampled
        self.scores[self._pool.index[episode.prompt_id]].append(episode.score)
        self._one_less()

    def failed(self, episode: Episode) -> None:
        """Try again, a few times."""
        assert episode.failure is not None
        self.ended += 1
        self.last_failure = f"{episode.failure.boundary}: {episode.failure.error}: {episode.failure.message}"
        counts = self._outages.failed(episode)
        reason = f"{episode.failure.boundary}: {episode.failure.error}"
        self._ledger.failed(episode.episode_id, reason, excused=not counts)
        number, _, attempt = episode.episode_id.removeprefix(INITIAL).partition(".")
        self._tries[number] += counts
        if self._tries[number] < TRIES:
            key = f"{INITIAL}{number}.{int(attempt) + 1}"
            self._todo.append((key, self._pool.index[episode.prompt_id]))
        else:
            self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.set()

    def cancelled(self, dispatch: Dispatch) -> None:
        """It stays pending: a resumed run plays it again."""

    def finish(self) -> None:
        """Set the value of every prompt that has a score.

        Raises:
            AgentRLError: none has.
        """
        if not any(self.scores):
            raise AgentRLError(
                f"no rollout for an initial value succeeded; the last one: {self.last_failure}"
            )
        initialise(self._pool, self.scores)


async def set_initial_values(attempt: Attempt) -> None:
    """Set the value of every prompt of a run, by playing rollouts where the settings ask for them.

    Raises:
        AgentRLError: no rollout succeeded, or the file cannot be used.
        StallError: no rollout ended for too long.
    """
    parts, settings = attempt.parts, attempt.settings
    if settings.tracker.initial_file:
        known = read_initial_file(parts.pool, Path(settings.tracker.initial_file))
        parts.metrics.write(
            "initial", episodes=0, tokens=0, prompts=known, file=settings.tracker.initial_file
        )
    elif needs_initial_rollouts(settings):
        rollouts = settings.tracker.initial_rollouts
        parts.metrics.tell("phase", name="initial rollouts", total=len(parts.pool) * rollouts)
        stream = InitialStream(
            pool=parts.pool,
            ledger=parts.ledger,
            recorder=parts.recorder,
            seed=settings.run.seed,
            rollouts=rollouts,
            outages=attempt.outages,
        )
        started, cpu = time.monotonic(), cpu_seconds()
        try:
            await _play(attempt, stream)
        finally:
            # An attempt that ends in the middle of it has cost its time.
            attempt.progress.totals.add_initial_time(time.monotonic() - started, cpu_seconds() - cpu)
        stream.finish()
        _log(attempt, stream)


async def _play(attempt: Attempt, stream: InitialStream) -> None:
    settings = attempt.settings
    dispatcher = Dispatcher(stream, attempt.parts.play, settings.stream.in_flight or settings.engine.slots)
    running = asyncio.ensure_future(dispatcher.run())
    telling = asyncio.ensure_future(_tell(attempt, stream))
    done = asyncio.ensure_future(stream.done.wait())
    attempt.outages.wake = dispatcher.wake
    try:
        await attempt.parts.watchdog.wait(
            asyncio.wait((running, done), return_when=asyncio.FIRST_COMPLETED),
            "another rollout for an initial value to end",
            settings.run.wait_limit_s,
            progress=lambda: stream.ended,
        )
        if running.done():
            running.result()
    finally:
        for task in (running, done, telling):
            task.cancel()
        await attempt.end(dispatcher)


async def _tell(attempt: Attempt, stream: InitialStream) -> None:
    """Tell listeners once a second how far the rollouts are."""
    total = len(stream.scores) * attempt.settings.tracker.initial_rollouts
    while True:
        done = sum(map(len, stream.scores))
        attempt.parts.metrics.tell("progress", name="initial rollouts", done=done, total=total)
        await asyncio.sleep(1.0)


def _log(attempt: Attempt, stream: InitialStream) -> None:
    count, totals = sum(map(len, stream.scores)), attempt.progress.totals
    totals.values["episodes_initial"] = count
    totals.values["tokens_initial"] = stream.sampled_tokens
    attempt.parts.metrics.write(
        "initial",
        episodes=count,
        tokens=stream.sampled_tokens,
        score_mean=sum(map(sum, stream.scores)) / count,
        seconds=totals.initial_s,
        cpu_s=totals.initial_cpu_s,
    )
