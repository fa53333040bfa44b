"""Time limits against generated programs: whoever works in them, no more CPU time than half over the limit.

What the sandbox says of CPU time is not believed: where this process may have a control group, the kernel's
account of that group is compared with the limit.
"""

import os
import random

import pytest

from agentrl_sandbox import Level, SandboxUnavailable, Status
from agentrl_sandbox.local.cgroups import Groups
from benchmarks.hostile.harness import Footprint, own_group
from benchmarks.hostile.trees import DYING, program
from benchmarks.sandbox_time import LIMIT_S, measure

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]

# What the host spends on a run and a session, the kernel on the dead, and a busy machine before it looks. Without
# namespaces also what the supervisor spends on looking.
OVERHEAD_S = {Level.CONTAINED: 0.6, Level.NAMESPACED: 0.6, Level.FILTERED: 1.0}
LATE_S = 0.2
"""A busy machine may let the supervisor wait for a core before it looks."""
PROGRAMS = 6


@pytest.mark.parametrize("seed", range(PROGRAMS + 1))
async def test_no_program_gets_more_than_half_over_its_limit(seed):
    # Fails when only the main threads of live processes are counted.
    code = DYING if seed == PROGRAMS else program(random.Random(seed))
    footprint = Footprint()
    with own_group(2560 << 20, 600) as group:
        for level in (Level.CONTAINED, Level.NAMESPACED, Level.FILTERED):
            most = 1.5 * LIMIT_S + OVERHEAD_S[level]
            try:
                result, spent, wall = await measure(level, code, group)
            except SandboxUnavailable:
                continue
            told = f"{level.name}: {spent:.2f} CPU s, {wall:.2f} s, {result.cpu_s:.2f} told, {result.status}"
            print(seed, told)
            told += "\n" + code
            ends = (Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.ERROR, Status.KILLED)
            assert result.status in ends, told
            assert result.cpu_s <= 1.5 * LIMIT_S + LATE_S, told
            assert spent <= most, told
    assert await footprint.growth() is None


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
