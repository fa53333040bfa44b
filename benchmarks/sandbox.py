"""The sandbox beside what people use instead, in one run: `python -m benchmarks.sandbox`.

Rounds are interleaved; medians and CPU milliseconds per operation. A peer that is not installed is skipped
with its reason: subprocess is always there; `jupyter_client` with `ipykernel`, `smolagents` and `llm-sandbox`
(bubblewrap) are used where this Python can import them. The last line is JSON.

    python -m benchmarks.sandbox --libraries numpy,sympy       # numbers with numpy and sympy warm
    python -m benchmarks.sandbox --soak 600                    # random hostile mix, with a search for leaks
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl_sandbox import Limits, Sandbox, open_sandbox
from agentrl_sandbox.bench import (
    EPISODE,
    SYMPY,
    CpuMeter,
    measure_many_sessions,
    measure_sandbox,
    summary,
)
from benchmarks.hostile import CASES
from benchmarks.hostile.harness import Footprint, endure

ROUNDS = 5
# The soak leaves out what takes many seconds by design.
_SLOW = {4, 7, 52, 52.5, 53, 57, 59, 64, 67, 86}


class Peer:
    """Something else that runs Python for agents: an episode of five calls, and one fresh sympy call."""

    def __init__(self, name: str, isolated: bool, episode: Callable[[], None], fresh: Callable[[str], None]):
        self.name, self.isolated, self.episode, self.fresh = name, isolated, episode, fresh


def subprocess_peer() -> Peer:
    """`python -c`, replaying the history: no isolation at all."""

    def fresh(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)

    def episode() -> None:
        history = ""
        for code in EPISODE:
            history += code + "\n"
            fresh(history)

    return Peer("subprocess (not isolated)", False, episode, fresh)


def jupyter_peer() -> Peer:
    """A Jupyter kernel per session."""
    from jupyter_client.manager import start_new_kernel

    def run(codes: tuple[str, ...]) -> None:
        manager, client = start_new_kernel(kernel_name="python3")
        try:
            for code in codes:
                client.execute_interactive(code, timeout=60, output_hook=lambda message: None)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)

    return Peer("Jupyter kernel (not isolated)", False, lambda: run(EPISODE), lambda code: run((code,)))


def smolagents_peer() -> Peer:
    """smolagents' local executor: an interpreter of its own in this process."""
    from smolagents.local_python_executor import LocalPythonExecutor

    def run(codes: tuple[str, ...]) -> None:
        executor = LocalPythonExecutor(additional_authorized_imports=["sympy"])
        executor.send_tools({})
        for code in codes:
            executor(code)

    return Peer("smolagents local (in process)", False, lambda: run(EPISODE), lambda code: run((code,)))


def llm_sandbox_peer() -> Peer:
    """llm-sandbox over bubblewrap, replaying the history."""
    from llm_sandbox import SandboxBackend, SandboxSession

    def run(codes: tuple[str, ...]) -> None:
        with SandboxSession(
            backend=SandboxBackend.BUBBLEWRAP, lang="python", skip_environment_setup=True
        ) as session:
            history = ""
            for code in codes:
                history += code + "\n"
                done = session.run(history)
                if done.exit_code != 0:
                    raise RuntimeError(f"exit {done.exit_code}: {done.stderr[-200:]}")

    return Peer("llm-sandbox bubblewrap", True, lambda: run(EPISODE), lambda code: run((code,)))


def peers() -> tuple[list[Peer], dict[str, str]]:
    """Those that can be had, and why the others cannot."""
    found, skipped = [], {}
    for name, make in (
        ("subprocess", subprocess_peer),
        ("jupyter", jupyter_peer),
        ("smolagents", smolagents_peer),
        ("llm-sandbox", llm_sandbox_peer),
    ):
        try:
            peer = make()
            peer.episode()
            found.append(peer)
        except Exception as error:
            skipped[name] = f"{type(error).__name__}: {error}"[:120]
    return found, skipped


