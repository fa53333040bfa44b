"""Measures a sandbox by its public interface: latency and CPU time per call, per session, per fresh run.

CPU time is that of a control group around this process and all it starts (root), else of this process and
the children it can see. Knows nothing of backends or peers; `benchmarks/sandbox.py` sets them side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from .interface import Sandbox
from .result import Status

EPISODE = ("total = 0", "total += 3 * 7", "total += sum(range(10))", "print(total)", "total")
SYMPY = "import sympy\nx = sympy.Symbol('x')\nprint(sympy.integrate(sympy.sin(x) ** 2 * x, x))"


class CpuMeter:
    """Seconds of CPU time of this process and all below it, by a control group where that can be had."""

    def __init__(self) -> None:
        self.source = "this process and the children it waited for"
        self._file: Path | None = None

    @contextlib.contextmanager
    def attached(self) -> Iterator[CpuMeter]:
        """Move into a group of our own for the time of the measurement."""
        place = Path("/sys/fs/cgroup/cpuacct")
        group = place / f"agentrl-bench-{os.getpid()}"
        try:
            group.mkdir()
            (group / "cgroup.procs").write_text("0")
            self._file, self.source = group / "cpuacct.usage", "control group"
        except OSError:
            self._file = None
        try:
            yield self
        finally:
            if self._file is not None:
                self._file = None
                with contextlib.suppress(OSError):
                    (place / "cgroup.procs").write_text("0")
                    time.sleep(0.2)
                    group.rmdir()

    def read(self) -> float:
        """Seconds so far."""
        if self._file is not None:
            return int(self._file.read_text()) / 1e9
        times = os.times()
        return sum(times[:4])


def summary(walls: list[float], cpu_s: float) -> dict[str, float]:
    """Milliseconds: median, 99th percentile, minimum of wall times; CPU per operation; operations."""
    ordered = sorted(walls)
    return {
        "p50_ms": round(1e3 * statistics.median(ordered), 3),
        "p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "min_ms": round(1e3 * ordered[0], 3),
        "cpu_ms": round(1e3 * cpu_s / len(ordered), 3),
        "operations": len(ordered),
    }


async def measure(
    meter: CpuMeter, operation: Callable[[], Awaitable[Any]], count: int, *, at_once: int = 1
) -> dict[str, float]:
    """Run `operation` `count` times, `at_once` of them together."""
    walls: list[float] = []
    left = count

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await operation()
            walls.append(time.perf_counter() - began)

    cpu, began = meter.read(), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(at_once)))
    wall = time.perf_counter() - began
    return {**summary(walls, meter.read() - cpu), "per_second": round(count / wall, 1)}


async def measure_sandbox(sandbox: Sandbox, meter: CpuMeter, *, quick: bool = False) -> dict[str, Any]:
    """The rows of the table for one sandbox."""
    scale = 0.1 if quick else 1.0

    def times(count: int) -> int:
        return max(5, int(count * scale))

    await sandbox.start()
    rows: dict[str, Any] = {"describe": sandbox.describe()}
    async with await sandbox.open() as session:
        await measure(meter, lambda: session.run("x = 1\nx"), times(100))
        rows["call_in_live_session"] = await measure(meter, lambda: session.run("x = 1\nx"), times(2000))
    rows["calls_in_64_sessions"] = await measure_many_sessions(sandbox, meter, 64, times(6400))

    async def open_and_close() -> None:
        await (await sandbox.open()).close()

    rows["open_and_close"] = await measure(meter, open_and_close, times(200))
    rows["episode_of_five_calls"] = await measure(meter, lambda: _episode(sandbox), times(200))
    async with await sandbox.open(stateless=True) as fresh:
        rows["fresh_run"] = await measure(meter, lambda: fresh.run("1 + 1"), times(200))
    several = [await sandbox.open(stateless=True) for _ in range(8)]
    lanes = iter(several * (times(400) // 8 + 1))
    rows["fresh_run_8_at_once"] = await measure(
        meter, lambda: next(lanes).run("1 + 1"), times(400), at_once=8
    )
    for session in several:
        await session.close()
    async with await sandbox.open(stateless=True) as fresh:
        if (await fresh.run("import sympy, numpy")).status is Status.OK:
            rows["fresh_sympy"] = await measure(meter, lambda: fresh.run(SYMPY), times(100))
    return rows


async def _episode(sandbox: Sandbox) -> None:
    async with await sandbox.open() as session:
        *before, last = EPISODE
        for code in before:
            await session.run(code)
        result = await session.run(last)
        if result.value != "66":
            raise RuntimeError(f"an episode came to {result}")


async def measure_many_sessions(
    sandbox: Sandbox, meter: CpuMeter, count: int, calls: int
) -> dict[str, float]:
    """`calls` calls from `count` sessions at once."""
    sessions = [await sandbox.open() for _ in range(count)]
    turn = iter(range(10**9))
    try:
        return await measure(
            meter, lambda: sessions[next(turn) % count].run("x = 1\nx"), calls, at_once=count
        )
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
