"""Hostile programs by user and level, for this commit or an older one: how many are wholly right, partly, wrong.

    python scripts/hostile_table.py run --out after.jsonl                        # this checkout, as root and as 65534
    python scripts/hostile_table.py run --package /tmp/old/sandbox --out before.jsonl    # these programs, older code
    python scripts/hostile_table.py show before.jsonl after.jsonl

Wholly right: nothing is wrong with the outcome, the session and its neighbour are well, nothing is left over.
Wrong: it got out, hurt a neighbour, left something, made the host raise, ended as an infrastructure failure, or
used more than 1.5 times its CPU time by the kernel's account (root and uid 65534; beside what the host and two
sessions cost). Partly: it was contained, but the outcome is not told as it should be. Needs root to be both users.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[1] / "sandbox" / "agentrl_sandbox"
LEVELS = ("contained", "namespaced", "filtered")
OVERHEAD_S = 1.5
"""CPU seconds that two sessions, their host and what a busy machine takes may cost beside a program."""
CASE_LIMIT_S = 60.0
_ACCOUNT = "AGENTRL_HOSTILE_ACCOUNT"
_WRONG = ("it got out", "the planted secret", "the neighbour", "status infrastructure_failure", "left over")


def load(name: str, path: Path) -> ModuleType:
    """A module or package from a file, under any name."""
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def programs_against(package: Path) -> ModuleType:
    """This checkout's programs and harness, over the sandbox in `package`. Returns the harness."""
    sys.path[:0] = [str(package), str(HERE.parents[1])]
    importlib.import_module("agentrl_sandbox")
    if package.resolve() != HERE.parent:
        for name in ("cgroups", "canaries"):
            if importlib.util.find_spec(f"agentrl_sandbox.{name}") is None:
                continue
            # Before it had a folder for the local backend; its groups did not know their CPU time.
            old = importlib.import_module(f"agentrl_sandbox.{name}")
            new = load("hostile_cgroups", HERE / "local" / "cgroups.py") if name == "cgroups" else old
            sys.modules[f"agentrl_sandbox.local.{name}"] = new
    return importlib.import_module("benchmarks.hostile.harness")


def used() -> float:
    """CPU seconds of this process and all below it, by the kernel's account; 0 where there is none."""
    path = os.environ.get(_ACCOUNT)
    if not path:
        return 0.0
    text = Path(path).read_text()
    return int(text) / 1e9 if text[0].isdigit() else int(text.split()[1]) / 1e6


async def judge(harness: Any, sandbox: Any, case: Any) -> dict[str, Any]:
    """One program: the verdict, why, and its CPU seconds with everything around it."""
    footprint, before = harness.Footprint(), used()
    try:
        async with asyncio.timeout(CASE_LIMIT_S):
            why = await harness.endure(sandbox, case)
    except BaseException as error:  # whatever the host raises is a finding
        why = f"it got out: the host raised {type(error).__name__}: {error}"[:300]
    spent = used() - before
    left = await footprint.growth()
    if left and not why:
        why = f"left over: {left}"
    most = 1.5 * case.time_s * len(case.steps) + OVERHEAD_S
    if not why and spent > most:
        why = f"it got out: {spent:.1f} CPU seconds under a limit of {case.time_s:g} s"
    verdict = "right" if not why else "wrong" if any(word in why for word in _WRONG) else "partly"
    return {"verdict": verdict, "why": (why or "")[:200], "cpu_s": round(spent, 2)}


def wanted(cases: Iterable[Any], only: str, libraries: str | None) -> list[Any]:
    """Those that were asked for and whose library is there."""
    there = set(os.listdir(libraries)) if libraries else set()
    asked = {float(number) for number in only.split(",") if number}
    return [
        case
        for case in cases
        if (not asked or case.number in asked) and (case.needs is None or case.needs in there)
    ]


