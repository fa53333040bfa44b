"""`agentrl sandbox`: what this machine can isolate, one program, a server for others, a measurement."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from agentrl.cli.command import add_command
from agentrl.config.ranges import number
from agentrl.config.settings import Memory, ProgramTime

EPILOG = """\
examples:
  agentrl sandbox doctor                         what this machine can do, and how to get more
  agentrl sandbox run program.py --timeout 5     run one file in the strongest jail there is
  echo 'print(1)' | agentrl sandbox run -        or what comes in
  agentrl sandbox serve --port 8770              a pool for other machines
  agentrl sandbox bench --quick                  latency and CPU time on this machine
"""


_HOLDS = {
    "contained": "memory, processes and CPU time are limited by control groups",
    "namespaced": "a private root and network; memory is looked at ten times a second",
    "filtered": "no private root: the host's file names are seen, and it is used only when asked for",
}


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    from agentrl_sandbox.server import add_flags

    parser = add_command(subparsers, "sandbox", "isolated Python: doctor, run, serve, bench", EPILOG)
    parser.set_defaults(handler=lambda options: parser.print_help() or 2)
    commands = parser.add_subparsers(title="commands", metavar="{doctor,run,serve,bench}")
    doctor_parser = commands.add_parser("doctor", help="levels of isolation on this machine")
    doctor_parser.add_argument("--docker", action="store_true", help="try the Docker engine too")
    doctor_parser.add_argument("--json", action="store_true", help="print JSON")
    doctor_parser.set_defaults(handler=doctor)
    run_parser = commands.add_parser("run", help="run one file")
    run_parser.add_argument("file", help="a Python file, or - for standard input")
    run_parser.add_argument("--timeout", type=number(ProgramTime), default=10.0, help="seconds")
    run_parser.add_argument("--memory-mb", type=number(Memory), default=512)
    run_parser.add_argument("--stdin", default="", help="text for the program's standard input")
    _add_backend(run_parser)
    run_parser.set_defaults(handler=run)
    serve_parser = commands.add_parser("serve", help="offer a sandbox over HTTP")
    add_flags(serve_parser)
    _add_backend(serve_parser)
    serve_parser.set_defaults(handler=serve)
    bench_parser = commands.add_parser("bench", help="measure latency and CPU time")
    bench_parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    _add_backend(bench_parser)
    bench_parser.set_defaults(handler=bench)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=("local", "docker"), default="local")
    parser.add_argument("--libraries", default="", help="packages for programs, e.g. numpy,sympy")
    parser.add_argument(
        "--min-level", default=None, help="refuse below: filtered, namespaced (default), contained, virtual"
    )
    parser.add_argument("--allow-unsafe", action="store_true", help="run without isolation if there is none")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    libraries = tuple(name for name in options.libraries.split(",") if name)
    return {"libraries": libraries} if libraries else {}


def _open(options: argparse.Namespace, **more: Any) -> Any:
    from agentrl_sandbox import open_sandbox

    return open_sandbox(
        options.backend,
        min_level=options.min_level,
        allow_unsafe=options.allow_unsafe,
        **_settings(options),
        **more,
    )


def doctor(options: argparse.Namespace) -> int:
    """Try every level and say what held, what did not, and what to do about it."""
    report = asyncio.run(_examine(options.docker))
    if options.json:
        print(json.dumps(report))
    else:
        print(f"strongest level: {report['level'] or 'none'} (the least that runs use: {report['least']})")
        for row in report["levels"]:
            mark = "yes" if row["works"] else "no "
            print(f"  {mark}  {row['level']:<11} {row['detail']}")
        for line in [*report["sessions"], *report["advice"]]:
            print(line)
    return 0 if report["level"] else 1


async def _examine(docker: bool) -> dict[str, Any]:
    from agentrl_sandbox import Level, SandboxError, open_sandbox

    rows, strongest, advice = [], None, []
    for level in (Level.CONTAINED, Level.NAMESPACED, Level.FILTERED):
        name = level.name.lower()
        sandbox = open_sandbox("local", max_level=level, min_level=level, zygotes=1)
        try:
            async with sandbox:
                detail = f"canaries ran and were contained; {_HOLDS[name]}"
                rows.append({"level": name, "works": True, "detail": detail})
                strongest = strongest or name
        except SandboxError as error:
            why, _, how = str(error).partition("How to get there: ")
            rows.append({"level": name, "works": False, "detail": why.strip()})
            if how and f"How to get there: {how}" not in advice:
                advice.append(f"How to get there: {how}")
    if docker:
        try:
            async with open_sandbox("docker") as sandbox:
                rows.append({"level": "docker", "works": True, "detail": sandbox.describe()})
        except SandboxError as error:
            rows.append({"level": "docker", "works": False, "detail": str(error)})
    return {
        "level": strongest,
        "least": Level.NAMESPACED.name.lower(),
        "levels": rows,
        "sessions": _about_sessions(),
        "advice": advice,
    }


def _about_sessions() -> list[str]:
    """What holds at every level, in sentences."""
    from agentrl_sandbox.crowd import Crowd

    return [
        f"programs at once: {Crowd().places} (max_running); more wait, and their limits do not run meanwhile",
        f"CPU time without control groups: {_clock()}",
        _quotas(),
        "not held apart: locks (flock) on files that all sessions read can carry signs from one to another",
        "programs have no network, no keyboard and no packages but those of libraries=",
    ]


def _quotas() -> str:
    """Whether what the kernel counts by user is counted by session."""
    counted = "pages of pipes, descriptors under way, epoll watches"
    if os.geteuid() == 0:
        return f"each session is a user of its own (where users can be mapped) for quotas: {counted}"
    return f"not held apart, because this user may map no others: the kernel's quotas of {counted}"


def _clock() -> str:
    """How CPU time is counted where no control group does it."""
    from agentrl_sandbox.inside.meter import open_clock

    descriptor, strictness = open_clock(), Path("/proc/sys/kernel/perf_event_paranoid")
    if descriptor >= 0:
        os.close(descriptor)
        if int(strictness.read_text()) <= 2:  # what root may have here, a session may not
            return "exact, by a clock of the kernel that children inherit"
    return "estimated from looks at /proc (exact with kernel.perf_event_paranoid at 2 or less)"


def run(options: argparse.Namespace) -> int:
    """Run one program; exit 0 when it ran to its end, else 1."""
    from agentrl_sandbox import Limits

    try:
        code = sys.stdin.read() if options.file == "-" else Path(options.file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: cannot read {options.file}: {error}", file=sys.stderr)
        return 2
    limits = Limits(time_s=options.timeout, memory_mb=options.memory_mb)

    async def once() -> tuple[str, Any]:
        async with _open(options, limits=limits) as sandbox, await sandbox.open() as session:
            return sandbox.describe(), await session.run(code, stdin=options.stdin)

    described, result = asyncio.run(once())
    if options.json:
        print(json.dumps({**dataclasses.asdict(result), "sandbox": described}))
    else:
        print(described, file=sys.stderr)
        print(result.text)
        print(f"{result.status}, {result.wall_s:.3f} s, {result.cpu_s:.3f} CPU s", file=sys.stderr)
    return 0 if result.ok else 1


def serve(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from agentrl_sandbox.server import FLAGS
    from agentrl_sandbox.server import serve as serve_forever

    def announce(url: str, description: str) -> None:
        if options.json:
            print(json.dumps({"url": url, "sandbox": description}), flush=True)
        else:
            print(f"{description}\nlistening on {url}", flush=True)

    asyncio.run(
        serve_forever(
            options.backend,
            min_level=options.min_level,
            allow_unsafe=options.allow_unsafe,
            settings=_settings(options),
            announce=announce,
            **{name: getattr(options, name) for name in FLAGS},
        )
    )
    return 0


def bench(options: argparse.Namespace) -> int:
    """Measure on this machine; `benchmarks/sandbox.py` of the repository sets it beside others."""
    from agentrl_sandbox.bench import CpuMeter, measure_sandbox

    meter = CpuMeter()

    async def measure() -> dict[str, Any]:
        async with _open(options) as sandbox:
            return await measure_sandbox(sandbox, meter, quick=options.quick)

    with meter.attached():
        rows = asyncio.run(measure())
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{rows.pop('describe')}\nCPU time by: {meter.source}")
    for name, row in rows.items():
        print(f"{name:<24} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0
