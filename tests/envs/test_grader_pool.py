r"""The processes of the symbolic path: nothing an answer does can hang, starve or crash the caller."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from agentrl_envs import Grader, Verdict
from agentrl_envs.graders.pool import Pool, PoolLimits

ADVERSARIAL = [
    r"10^{10^{10}}",
    r"\dfrac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}",  # not even math-verify's own alarm stops this one
    r"10000000!",
    r"\binom{1000000}{500000}+1",
    r"\sum_{i=1}^{1000000} \frac{1}{i}",
    r"(x+y+z+w+1)^{40}+1",
    "(" * 50 + "2" + ")" * 50 + "^x",
    r"\frac{1}{" * 30 + "x" + "}" * 30,
    "1" * 100_000,
    "x+" * 900 + "1",
    r"\int_0^1 e^{-x^2} \sin(x) \ln(x) dx",
    "__import__('os').system('touch /tmp/agentrl-grader-was-here')",
]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_adversarial_answers_get_a_typed_verdict():
    grader = Grader(limits=PoolLimits(time_s=1.0), processes=2)
    try:
        for answer in ADVERSARIAL:
            verdict = grader.grade_sync(f"\\boxed{{{answer}}}", r"x^2+\sqrt{3}")
            assert verdict is Verdict.WRONG or verdict.undecided, answer[:40]
        assert grader.grade_sync(r"\boxed{\sqrt{12}}", r"2\sqrt{3}") is Verdict.RIGHT
    finally:
        grader.close()
    assert not os.path.exists("/tmp/agentrl-grader-was-here")


@pytest.mark.slow
def test_a_tower_of_powers_times_out_and_the_next_answer_is_graded():
    # Fails if the pool trusts an alarm in the child: the power is one call into C, uninterruptible.
    grader = Grader(limits=PoolLimits(time_s=0.5), processes=1)
    try:
        assert grader.grade_sync(r"\boxed{5^{5^{5^{5^5}}}}", "x+1") is Verdict.TIMED_OUT
        assert grader.grade_sync(r"\boxed{1+x}", "x+1") is Verdict.RIGHT
    finally:
        grader.close()


async def test_the_event_loop_goes_on_while_an_answer_is_compared(grader: Grader):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answers = [f"\\boxed{{{i}+\\sqrt{{x}}}}" for i in range(20)]
    verdicts = await asyncio.gather(*(grader.grade(answer, "x") for answer in answers))
    ticking.cancel()
    assert verdicts == [Verdict.WRONG] * 20
    assert ticks >= 1


def test_it_works_from_threads_and_inside_other_alarms(grader: Grader):
    verdicts: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda i=i: verdicts.append(grader.grade_sync(f"\\boxed{{{i}+x}}", f"x+{i}")))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == [Verdict.RIGHT] * 8


@contextlib.contextmanager
def started(time_s: float) -> Iterator[Pool]:
    """A pool of one process that has compared something."""
    pool = Pool(PoolLimits(time_s=time_s), processes=1)
    try:
        assert pool.submit("x+1", "1+x").result(120) is Verdict.RIGHT
        yield pool
    finally:
        pool.close()


@pytest.mark.slow
def test_a_child_that_dies_is_replaced():
    with started(20.0) as pool:
        first = _children(pool)
        for pid in first:
            os.kill(pid, 9)
        assert pool.submit("x+2", "2+x").result(120) is Verdict.RIGHT
        assert not first & _children(pool)


@pytest.mark.slow
def test_children_that_are_killed_again_and_again_cost_no_verdict():
    with started(60.0) as pool:
        heavy = "+".join(f"{k}x^{{{k}}}" for k in range(2, 42))
        pending = pool.submit(heavy, heavy + "+0")
        for _ in range(3):
            before = _wait_for_child(pool, set())
            os.kill(next(iter(before)), 9)
            _wait_for_child(pool, before)
        assert not pending.result(120).failed


@pytest.mark.slow
def test_a_child_that_the_answer_crashes_makes_it_a_wrong_answer():
    # Fails if every death of a child is the machine's fault: an answer could leave the table by crashing it.
    with started(60.0) as pool:
        pending = pool.submit(r"5^{5^{5^{5^5}}}", "x+1")
        before: set[int] = set()
        for _ in range(2):
            time.sleep(0.3)  # the request must have begun
            before = _wait_for_child(pool, before)
            os.kill(next(iter(before)), signal.SIGSEGV)
        assert pending.result(120).undecided


def _wait_for_child(pool: Pool, before: set[int]) -> set[int]:
    deadline = time.monotonic() + 60
    while not (new := _children(pool) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    return new


@pytest.mark.slow
def test_a_tower_that_is_kept_from_the_processor_is_still_the_answer_s_own_doing():
    # Fails if the limits, or the back-stop, count wall time: the machine would be blamed for the answer.
    with started(0.3) as pool:
        (child,) = _children(pool)
        pending = [pool.submit(r"5^{5^{5^{5^5}}}", "x+1")]
        time.sleep(0.05)
        os.kill(child, signal.SIGSTOP)
        time.sleep(2.0)  # several times the limit
        assert not pending[0].done()
        os.kill(child, signal.SIGCONT)
        pending += [pool.submit(tower, "x+1") for tower in (r"9^{9^{9^{9}}}+x", r"x+7^{7^{7^{7}}}")]
        assert [one.result(120) for one in pending] == [Verdict.TIMED_OUT] * 3
        assert pool.submit("x+2", "2+x").result(120) is Verdict.RIGHT


@pytest.mark.slow
def test_an_honest_answer_waits_for_the_processor_without_harm():
    with started(1.5) as pool:
        (child,) = _children(pool)
        os.kill(child, signal.SIGSTOP)
        pending = [pool.submit(f"{i}+\\sqrt{{x}}", f"\\sqrt{{x}}+{i}") for i in range(3)]
        time.sleep(2.0)  # longer than the limit
        os.kill(child, signal.SIGCONT)
        assert [one.result(120) for one in pending] == [Verdict.RIGHT] * 3


@pytest.mark.slow
def test_when_the_server_dies_another_is_started():
    with started(20.0) as pool:
        server = pool._state["server"]._process.pid
        os.kill(server, 9)
        assert pool.submit("x+3", "3+x").result(120) is Verdict.RIGHT


def _children(pool: Pool) -> set[int]:
    server = pool._state["server"]._process.pid
    with open(f"/proc/{server}/task/{server}/children", encoding="ascii") as pids:
        return {int(pid) for pid in pids.read().split()}


@pytest.mark.slow
def test_closing_leaves_no_process_behind():
    pool = Pool(PoolLimits(), processes=2)
    pool.submit("x+1", "1+x").result(120)
    server = pool._state["server"]._process.pid
    children = _children(pool)
    pool.close()
    pool.close()
    deadline = time.monotonic() + 30
    left = {server, *children}
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if _runs(pid)}
        time.sleep(0.02)
    assert not left
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("1", "2")


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as fields:
        return fields.read().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_memory_is_bounded():
    grader = Grader(limits=PoolLimits(time_s=4.0, memory_mb=64), processes=1)
    try:
        verdict = grader.grade_sync(r"\boxed{3^{3^{20}}+x}", "x+1")
        assert verdict is Verdict.WRONG or verdict.undecided
        assert grader.grade_sync(r"\boxed{1+x}", "x+1") is Verdict.RIGHT
    finally:
        grader.close()


def _burn(stop) -> None:
    while not stop.is_set():
        sum(range(10_000))


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as fields:
        return int(fields.read().split()[0]) / 1e9


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_busy_machine_changes_no_verdict():
    # Fails if limits count wall time: `_cpu_s = lambda pid: time.monotonic()` in pool.py.
    # The parser is slow at long sums.
    heavy = [("+".join(f"{k + i}x^{{{k}}}" for k in range(2, 42)), "x+1") for i in range(4)]
    pool = Pool(PoolLimits(time_s=60.0), processes=1)
    pool.submit("x+1", "1+x").result(120)
    (child,) = _children(pool)
    before = _cpu_s(child)
    quiet = pool.submit(*heavy[0]).result(120)
    needed = _cpu_s(child) - before
    pool.close()
    pool = Pool(PoolLimits(time_s=1.5 * needed + 0.3), processes=1)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    count = os.cpu_count() or 2
    burners = [context.Process(target=_burn, args=(stop,), daemon=True) for _ in range(count)]
    try:
        pool.submit("x+1", "1+x").result(120)
        for burner in burners:
            burner.start()
        time.sleep(2)
        busy = [pool.submit(*pair).result(120) for pair in heavy[1:]]
        endless = pool.submit(r"5^{5^{5^{5^5}}}", "x+1").result(120)
    finally:
        stop.set()
        for burner in burners:
            burner.join(60)
        pool.close()
    assert needed > 0.2, "too quick to tell wall time from own time"
    assert quiet is Verdict.WRONG
    assert busy == [quiet] * 3
    assert endless is Verdict.TIMED_OUT
