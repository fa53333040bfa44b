"""The buffer's two rules of staleness, under random schedules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.episode import Episode, Failure, Segment, StopReason
from agentrl.errors import ConfigError, LedgerError
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.groups import Groups


def episode(index: int, version: int, *, group: int | None = None) -> Episode:
    segment = Segment(
        token_ids=[1, 2], loss_mask=b"\x00\x01", logprobs=[0.0, -1.0], policy_versions=[-1, version]
    )
    return Episode(
        episode_id=f"t{index}",
        dispatch_index=index,
        prompt_id=f"p{index}",
        segments=(segment,),
        turns=(),
        reward=1.0,
        stop_reason=StopReason.ANSWERED,
        start_version=version,
        temperature=1.0,
        group=group,
    )


def test_correct_admits_in_aggregate() -> None:
    # s = 1, B = 2 at version 0: (1 + 0 + 1) * 2 = 4 episodes may be accepted or running.
    buffer = EpisodeBuffer(batch=2, staleness=1)
    for index in range(4):
        assert buffer.room() == 4 - index
        buffer.started(f"t{index}", 0)
    assert buffer.room() == 0
    buffer.put(episode(0, 0))
    buffer.put(episode(3, 0))
    assert [e.dispatch_index for e in buffer.take_now() or ()] == [0, 3]
    assert buffer.room() == 0  # taken episodes stay accepted until the version advances
    buffer.advance(1)
    assert buffer.room() == 2


def test_engines_that_are_behind_the_learner_admit_by_their_own_version() -> None:
    # s = 1, B = 2, published every 2 steps. Version 1 is not: an episode that begins now has version 0, and is
    # learned from by the step of version 1 at the latest.
    for policy in ("correct", "wait"):
        buffer = EpisodeBuffer(batch=2, staleness=1, stale_policy=policy)
        for index in range(4):
            buffer.started(f"t{index}", 0)
            buffer.put(episode(index, 0))
        assert buffer.take_now() is not None
        buffer.advance(1, published=False)
        assert (buffer.version, buffer.published, buffer.room()) == (1, 0, 0)
        assert buffer.take_now() is not None
        buffer.advance(2)
        assert (buffer.published, buffer.room()) == (2, 4)


def test_drop_lets_go_of_who_is_too_old_and_admits_another() -> None:
    # s = 1, B = 1: two under way at version 0. t0 is still running when version 2 begins.
    buffer = EpisodeBuffer(batch=1, staleness=1, stale_policy="drop")
    buffer.started("t0", 0)
    buffer.started("t1", 0)
    assert buffer.room() == 0
    buffer.put(episode(1, 0))
    assert buffer.take_now() is not None
    buffer.advance(1)
    assert buffer.expired() == []
    buffer.started("t2", 1)
    buffer.put(episode(2, 1))
    assert [e.dispatch_index for e in buffer.take_now() or ()] == [2]
    buffer.advance(2)
    buffer.put(episode(0, 0))  # two versions old, and one is allowed
    assert buffer.room() == 1
    assert [[e.dispatch_index for e in unit] for unit in buffer.expired()] == [[0]]
    assert (buffer.room(), buffer.size, buffer.take_now()) == (2, 0, None)


def test_wait_counts_the_batch_being_learned_as_gone() -> None:
    buffer = EpisodeBuffer(batch=2, staleness=1, stale_policy="wait")
    for index in range(4):
        buffer.started(f"t{index}", 0)
    assert buffer.room() == 0
    for index in (0, 1):
        buffer.put(episode(index, 0))
    assert buffer.take_now() is not None
    # 2 are under way and due by 1; the batch of version 0 is taken, so one step (2 episodes) is left by 1.
    assert buffer.room() == 0
    buffer.advance(1)
    assert buffer.room() == 2


def test_wait_holds_a_batch_back_for_an_episode_that_is_due() -> None:
    buffer = EpisodeBuffer(batch=1, staleness=1, stale_policy="wait")
    buffer.started("t0", 0)
    buffer.started("t1", 0)
    buffer.put(episode(1, 0))
    assert [e.dispatch_index for e in buffer.take_now() or ()] == [1]
    buffer.advance(1)
    buffer.started("t2", 1)
    buffer.put(episode(2, 1))
    # t0 is due by version 1 and still runs: taking t2 now would make t0 too old.
    assert buffer.take_now() is None
    buffer.put(episode(0, 0))
    assert [e.dispatch_index for e in buffer.take_now() or ()] == [0]


def test_an_episode_cannot_finish_twice() -> None:
    buffer = EpisodeBuffer(batch=1, staleness=0)
    buffer.started("t0", 0)
    buffer.put(episode(0, 0))
    with pytest.raises(LedgerError, match="finished twice"):
        buffer.put(episode(0, 0))


def test_a_batch_must_hold_whole_groups() -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        EpisodeBuffer(batch=6, staleness=0, groups=Groups(4))


def test_groups_leave_whole() -> None:
    buffer = EpisodeBuffer(batch=2, staleness=0, groups=Groups(2))
    for index in range(4):
        buffer.started(f"t{index}", 0)
    buffer.put(episode(0, 0, group=0))
    buffer.put(episode(3, 0, group=1))
    assert buffer.take_now() is None
    buffer.put(episode(2, 0, group=1))
    assert [e.dispatch_index for e in buffer.take_now() or ()] == [2, 3]


def test_a_group_that_is_not_kept_gives_its_room_back() -> None:
    buffer = EpisodeBuffer(batch=2, staleness=0, groups=Groups(2), keep=lambda unit: False)
    for index in range(2):
        buffer.started(f"t{index}", 0)
    assert buffer.put(episode(0, 0, group=0)) == []
    [rejected] = buffer.put(episode(1, 0, group=0))
    assert [e.dispatch_index for e in rejected] == [0, 1]
    assert buffer.room() == 2


latencies = st.lists(
    # A heavy tail: most episodes take a step or two, some a hundred times as long.
    st.one_of(st.integers(1, 3), st.integers(1, 3), st.integers(100, 300)),
    min_size=30,
    max_size=200,
)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    staleness=st.integers(0, 3),
    slots=st.integers(1, 20),
    latency=latencies,
    late_first_token=st.booleans(),
    every=st.integers(1, 4),
)
@pytest.mark.slow
def test_wait_never_exceeds_its_bound_and_never_deadlocks(
    batch: int, staleness: int, slots: int, latency: list[int], late_first_token: bool, every: int
) -> None:
    # Fails when `_bound_after` always returns True (bound), when batches are taken oldest first without the
    # deadlines of running episodes (deadlock), or when `room` counts from the learner's version (bound).
    buffer = EpisodeBuffer(batch=batch, staleness=staleness, stale_policy="wait")
    running: dict[int, tuple[int, int]] = {}
    index = version = now = idle = 0
    while version * batch < len(latency):
        while buffer.room() > 0 and len(running) < slots:
            buffer.started(f"t{index}", buffer.published)
            running[index] = (now + latency[index % len(latency)], buffer.published)
            index += 1
        due = [number for number, (end, _) in running.items() if end <= now]
        for number in due:
            _, start = running.pop(number)
            first = buffer.published if late_first_token else start
            buffer.put(episode(number, first))
        taken = buffer.take_now()
        if taken is not None:
            assert all(e.staleness(version) <= staleness for e in taken)
            version += 1
            buffer.advance(version, published=version % min(every, staleness + 1) == 0)
        now += 1
        idle = 0 if taken or running else idle + 1
        assert idle < 3, "nothing runs and no batch can be taken: a deadlock"


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 6), staleness=st.integers(0, 3), slots=st.integers(1, 20), latency=latencies)
def test_correct_learns_from_all_it_dispatched(
    batch: int, staleness: int, slots: int, latency: list[int]
) -> None:
    buffer = EpisodeBuffer(batch=batch, staleness=staleness)
    total = 6 * batch
    running: dict[int, tuple[int, int]] = {}
    index = version = now = 0
    learned: list[int] = []
    while version < 6:
        while buffer.room() > 0 and len(running) < slots and index < total:
            buffer.started(f"t{index}", version)
            running[index] = (now + latency[index % len(latency)], version)
            index += 1
        # Admission in aggregate: at most (s + 1) batches are under way beyond what was learned.
        assert buffer.under_way <= (staleness + 1) * batch
        for number in [n for n, (end, _) in running.items() if end <= now]:
            _, start = running.pop(number)
            buffer.put(episode(number, start))
        if (taken := buffer.take_now()) is not None:
            learned += [e.dispatch_index for e in taken]
            version += 1
            buffer.advance(version)
        now += 1
        assert now < 100_000
    assert sorted(learned) == list(range(total))


def test_a_failed_episode_is_no_reward() -> None:
    with pytest.raises(ValueError, match="exactly when it did not fail"):
        Episode(
            episode_id="t0",
            dispatch_index=0,
            prompt_id="p",
            segments=(),
            turns=(),
            reward=0.0,
            stop_reason=StopReason.FAILED,
            failure=Failure("env", "E", "m"),
            start_version=0,
            temperature=1.0,
        )
