"""Time limits against generated programs: whoever works in them, no more CPU time than half over the limit.

What the sandbox says of CPU time is not believed: where this process may have a control group, the kernel's
account of that group is compared with the limit.
"""

import os
import random
import time

import pytest

from agentrl_sandbox import Level, Limits, SandboxUnavailable, Status, open_sandbox
from agentrl_sandbox.hostile.harness import Footprint, own_group
from agentrl_sandbox.local.cgroups import Groups

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]

LIMIT_S = 0.6
LIMITS = Limits(time_s=LIMIT_S, memory_mb=256, processes=24, grace_s=0.3)
# What the host spends on a run and a session, the kernel on the dead, and a busy machine before it looks. Without
# namespaces also what the supervisor spends on looking.
OVERHEAD_S = {Level.CONTAINED: 0.6, Level.NAMESPACED: 0.6, Level.FILTERED: 1.0}
PROGRAMS = 6

_HEAD = """
import hashlib, os, signal, threading, time
def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
def fork(work):
    try:
        pid = os.fork()
    except OSError:
        time.sleep(0.002); return None
    if pid == 0:
        try: work()
        finally: os._exit(0)
    return pid
"""


def program(rng: random.Random) -> str:
    """A tree of processes and threads that works, sleeps, is born and dies in a way of its own."""
    lines = [_HEAD]
    if rng.random() < 0.4:
        lines.append("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    if rng.random() < 0.3:
        lines.append("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    if rng.random() < 0.4:
        lines.append(f"os.sched_setaffinity(0, {{{rng.choice(sorted(os.sched_getaffinity(0)))}}})")
    depth, width = rng.randint(1, 3), rng.randint(1, 4)
    piece = rng.choice((0.003, 0.01, 0.05, 1000.0))
    lines += [
        "def leaf():",
        f"    os.nice({rng.choice((0, 0, 10, 19))})",
        f"    threads = [threading.Thread(target=spin, args=({piece},)) for _ in range({rng.randint(0, 3)})]",
        "    [thread.start() for thread in threads]",
        f"    time.sleep({rng.choice((0, 0, 0.005))}); spin({piece})",
        "def level_0(): leaf()",
    ]
    for level in range(1, depth + 1):
        wait = rng.choice(("pass", "[os.waitpid(pid, 0) for pid in pids if pid]", "spin(0.005)"))
        lines += [
            f"def level_{level}():",
            f"    pids = [fork(level_{level - 1}) for _ in range({width if level == 1 else 2})]",
            f"    try: {wait}",
            "    except OSError: pass",
        ]
    lines += [
        "while True:",
        f"    level_{depth}()",
        f"    {rng.choice(('pass', 'time.sleep(0.01)', 'spin(0.01)'))}",
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(PROGRAMS))
async def test_no_program_gets_more_than_half_over_its_limit(seed):
    # Fails when only the main threads of live processes are counted.
    code = program(random.Random(seed))
    footprint = Footprint()
    with own_group(2560 << 20, 600) as group:
        for level in (Level.CONTAINED, Level.NAMESPACED, Level.FILTERED):
            most = 1.5 * LIMIT_S + OVERHEAD_S[level]
            try:
                result, spent, told = await _measure(level, code, group)
                if level is not Level.CONTAINED and max(spent, result.cpu_s) > most:
                    # On a busy machine the kernel may hold whoever looks into /proc (docs/log.md): once more.
                    print(seed, "again after", told.splitlines()[0])
                    result, spent, told = await _measure(level, code, group)
            except SandboxUnavailable:
                continue
            print(seed, told.splitlines()[0])
            ends = (Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.ERROR, Status.KILLED)
            assert result.status in ends, told
            assert result.cpu_s <= most, told
            assert spent <= most, told
    assert await footprint.growth() is None


async def _measure(level, code, group):
    """The result of a program, the CPU seconds that the group counted, and both in words."""
    sandbox = open_sandbox("local", max_level=level, min_level=level, zygotes=1)
    await sandbox.start()
    async with sandbox, await sandbox.open(LIMITS) as session:
        await session.run("1", 5.0)
        before, began = _used(group), time.monotonic()
        result = await session.run(code)
        spent, wall = _used(group) - before, time.monotonic() - began
    told = f"{level.name}: {spent:.2f} CPU s, {wall:.2f} s, {result.cpu_s:.2f} told, {result.status}\n{code}"
    return result, spent, told


def _used(group):
    if group is None or group.usage is None:
        return 0.0
    text = group.usage.read_text()
    return int(text) / 1e9 if text[0].isdigit() else int(text.split()[1]) / 1e6


def test_the_account_of_a_group_is_found_where_groups_can_be_made():
    groups, why = Groups.find()
    if groups is None:
        pytest.skip(why)
    try:
        group = groups.take(64 << 20, 16)
        descriptor = group.open_usage()
        assert descriptor >= 0
        os.close(descriptor)
    finally:
        groups.close()
