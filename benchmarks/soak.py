"""A run whose tools, hooks, sandbox and engine fail in every way they can, for ten minutes.

`python -m benchmarks.soak --seconds 600`: the demo's model in its arithmetic, where each call of a tool may
raise, hang, return something monstrous or kill its sandbox, hooks and rewards fail, and everything is down for
seconds now and then (the engine, the service behind `setup`, the disk behind the tool). At the end the ledger
must be exact, no prompt lost, and no thread, process, descriptor or folder left; episodes a CPU second in the
last fifth are compared with those of the first. Prints what happened and a JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from agentrl.config import loading
from agentrl.errors import Interrupted, PolicyUnavailable
from agentrl.inference.embedded.engine import TransformersPolicy
from agentrl.report.terminal import PlainProgress
from agentrl.storage.ledger import Ledger, State
from agentrl.training.parts import Options
from agentrl.training.train import resume, train
from agentrl_envs import Finish, SandboxFailure, ToolError, register, tool
from agentrl_envs.arithmetic import Arithmetic
from benchmarks.demo_run import DEMO

CALM = -1.0
"""`_down_until` while nothing fails on purpose."""

RAISED: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError("bad value"),
    lambda: KeyError("nested"),
    lambda: SystemExit(2),
    lambda: asyncio.CancelledError(),
    lambda: GeneratorExit(),
    lambda: StopIteration(3),
    lambda: RecursionError("too deep"),
    lambda: MemoryError(),
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    lambda: ConnectionResetError("peer"),
    lambda: TimeoutError(),
    lambda: ExceptionGroup("several", [ValueError("one"), ConnectionError("two")]),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: ToolError("the tool says no"),
    lambda: SandboxFailure("the pool is gone"),
)

MONSTERS: tuple[Callable[[], Any], ...] = (
    lambda: 2**20_000,
    lambda: float("nan"),
    lambda: "x" * 1_000_000,
    lambda: "\ud800 lone",
    lambda: b"\xff\xfe",
    lambda: [{"type": "theorem", "name": "Fermat"}],
    lambda: {"deep": [[[[[[[[1]]]]]]]]},
    lambda: {1, 2, 3},
    lambda: "\0" * 1000 + "\x1b[2J" + "\r" * 1000,
    lambda: "</code><tool_call>" * 2000,
    lambda: None,
)


class Trouble:
    """When what is down, for all episodes of this process."""

    on = False
    engine_until = service_until = CALM
    seen: ClassVar[Counter[str]] = Counter()

    @classmethod
    def count(cls, what: str) -> None:
        """Count one trouble that was made."""
        cls.seen[what] += 1


@register("storm")
class Storm(Arithmetic):
    """Arithmetic in bad weather."""

    hook_timeout_s = 5.0

    async def setup(self) -> None:
        """Needs a service."""
        if Trouble.on and time.monotonic() < Trouble.service_until:
            Trouble.count("service down")
            raise ConnectionRefusedError("the service is down")
        if Trouble.on and self.rng.random() < 0.01:
            Trouble.count("setup hangs")
            await asyncio.sleep(3600)
        await super().setup()

    @tool(timeout_s=2.0)
    async def python(self, code: str) -> Any:
        "Run Python; state is kept between calls."
        kind = self.rng.random() if Trouble.on else 1.0
        self._raise_below(0.06, kind, "tool")
        if kind < 0.12:
            Trouble.count("tool returns a monster")
            return self.rng.choice(MONSTERS)()
        if kind < 0.13:
            Trouble.count("tool hangs")
            await asyncio.sleep(3600)
        if kind < 0.14:
            Trouble.count("tool swallows its cancellation")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
        if kind < 0.16:
            Trouble.count("sandbox killed")
            code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
        if kind < 0.17:
            Trouble.count("threads and orphans")
            code = "import os, time\nif os.fork() == 0: time.sleep(60)"
        return await super().python(code)

    def _raise_below(self, share: float, kind: float, who: str) -> None:
        if kind < share:
            Trouble.count(f"{who} raises")
            raise self.rng.choice(RAISED)()

    def reward(self, row: Any, answer: str | None) -> Any:
        """Sometimes none."""
        kind = self.rng.random() if Trouble.on else 1.0
        self._raise_below(0.01, kind, "reward")
        if kind < 0.015:
            Trouble.count("reward is no number")
            return self.rng.choice((float("nan"), "good", None, 17.0))
        if kind < 0.02:
            Trouble.count("reward finishes")
            raise Finish(answer={"not": {"text"}})  # that is the point
        return super().reward(row, answer)


async def _generate(self: TransformersPolicy, *arguments: Any, **options: Any) -> Any:
    if Trouble.on and time.monotonic() < Trouble.engine_until:
        Trouble.count("engine down")
        raise PolicyUnavailable("the engine is down")
    return await _ORIGINAL(self, *arguments, **options)


_ORIGINAL = TransformersPolicy.generate


def _weather(stop: threading.Event) -> None:
    """Now and then something is down for seconds."""
    chance = random.Random(1)
    while not stop.wait(chance.uniform(15.0, 40.0)):
        until = time.monotonic() + chance.uniform(1.0, 6.0)
        if chance.random() < 0.5:
            Trouble.engine_until = until
        else:
            Trouble.service_until = until


def left_over() -> dict[str, int]:
    """Threads, child processes, descriptors and folders of this process."""
    children = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        children += int(fields[1]) == os.getpid()
    return {
        "threads": threading.active_count(),
        "processes": children,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "folders": len(list(Path(tempfile.gettempdir()).glob(f"*{os.getpid()}*"))),
    }


def _settled(before: dict[str, int], limit_s: float = 30.0) -> dict[str, int]:
    """What is left once everything had its time to end."""
    end = time.monotonic() + limit_s
    while (now := left_over()) and any(now[k] > before[k] for k in now) and time.monotonic() < end:
        time.sleep(0.5)
    return {name: now[name] - before[name] for name in now}


def rates(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Episodes a CPU second in the first and in the last fifth of the steps."""

    def rate(part: list[dict[str, Any]]) -> float:
        return (part[-1]["episodes"] - part[0]["episodes"]) / (part[-1]["cpu_s"] - part[0]["cpu_s"])

    fifth = max(2, len(rows) // 5)
    return rate(rows[1 : fifth + 1]), rate(rows[-fifth:])


def _settings(folder: str, flags: list[str]) -> Any:
    own = [
        "--env.name=storm",
        f"--model.path={DEMO / 'model'}",
        f"--run.directory={folder}",
        "--eval.data=generated:test:32",
        "--eval.every=40",
        "--checkpoint.every=10",
        "--stream.in_flight=48",
        "--rollout.limit_s=60",
        "--learner.learning_rate=0",  # else episodes grow as the model learns to call, and rates fall by it
    ]
    return loading.load_settings(DEMO / "demo.toml", [*own, *flags])


def soak(seconds: float, folder: str) -> dict[str, Any]:
    """The run, and what is to be said about it."""
    train(_settings(folder, ["--run.steps=1", "--run.name=warm"]))  # imports, servers, caches
    before = left_over()
    steps: list[dict[str, Any]] = []
    outages: Counter[str] = Counter()
    end = time.monotonic() + seconds
    asked = False

    told = PlainProgress()

    def listen(row: dict[str, Any]) -> None:
        nonlocal asked
        told.row(row)
        if row["kind"] == "outage":
            outages[row["state"]] += 1
        elif row["kind"] == "step":
            steps.append(row)
            if time.monotonic() > end and not asked:
                asked = True
                os.kill(os.getpid(), signal.SIGINT)

    TransformersPolicy.generate = _generate
    stop, Trouble.on = threading.Event(), True
    threading.Thread(target=_weather, args=(stop,), daemon=True).start()
    with contextlib.suppress(Interrupted):
        train(_settings(folder, ["--run.steps=1000000", "--run.name=soak"]), Options(listeners=(listen,)))
    stop.set()
    Trouble.on = False
    version = steps[-1]["version"]
    resume(Path(folder, "soak"), [f"--run.steps={version + 2}"], Options())
    ledger = Ledger(Path(folder, "soak", "ledger.jsonl"))
    ledger.close()
    first, last = rates(steps)
    prompts = {entry.prompt_id for entry in ledger.entries.values()}
    return {
        "seconds": seconds,
        "versions": version,
        "episodes": steps[-1]["episodes"],
        "failures": steps[-1]["failures"],
        "troubles": dict(Trouble.seen),
        "outages": dict(outages),
        "ledger": ledger.summary(),
        "unended": ledger.counts[State.PENDING] + ledger.counts[State.FINISHED],
        "learned_expected": (version + 2) * 64,
        "set_aside_at_the_end": steps[-1]["set_aside"],
        "prompts_played": len(prompts),
        "left": _settled(before),
        "half_written": [str(p) for p in Path(folder).rglob(".*") if p.name.endswith((".tmp", ".old"))],
        "episodes_per_cpu_s": {"first fifth": first, "last fifth": last, "ratio": last / first},
    }


def main() -> int:
    """Print the JSON line; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(options.seconds, folder)
    held = (
        found["unended"] == 0
        and found["ledger"].get("learned") == found["learned_expected"]
        and not found["half_written"]
        and not any(count > 0 for count in found["left"].values())
        and found["episodes_per_cpu_s"]["ratio"] >= 0.95
    )
    print(json.dumps({"benchmark": "soak", "held": held, **found}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
