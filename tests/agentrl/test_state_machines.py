"""Sampler, buffer, ledger and dispatcher under random schedules, cancellations and failures.

Each machine holds the real object against a model that is too simple to be wrong. Pools of one prompt,
of six, and of as many as there are slots.
"""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import Fold, ValueTracker
from agentrl.config.loading import load_settings
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.episode import Episode, Failure, Segment, StopReason
from agentrl.errors import DataError, LedgerError
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Dispatch
from agentrl.storage.ledger import Ledger, State
from agentrl.storage.nested import difference
from agentrl.storage.recorder import EpisodeRecorder, read_episodes
from agentrl.tasks.task import Task
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.copies import FreshCopies
from agentrl.training.credit import Credit, make_estimator
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.groups import Groups
from agentrl.training.progress import Progress
from agentrl.training.prompts import PromptPool
from agentrl.training.resume import redo
from agentrl.training.streams import TrainingStream
from agentrl_envs import Env

SLOTS = 4
POOLS = st.sampled_from([1, 6, SLOTS])
SETTINGS = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    # Explaining a failure takes minutes for machines that write files.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def make_episode(dispatch: Dispatch, *, version: int = 0, reward: float | None = 1.0) -> Episode:
    """A finished episode, or a failed one where there is no reward."""
    segment = Segment(
        token_ids=array("i", [1, 2]),
        loss_mask=b"\x00\x01",
        logprobs=array("f", [0.0, -1.0]),
        policy_versions=array("i", [-1, version]),
    )
    return Episode(
        episode_id=dispatch.episode_id,
        dispatch_index=dispatch.dispatch_index,
        prompt_id=dispatch.prompt_id,
        segments=(segment,),
        turns=(),
        reward=reward,
        stop_reason=StopReason.FAILED if reward is None else StopReason.ANSWERED,
        failure=Failure("env", "RuntimeError", "unlucky") if reward is None else None,
        start_version=dispatch.start_version,
        temperature=1.0,
        group=dispatch.group,
    )


class SamplerMachine(RuleBasedStateMachine):
    """Copies and quarantine against counters; a second sampler only claims what the first one drew."""

    @initialize(size=POOLS, copies=st.integers(1, 3), after=st.integers(1, 3), seen=st.booleans())
    def start(self, size: int, copies: int, after: int, seen: bool) -> None:
        self.size = size
        self.settings = SamplerSettings(copies_per_prompt=copies, quarantine_after=after)
        self.tracker = ValueTracker(size, TrackerSettings())
        if seen:
            self.tracker.initialise(0, [0.5])
        self.sampler = PromptSampler(self.tracker, self.settings, seed=1)
        self.twin = PromptSampler(self.tracker, self.settings, seed=1)
        self.pending: list[int] = []
        self.failures: Counter[int] = Counter()

    def _playable(self) -> list[int]:
        count = Counter(self.pending)
        settings = self.settings
        return [
            prompt
            for prompt in range(self.size)
            if self.failures[prompt] < settings.quarantine_after
            and count[prompt] < settings.copies_per_prompt
        ]

    @rule()
    def draw(self) -> None:
        playable, count = self._playable(), Counter(self.pending)
        chances = self.sampler.probabilities()
        prompt = self.sampler.draw()
        assert (prompt is None) == (not playable)
        if prompt is None:
            assert not chances.any()
            return
        assert count[prompt] == min(count[other] for other in playable)
        self.pending.append(prompt)
        self.twin.claim(prompt)

    @precondition(lambda self: self.pending)
    @rule(
        which=st.integers(0, 99), end=st.sampled_from(["folded", "returned", "failed"]), score=st.booleans()
    )
    def end(self, which: int, end: str, score: bool) -> None:
        prompt = self.pending.pop(which % len(self.pending))
        if end == "folded":
            self.tracker.fold(prompt, float(score), start_clock=0.0)
            self.failures[prompt] = 0
        elif end == "failed":
            self.failures[prompt] += 1
        for sampler in (self.sampler, self.twin):
            getattr(sampler, end)(prompt)

    @rule()
    def restore(self) -> None:
        state = self.sampler.state_dict()
        self.sampler = PromptSampler(self.tracker, self.settings, seed=99)
        self.sampler.load_state_dict(state)

    @rule()
    def end_of_nothing(self) -> None:
        idle = next((prompt for prompt in range(self.size) if prompt not in self.pending), None)
        if idle is not None:
            for end in (self.sampler.folded, self.sampler.returned, self.sampler.failed):
                try:
                    end(idle)
                except DataError:
                    continue
                raise AssertionError("an episode that was never drawn has ended")

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "sampler"):
            return
        assert self.sampler.pending_prompts() == dict(Counter(self.pending))
        limit = self.settings.quarantine_after
        assert set(self.sampler.quarantined) == {p for p, n in self.failures.items() if n >= limit}
        # Claiming is drawing: a resumed run draws what the undisturbed one would have drawn.
        np.testing.assert_array_equal(self.sampler.probabilities(), self.twin.probabilities())
        assert self.sampler.state_dict()["random"] == self.twin.state_dict()["random"]