def measure_peers(meter: CpuMeter, rounds: int, *, sympy: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Interleaved rounds over all peers."""
    found, skipped = peers()
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {peer.name: {} for peer in found}
    for _ in range(rounds):
        for peer in found:
            for what, operation in (
                ("episode", peer.episode),
                ("fresh_sympy", lambda p=peer: p.fresh(SYMPY)),
            ):
                if what == "fresh_sympy" and not sympy:
                    continue
                cpu, began = meter.read(), time.perf_counter()
                try:
                    operation()
                except Exception as error:
                    skipped[f"{peer.name}, {what}"] = f"{type(error).__name__}: {error}"[:120]
                    continue
                cost = (time.perf_counter() - began, meter.read() - cpu)
                rows[peer.name].setdefault(what, []).append(cost)
    table = {
        name: {
            what: {
                "p50_ms": round(1e3 * statistics.median(wall for wall, _ in costs), 1),
                "cpu_ms": round(1e3 * statistics.median(cpu for _, cpu in costs), 1),
            }
            for what, costs in kinds.items()
        }
        for name, kinds in rows.items()
    }
    return table, skipped


async def soak(seconds: float, meter: CpuMeter, seed: int) -> dict[str, Any]:
    """A random hostile mix; CPU per good call at the start and at the end, and what was left over."""
    rng = random.Random(seed)
    cases = [case for case in CASES if case.needs is None and case.number not in _SLOW]
    async with open_sandbox(zygotes=1) as sandbox:
        await (await sandbox.open()).close()
        footprint = Footprint()
        first = await _good_calls(sandbox, meter)
        end, count, complaints = time.monotonic() + seconds, 0, []
        while time.monotonic() < end:
            case = rng.choice(cases)
            complaint = await endure(sandbox, case)
            count += 1
            if complaint:
                complaints.append(f"{case.id}: {complaint[:200]}")
        last = await _good_calls(sandbox, meter)
        left = await footprint.growth()
    return {
        "seconds": seconds,
        "programs": count,
        "complaints": complaints[:10],
        "cpu_ms_first": first,
        "cpu_ms_last": last,
        "ratio": round(last / first, 3),
        "left_over": left,
    }


async def _good_calls(sandbox: Any, meter: CpuMeter) -> float:
    """Median over rounds of CPU milliseconds of an episode."""
    costs = []
    for _ in range(7):
        cpu = meter.read()
        for _ in range(20):
            async with await sandbox.open() as session:
                for code in EPISODE:
                    await session.run(code)
        costs.append(1e3 * (meter.read() - cpu) / 20)
    return round(statistics.median(costs), 2)


async def ours(options: argparse.Namespace, meter: CpuMeter, libraries: tuple[str, ...]) -> dict[str, Any]:
    """The local jail's rows, with these libraries warm."""
    more = {"library_path": options.library_path} if options.library_path and libraries else {}
    async with open_sandbox(libraries=libraries, **more) as sandbox:
        rows = await measure_sandbox(sandbox, meter, quick=options.quick)
        for count in (16, 256):  # here and not in every backend's rows: 256 containers are no small thing
            calls = count * (10 if options.quick else 100)
            rows[f"calls_in_{count}_sessions"] = await measure_many_sessions(sandbox, meter, count, calls)
        if options.sessions and not libraries:
            rows["live_sessions"] = await measure_memory(sandbox, options.sessions)
    return rows


async def measure_memory(sandbox: Sandbox, count: int) -> dict[str, float]:
    """MiB that `count` live sessions take, by what the kernel says is available before and after."""
    before = _available()
    sessions = []
    try:
        began = time.perf_counter()
        while len(sessions) < count:
            sessions.append(await sandbox.open(Limits(memory_mb=64)))
        wall = time.perf_counter() - began
        for session in sessions:
            await session.run("x = 1")
        used = before - _available()
        return {
            "sessions": count,
            "total_mib": round(used),
            "mib_each": round(used / count, 2),
            "open_s": round(wall, 1),
        }
    finally:
        await asyncio.gather(*(session.close() for session in sessions))


def _available() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", default="", help="comma-separated, e.g. numpy,sympy")
    parser.add_argument("--library-path", default="", help="a directory that has them already")
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--sessions", type=int, default=0, help="measure the memory of this many live sessions"
    )
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    meter = CpuMeter()
    with meter.attached():
        report: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "cpu_by": meter.source}
        report["local"] = asyncio.run(ours(options, meter, ()))
        show("local", report["local"])
        libraries = tuple(name for name in options.libraries.split(",") if name)
        if libraries:
            report["local_libraries"] = asyncio.run(ours(options, meter, libraries))
            show(f"local, {'+'.join(libraries)}", report["local_libraries"])
        if not options.no_peers:
            rounds = 2 if options.quick else ROUNDS
            table, skipped = measure_peers(meter, rounds, sympy=_has_sympy())
            report["peers"], report["skipped"] = table, skipped
            for name, rows in table.items():
                show(name, rows)
            for name, reason in skipped.items():
                print(f"{name:32} skipped: {reason}")
        if options.soak:
            report["soak"] = asyncio.run(soak(options.soak, meter, seed=1))
            show("soak", {"soak": report["soak"]})
    print(json.dumps(report))


def _has_sympy() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import sympy"], capture_output=True, check=False).returncode
        == 0
    )


def show(name: str, rows: dict[str, Any]) -> None:
    """One line per row."""
    for what, row in rows.items():
        text = "  ".join(f"{key} {value}" for key, value in row.items()) if isinstance(row, dict) else row
        print(f"{name:32} {what:24} {text}", flush=True)


__all__ = ["main", "summary"]

if __name__ == "__main__":
    main()
