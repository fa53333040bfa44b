"""How much more than its limit a program gets, in CPU and in wall time: `python -m benchmarks.sandbox_time`.

Generated trees of processes, fork chains, thread pools, niced spinners and the programs of `hostile/clock.py`, at
every level that the machine offers, one after another. CPU seconds twice: as the session says, and as the
kernel's account of a control group says that this process, the supervisor and the program have used together.
Meant for a machine on which nothing else runs; the load is printed. Where other work cannot be stopped, a control
group with a large `cpu.shares` around the whole command comes near to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from agentrl_sandbox import Level, Limits, Result, SandboxUnavailable, open_sandbox
from agentrl_sandbox.local.cgroups import Group
from benchmarks.hostile.clock import CASES
from benchmarks.hostile.harness import own_group
from benchmarks.hostile.trees import CHAIN, DYING, POOL, SPINNERS, program

LIMIT_S = 0.6
LIMITS = Limits(time_s=LIMIT_S, memory_mb=256, processes=24, grace_s=0.3)


def programs(seeds: int) -> Iterator[tuple[str, str]]:
    """`(kind, code)` of programs that never end by themselves."""
    for case in CASES:
        if len(case.steps) == 1 and case.allowed.isdisjoint({"ok", "exited"}):
            yield "case", case.steps[0]
    for kind, code in (("chain", CHAIN), ("pool", POOL), ("spinners", SPINNERS), ("dying", DYING)):
        for _ in range(2):
            yield kind, code
    for seed in range(seeds):
        yield "tree", program(random.Random(seed))


def used(group: Group | None) -> float:
    """CPU seconds of a control group; 0 without one."""
    if group is None or group.usage is None:
        return 0.0
    text = group.usage.read_text()
    return int(text) / 1e9 if text[0].isdigit() else int(text.split()[1]) / 1e6


async def measure(level: Level, code: str, group: Group | None) -> tuple[Result, float, float]:
    """The result of a program at a level, the CPU seconds that the group counted, and wall seconds.

    Raises SandboxUnavailable where the machine does not offer the level.
    """
    sandbox = open_sandbox("local", max_level=level, min_level=level, zygotes=1)
    await sandbox.start()
    async with sandbox, await sandbox.open(LIMITS) as session:
        await session.run("1", 5.0)
        before, began = used(group), time.monotonic()
        result = await session.run(code)
        return result, used(group) - before, time.monotonic() - began


def describe(rows: list[tuple[float, float, float]]) -> str:
    """Median, nine tenths and most of each column, in times the limit."""
    parts = []
    for name, column in zip(("cpu", "cpu with all", "wall"), zip(*rows, strict=True), strict=True):
        ordered = sorted(value / LIMIT_S for value in column)
        high = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        parts.append(f"{name} {statistics.median(ordered):.2f} {high:.2f} {ordered[-1]:.2f}")
    return "   ".join(parts)


async def report(seeds: int, levels: list[Level]) -> None:
    """Measure and print."""
    print(f"user {os.geteuid()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, limit {LIMIT_S} s")
    with own_group(2560 << 20, 600) as group:
        for level in levels:
            rows: dict[str, list[tuple[float, float, float]]] = {}
            odd: list[dict[str, Any]] = []
            for kind, code in programs(seeds):
                try:
                    result, spent, wall = await measure(level, code, group)
                except SandboxUnavailable:
                    break
                rows.setdefault(kind, []).append((result.cpu_s, spent, wall))
                if result.status.value in ("ok", "infrastructure_failure") or result.cpu_s > 1.5 * LIMIT_S:
                    odd.append({"kind": kind, "status": result.status, "cpu_s": round(result.cpu_s, 2)})
            for kind, some in rows.items():
                print(f"{level.name.lower():11} {kind:9} {len(some):3}   {describe(some)}", flush=True)
            if rows:
                every = [row for some in rows.values() for row in some]
                print(f"{level.name.lower():11} {'all':9} {len(every):3}   {describe(every)}")
                print(f"{level.name.lower():11} over or not a time-out: {json.dumps(odd)}", flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12, help="generated trees")
    parser.add_argument("--levels", default="contained,namespaced,filtered")
    options = parser.parse_args()
    levels = [Level[name.upper()] for name in options.levels.split(",")]
    asyncio.run(report(options.seeds, levels))


if __name__ == "__main__":
    main()