async def judge_all(harness: Any, level: str, only: str, done: set[str]) -> None:
    """All programs at one level, as this user, but those that are `done`."""
    from agentrl_sandbox import Level, open_sandbox
    from benchmarks.hostile import CASES

    libraries, bound = os.environ.get("AGENTRL_TEST_LIBRARIES"), Level[level.upper()]

    def opened() -> Any:
        return open_sandbox(
            "local", max_level=bound, min_level=bound, zygotes=1, library_path=libraries or None
        )

    sandbox = opened()
    try:
        await sandbox.start()
    except Exception as error:
        print(f"{level}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
        return
    for case in wanted(CASES, only, libraries):
        if f"{level}/{case.id}" in done:
            continue
        print(json.dumps({"began": f"{level}/{case.id}"}), flush=True)
        row = {"user": os.geteuid(), "level": level, "case": case.id, **await judge(harness, sandbox, case)}
        print(json.dumps(row), flush=True)
        if "the host raised" in row["why"]:
            await sandbox.close()
            sandbox = opened()
            await sandbox.start()
    await sandbox.close()


def run(options: argparse.Namespace) -> None:
    """Both users: this one here, uid 65534 in a process of its own."""
    package = Path(options.package).resolve()
    harness = programs_against(package)
    if options.child:
        done = set(sys.stdin.read().splitlines())
        for level in options.levels.split(","):
            asyncio.run(judge_all(harness, level, options.only, done))
        return
    with harness.own_group(3 << 30, 700) as group, open(options.out, "a") as out:
        if group is not None and group.usage is not None:
            os.environ[_ACCOUNT] = str(group.usage)
        for user in (os.geteuid(), 65534) if os.geteuid() == 0 else (os.geteuid(),):
            command = [sys.executable, __file__, "run", "--package", str(package), "--child", "--out", "-"]
            command += ["--levels", options.levels, "--only", options.only]
            if user != os.geteuid():
                command[:1] = [*f"setpriv --reuid {user} --regid {user} --clear-groups".split(), everybodys()]
            while (killed := _judge_until_killed(command, user, options.out)) is not None:
                row = {"user": user, "level": killed.partition("/")[0], "case": killed.partition("/")[2]}
                row |= {"verdict": "wrong", "why": "the host was killed", "cpu_s": 0.0}
                print(json.dumps(row), file=out, flush=True)


def _judge_until_killed(command: list[str], user: int, path: str) -> str | None:
    """Go on in a process of its own; the program at which that was killed, if it was."""
    seen = [json.loads(line) for line in Path(path).read_text().splitlines()]
    done = [f"{row['level']}/{row['case']}" for row in seen if row.get("user") == user]
    with open(path, "a") as out:
        code = subprocess.run(command, stdout=out, input="\n".join(done), text=True, check=False).returncode
    print(f"user {user}: exit {code}", file=sys.stderr)
    return json.loads(Path(path).read_text().splitlines()[-1]).get("began") if code < 0 else None


def everybodys() -> str:
    """A Python that every user may read."""
    return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable


def _rows(path: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [row for row in rows if "began" not in row]


def show(options: argparse.Namespace) -> None:
    """The table, and what is not wholly right."""
    told = [_rows(path) for path in options.files]
    columns = [(user, level) for user in (0, 65534) for level in LEVELS]
    print(f"{'':28}" + "".join(f"{'root' if user == 0 else f'uid {user}':>20}" for user, _ in columns))
    print(f"{'right / partly / wrong':28}" + "".join(f"{level:>20}" for _, level in columns))
    for path, rows in zip(options.files, told, strict=True):
        line = f"{Path(path).stem:28}"
        for user, level in columns:
            counts = Counter(row["verdict"] for row in rows if (row["user"], row["level"]) == (user, level))
            line += f"{counts['right']:>10} / {counts['partly']} / {counts['wrong']}".rjust(20)
        print(line)
    for path, rows in zip(options.files, told, strict=True):
        print(f"\n{Path(path).stem}: not wholly right")
        for row in rows:
            if row["verdict"] != "right":
                why = " ".join(row["why"].split())[:110]
                print(f"  {row['user']:5} {row['level']:10} {row['verdict']:6} {row['case'][:48]:48} {why}")


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--package", default=str(HERE.parent), help="the folder that agentrl_sandbox lies in")
    runs.add_argument("--out", required=True)
    runs.add_argument("--levels", default=",".join(LEVELS))
    runs.add_argument("--only", default="", help="numbers of programs, separated by commas")
    runs.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    runs.set_defaults(do=run)
    shows = commands.add_parser("show")
    shows.add_argument("files", nargs="+")
    shows.set_defaults(do=show)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