class BufferMachine(RuleBasedStateMachine):
    """Both rules of staleness: nothing is lost or taken twice, bounds hold, and no state is a deadlock."""

    @initialize(
        batches=st.integers(1, 3),
        staleness=st.integers(0, 2),
        policy=st.sampled_from(["correct", "wait", "drop"]),
        unit=st.sampled_from([1, 2]),
        slots=st.sampled_from([1, 6, 12]),
        every=st.integers(1, 3),
    )
    def start(self, batches: int, staleness: int, policy: Any, unit: int, slots: int, every: int) -> None:
        self.unit, self.slots, self.every = unit, slots, min(every, staleness + 1)
        self.options: dict[str, Any] = {
            "batch": batches * unit,
            "staleness": staleness,
            "stale_policy": policy,
        }
        self.buffer = self._new()
        self.index = 0
        self.missing: list[int] = []  # groups of members that failed
        self.running: dict[int, Dispatch] = {}
        self.finished: set[int] = set()
        self.learned: list[int] = []

    def _new(self) -> EpisodeBuffer:
        return EpisodeBuffer(**self.options, groups=Groups(self.unit) if self.unit > 1 else None)

    def _start_one(self) -> bool:
        if self.buffer.room() <= 0 or len(self.running) >= self.slots:
            return False
        group = None
        if self.unit > 1:
            if not self.missing:
                self.missing = [self.index] * self.unit
            group = self.missing.pop()
        version = self.buffer.published
        self.running[self.index] = Dispatch(f"t{self.index}", self.index, "p", version, group=group)
        self.buffer.started(f"t{self.index}", version)
        self.index += 1
        return True

    @rule()
    def dispatch(self) -> None:
        while self._start_one():
            pass

    @precondition(lambda self: self.running)
    @rule(which=st.sampled_from([0, 0, 0, 1, 2, 9]), late=st.sampled_from([False, False, True]))
    def finish(self, which: int, late: bool) -> None:
        # Mostly the newest: some of the old ones take very long.
        self._finish(sorted(self.running, reverse=True)[which % len(self.running)], late)

    def _finish(self, index: int, late: bool) -> None:
        dispatch = self.running.pop(index)
        first = self.buffer.published if late else dispatch.start_version
        assert self.buffer.put(make_episode(dispatch, version=first)) == []
        self.finished.add(index)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def fail(self, which: int) -> None:
        dispatch = self.running.pop(sorted(self.running)[which % len(self.running)])
        self.buffer.dropped(dispatch.episode_id)
        if dispatch.group is not None:
            self.missing.append(dispatch.group)

    @rule()
    def learn(self) -> None:
        self._learn()

    def _expire(self) -> None:
        for unit in self.buffer.expired():
            assert min(e.first_version for e in unit) + self.buffer.staleness < self.buffer.version
            self.finished -= {episode.dispatch_index for episode in unit}

    def _learn(self) -> bool:
        self._expire()
        batch = self.buffer.take_now()
        if batch is None:
            return False
        assert len(batch) == self.buffer.batch
        if self.buffer.stale_policy != "correct":
            assert all(e.staleness(self.buffer.version) <= self.buffer.staleness for e in batch)
        groups = Counter(episode.group for episode in batch)
        assert self.unit == 1 or set(groups.values()) == {self.unit}
        taken = [episode.dispatch_index for episode in batch]
        assert set(taken) <= self.finished
        self.finished -= set(taken)
        self.learned += taken
        version = self.buffer.version + 1
        self.buffer.advance(version, published=version % self.every == 0)
        return True

    @rule(seldom=st.integers(0, 9))
    def resume(self, seldom: int) -> None:
        """A checkpoint between two steps: what runs is started again, at the version of now."""
        if seldom != 9:
            return
        old = self.buffer
        self.buffer = self._new()
        self.buffer.restore(old.episodes(), old.version)
        for index, dispatch in self.running.items():
            version = self.buffer.version
            self.running[index] = Dispatch(f"t{index}", index, "p", version, group=dispatch.group)
            self.buffer.started(f"t{index}", version)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert self.buffer.running == len(self.running)
        assert {e.dispatch_index for e in self.buffer.episodes()} == self.finished
        assert len(self.learned) == len(set(self.learned)) == self.buffer.version * self.buffer.batch
        assert self.buffer.under_way <= (self.buffer.staleness + 1) * self.buffer.batch

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        for _ in range(3):  # from any state, three more batches can be learned from
            while not self._learn():
                while self._start_one():
                    pass
                assert self.running, "nothing runs and no batch can be taken: a deadlock"
                self._finish(min(self.running), late=False)
            self.nothing_is_lost()


class LedgerMachine(RuleBasedStateMachine):
    """Whatever is written, and wherever a kill cuts the file: the file says what was said last."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.jsonl"
        self.ledger = Ledger(self.path)
        self.ledger.begin_attempt(0)
        self.version = self.index = 0
        self.before = (0, self._look())
        self.now = (self.ledger.position, self._look())

    def _look(self) -> tuple[Any, ...]:
        ledger = self.ledger
        return dict(ledger.entries), dict(+ledger.counts), ledger.attempt, ledger.learned_batches(0)

    def _saved(self) -> None:
        if self.ledger.position != self.now[0]:
            self.before, self.now = self.now, (self.ledger.position, self._look())

    def _some(self, state: State, count: int) -> list[str]:
        return [entry.key for entry in self.ledger.in_state(state, "t")][:count]

    @rule(group=st.one_of(st.none(), st.integers(0, 3)))
    def dispatch(self, group: int | None) -> None:
        again = [e.key for e in self.ledger.in_state(State.PENDING, "t") if e.attempt < self.ledger.attempt]
        key = again[0] if again else f"t{self.index}"
        self.index += not again
        self.ledger.dispatched(key, "p", self.version, group)
        self._saved()

    @rule(count=st.integers(1, 4), reason=st.sampled_from(["", "equal"]))
    def finish(self, count: int, reason: str) -> None:
        keys = self._some(State.PENDING, count)
        with self.ledger.together():
            for key in keys:
                self.ledger.finished(key)
            if reason:
                self.ledger.discarded(dict.fromkeys(keys, 0.5), reason)
        self._saved()

    @rule(event=st.sampled_from(["failed", "abandoned"]), count=st.integers(1, 3))
    def lose(self, event: str, count: int) -> None:
        for key in self._some(State.PENDING, count)[:1]:
            self.ledger.failed(key, "env: E") if event == "failed" else self.ledger.abandoned([key], "end")
        self._saved()

    @rule(count=st.integers(1, 3), masked=st.booleans())
    def learn(self, count: int, masked: bool) -> None:
        keys = self._some(State.FINISHED, count)
        if len(keys) == count:
            self.ledger.learned(keys, self.version, masked={keys[0]: "truncated"} if masked else {})
            self.version += 1
            self._saved()

    @rule(back=st.integers(0, 2))
    def new_attempt(self, back: int) -> None:
        learned = self.ledger.learned_batches(0)
        self.version = max(0, self.version - back)
        self.ledger.begin_attempt(self.version)
        for version, keys in learned.items():
            if version >= self.version:
                assert all(self.ledger.entries[key].state is State.FINISHED for key in keys)
        self._saved()

    @rule(which=st.integers(0, 99))
    def impossible(self, which: int) -> None:
        over = [e.key for e in self.ledger.entries.values() if e.state.terminal]
        position = self.ledger.position
        for key in over[which % len(over) :][:1] if over else []:
            for event in (self.ledger.finished, lambda k: self.ledger.dispatched(k, "p", 0)):
                try:
                    event(key)
                except LedgerError:
                    continue
                raise AssertionError(f"{key} ended twice")
        assert self.ledger.position == position

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path)
        assert self._look() == self.now[1]

    @precondition(lambda self: self.now[0] > self.before[0] > 0)
    @rule(place=st.floats(0, 1, exclude_max=True))
    def killed_while_writing(self, place: float) -> None:
        (start, before), (end, _) = self.before, self.now
        self.ledger.close()
        data = self.path.read_bytes()
        self.path.write_bytes(data[: start + int(place * (end - start))])
        self.ledger = Ledger(self.path)
        assert self._look() == before
        self.version = max(self.ledger.learned_batches(0), default=-1) + 1
        self.before = self.now = (self.ledger.position, before)

    def teardown(self) -> None:
        assert sum(self.ledger.counts.values()) == len(self.ledger.entries)
        self.ledger.close()
        self.folder.cleanup()


class _Row(Env):
    def prompt(self, row: Any) -> str:
        return row["id"]

    def reward(self, row: Any, answer: str | None) -> bool:
        return True


class _CountingCredit(Credit):
    folds = 0

    def fold_score(self, *given: Any) -> Fold:
        self.folds += 1
        return super().fold_score(*given)


def _sorted(pool: dict[str, Any]) -> dict[str, Any]:
    """The state of a pool with its heaps in order."""
    samplers = [
        {**state, "resting": np.array(sorted(map(tuple, state["resting"])))} for state in pool["samplers"]
    ]
    return {**pool, "samplers": samplers}


class DispatchMachine(RuleBasedStateMachine):
    """Dispatcher, stream, sampler, buffer, ledger and recorder together, on an event loop of their own."""

    @initialize(
        size=POOLS,
        copies=st.integers(1, 2),
        staleness=st.integers(0, 2),
        policy=st.sampled_from(["correct", "wait", "drop"]),
        kind=st.sampled_from(["spo", "copies", "grpo", "dynamic"]),
        in_order=st.booleans(),
    )
    def start(self, size: int, copies: int, staleness: int, policy: str, kind: str, in_order: bool) -> None:
        self.group_size = 2 if kind in ("grpo", "dynamic") else 1
        self.batch = min(size, 2) * self.group_size
        flags = [
            f"--stream.batch={self.batch}",
            "--learner.mini_batch=1",
            f"--stream.staleness={staleness}",
            f"--stream.stale_policy={policy}",
            f"--sampler.copies_per_prompt={copies}",
            "--estimator.kind=" + ("spo" if self.group_size == 1 else "grpo"),
            f"--sampler.fresh_copies={3 if kind == 'copies' else 1}",
            f"--estimator.group_size={self.group_size}",
            *(["--estimator.dynamic_sampling=true"] if kind == "dynamic" else []),
        ]
        self.settings = load_settings(None, flags)
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.loop.run_until_complete(self._wire(size, in_order, staleness))
        self._turn()

    def make_tracker(self, environments: Sequence[int]) -> ValueTracker:
        return ValueTracker(len(environments), self.settings.tracker)

    async def _wire(self, size: int, in_order: bool, staleness: int) -> None:
        path, settings = Path(self.folder.name), self.settings
        rows = tuple({"id": f"p{number}"} for number in range(size))
        self.pool = PromptPool(
            (Task("rows", _Row, {}, 1.0, rows),),
            self.make_tracker,
            settings.sampler,
            seed=0,
        )
        estimator = make_estimator(settings.estimator)
        self.credit = _CountingCredit(settings, self.pool, estimator)
        self.groups = Groups(self.group_size) if self.group_size > 1 else None
        fresh = settings.sampler.fresh_copies
        self.copies = FreshCopies(fresh, self.pool, self.credit.freeze) if fresh > 1 else None
        self.buffer = EpisodeBuffer(
            batch=self.batch,
            staleness=0 if in_order else staleness,
            stale_policy=settings.stream.stale_policy,
            groups=self.groups or self.copies,
            keep=self.credit.keeps,
        )
        self.ledger = Ledger(path / "ledger.jsonl")
        self.recorder = EpisodeRecorder(path / "episodes")
        self.errors: list[Exception] = []
        self.recorder.on_error(self.errors.append)
        self.progress = Progress()
        self.stream = TrainingStream(
            pool=self.pool,
            buffer=self.buffer,
            ledger=self.ledger,
            recorder=self.recorder,
            seed=0,
            total=10**6,
            credit=self.credit,
            progress=self.progress,
            groups=self.groups,
            copies=self.copies,
            in_order=in_order,
        )
        self._step_taken()
        self.in_order = in_order
        self._dispatcher()

    def _dispatcher(self) -> None:
        self.playing: dict[str, asyncio.Future[Episode]] = {}
        self.started: dict[str, Dispatch] = {}
        self.dispatcher = Dispatcher(self.stream, self._play, SLOTS)
        self.stream.wake = self.dispatcher.wake
        self.running = self.loop.create_task(self.dispatcher.run())

    def _step_taken(self) -> None:
        """What a step writes."""
        self.written = (self.ledger.position, self.pool.state_dict(), self.progress.tokens)

    async def _play(self, dispatch: Dispatch) -> Episode:
        future = self.loop.create_future()
        self.playing[dispatch.episode_id], self.started[dispatch.episode_id] = future, dispatch
        try:
            return await future
        finally:
            del self.playing[dispatch.episode_id]

    def _turn(self) -> None:
        """Let everything that can happen happen."""

        async def turn() -> None:
            for _ in range(6):
                await self.recorder.flush()
                for _ in range(4):
                    await asyncio.sleep(0)

        self.loop.run_until_complete(asyncio.wait_for(turn(), 20))
        if self.running.done():
            self.running.result()
        assert not self.errors

    @precondition(lambda self: self.playing)
    @rule(which=st.integers(0, 99), score=st.sampled_from([0.0, 1.0, 1.0, None]), late=st.booleans())
    def end(self, which: int, score: float | None, late: bool) -> None:
        key = sorted(self.playing)[which % len(self.playing)]
        dispatch = self.started[key]
        version = self.buffer.version if late else dispatch.start_version
        self.playing[key].set_result(make_episode(dispatch, version=version, reward=score))
        self._turn()

    @rule()
    def learn(self) -> None:
        self.stream.expire()
        batch = self.buffer.take_now()
        if batch is None:
            return
        if self.buffer.stale_policy != "correct":
            assert all(e.staleness(self.buffer.version) <= self.buffer.staleness for e in batch)
        self.ledger.learned([episode.episode_id for episode in batch], self.buffer.version)
        self.credit.advance(0.01)
        self.credit.fold(batch)
        self._step_taken()
        self.buffer.advance(self.buffer.version + 1)
        self.dispatcher.wake()
        self._turn()

    @rule()
    def redo(self) -> None:
        """The ledger takes the state that a step wrote to what samplers and tracker are now."""
        position, state, tokens = self.written
        pool = PromptPool(self.pool.tasks, self.make_tracker, self.settings.sampler, seed=99)
        pool.load_state_dict(state)
        credit = Credit(self.settings, pool, make_estimator(self.settings.estimator))
        credit.clocks = list(self.credit.clocks)
        progress = Progress(tokens=tokens)
        parts = SimpleNamespace(ledger=self.ledger, pool=pool)
        attempt: Any = SimpleNamespace(
            parts=parts, credit=credit, outages=Outages(("rows",)), progress=progress
        )
        redo(attempt, position, {})
        assert not difference(_sorted(pool.state_dict()), _sorted(self.pool.state_dict()))
        assert progress.tokens == self.progress.tokens

    @rule()
    def interrupt(self) -> None:
        """Everything in flight is cancelled, and started again by the next attempt."""
        self.loop.run_until_complete(self.dispatcher.stop(5.0))
        self.running.cancel()
        self._turn_quietly()
        self.ledger.begin_attempt(self.buffer.version)
        ended = {episode.episode_id for episode in self.stream._ended}
        for entry in self.ledger.in_state(State.PENDING):
            if entry.key not in ended and not any(entry.key == key for key, _, _ in self.stream.again):
                self.stream.again.append((entry.key, self.pool.index[entry.prompt_id], entry.group))
        self._dispatcher()
        self._turn()

    def _turn_quietly(self) -> None:
        self.loop.run_until_complete(asyncio.gather(self.running, return_exceptions=True))

    @invariant()
    def all_books_agree(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        counts = self.ledger.counts
        waiting = len(self.stream._ended) + len(self.stream.again)
        assert counts[State.PENDING] == self.dispatcher.in_flight + waiting
        assert self.dispatcher.in_flight == len(self.playing) <= SLOTS
        assert counts[State.FINISHED] == self.buffer.size
        assert self.credit.folds == counts[State.LEARNED] + counts[State.DISCARDED]
        assert self.pool.tracker.visits(range(len(self.pool))).sum() == self.credit.folds
        assert sum(self.pool.samplers[0].pending_prompts().values()) == self._open_units()
        # A free slot has a reason: the buffer is full, or no prompt can be drawn.
        if self.dispatcher.in_flight < SLOTS:
            assert self.buffer.room() <= 0 or self.stream.starving

    def _gave_up(self, group: int | None) -> bool:
        return self.groups is not None and self.groups.gave_up(group)

    def _open_units(self) -> int:
        """Draws that nothing came of yet, by the ledger."""
        if self.group_size == 1:
            return self.ledger.counts[State.PENDING] + self.ledger.counts[State.FINISHED]
        closed = (State.LEARNED, State.DISCARDED)
        entries = self.ledger.entries.values()
        over = {e.group for e in entries if e.state in closed or self._gave_up(e.group)}
        return len({e.group for e in entries} - over)

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        self.loop.run_until_complete(self.dispatcher.stop(5.0))
        self.running.cancel()
        self._turn_quietly()
        self.loop.run_until_complete(self.recorder.close())
        graded = {e.episode_id for e in read_episodes(Path(self.folder.name) / "episodes") if not e.failure}
        for entry in self.ledger.entries.values():
            if entry.state in (State.FINISHED, State.LEARNED, State.DISCARDED):
                assert entry.key in graded
        self.ledger.close()
        self.loop.close()
        self.folder.cleanup()


TestSampler = SamplerMachine.TestCase
TestBuffer = BufferMachine.TestCase
TestLedger = LedgerMachine.TestCase
TestDispatch = DispatchMachine.TestCase
TestBuffer.settings = settings(SETTINGS, max_examples=settings.default.max_examples * 3 // 2)
TestSampler.settings = TestLedger.settings = TestDispatch.settings = SETTINGS
