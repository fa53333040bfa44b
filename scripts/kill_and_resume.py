"""Kill a training run with SIGKILL at random moments, resume it, and check its ledger and its curves.

Starts `agentrl train SETTINGS FLAGS...`, lets it live for a random time after its first step (counted from
its start when it is a resumed one), kills the process, resumes; after the last kill the run goes on to its
end. Then every episode must have ended in one state, every batch must have been learned once, and the rows
of metrics must follow each other without gap. Prints one JSON line::

    python scripts/kill_and_resume.py examples/gsm8k_python.toml --run runs/killed --kills 3 -- --run.steps=20
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from agentrl.config.loading import load_settings
from agentrl.storage.ledger import Ledger, State
from agentrl.storage.metrics import read_metrics


def steps_of(folder: Path) -> list[int]:
    """Steps in the order of their rows; what was done again after a resume counts once."""
    path = folder / "metrics.jsonl"
    return [row["step"] for row in read_metrics(path) if row["kind"] == "step"] if path.exists() else []


def live_and_kill(command: list[str], folder: Path, seconds: float, limit_s: float) -> dict[str, Any] | None:
    """Run until `seconds` after this attempt's first own step, then kill; None when the run ended before."""
    known = steps_of(folder)
    process = subprocess.Popen(command)
    started = time.monotonic()
    first: float | None = None
    while process.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        if now - started > limit_s:
            process.kill()
            raise SystemExit(f"{' '.join(command)}: no end within {limit_s:g} s")
        if first is None and (known or steps_of(folder)):
            first = now
        if first is not None and now - first >= seconds:
            process.kill()
            process.wait(60)
            return {"after_s": round(now - started, 1), "steps": len(steps_of(folder))}
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return None


def learned_batches(ledger: Ledger) -> dict[int, list[str]]:
    """Batches that count, by version, from the events alone: an attempt takes back those at its version or later.

    `Ledger.learned_batches` keeps one batch for each episode, so that it could not show one learned from twice.
    """
    batches: dict[int, list[str]] = {}
    for record in ledger.events_since(0):
        if record["e"] == "attempt":
            batches = {version: keys for version, keys in batches.items() if version < record["v"]}
        elif record["e"] == "learned":
            assert record["v"] not in batches, f"the batch at version {record['v']} was learned twice"
            batches[record["v"]] = record["ks"]
    return dict(sorted(batches.items()))


def audit(folder: Path) -> dict[str, Any]:
    """What ledger and metrics say.

    Raises:
        AssertionError: an episode without an end, a batch learned twice or not at all, a gap in the curve.
    """
    ledger = Ledger(folder / "ledger.jsonl")
    try:
        steps = steps_of(folder)
        assert steps == list(range(1, len(steps) + 1)), f"the curve has gaps: {steps}"
        batches = learned_batches(ledger)
        assert list(batches) == list(range(len(steps))), f"batches {list(batches)} for {len(steps)} steps"
        learned = Counter(key for batch in batches.values() for key in batch)
        assert set(learned.values()) == {1}, "an episode was in two batches"
        wanted = load_settings(folder / "config.toml").run.steps
        assert len(steps) == wanted, f"{len(steps)} steps of {wanted}"
        assert not ledger.in_state(State.PENDING), "an episode has no end"
        assert not ledger.in_state(State.FINISHED), "an episode was neither learned from nor put away"
        return {
            "steps": len(steps),
            "batches": len(batches),
            "attempts": ledger.attempt,
            "ledger": ledger.summary(),
            "discarded": ledger.discarded_by_reason(),
        }
    finally:
        ledger.close()


def main() -> int:
    """Kill, resume, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", help="settings of the run (toml)")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, which must not exist yet")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--longest-s", type=float, default=120.0, help="longest life after the first step")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--limit-s", type=float, default=7200.0, help="of one attempt")
    parser.epilog = "What follows -- goes to agentrl train."
    # Not left to argparse, which takes an empty list for what follows a first option.
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = arguments[:at], arguments[at + 1 :]
    options = parser.parse_args(own)
    if options.run.exists():
        parser.error(
            f"{options.run} exists; a killed run is resumed with agentrl train --resume {options.run}"
        )
    moments = random.Random(options.seed)
    agentrl = [str(Path(sys.executable).with_name("agentrl")), "train"]
    where = [f"--run.directory={options.run.parent}", f"--run.name={options.run.name}"]
    command = [*agentrl, options.settings, *flags, *where]
    kills: list[dict[str, Any]] = []
    for _ in range(options.kills):
        life = moments.uniform(0.0, options.longest_s)
        kill = live_and_kill(command, options.run, life, options.limit_s)
        if kill is None:
            raise SystemExit(f"the run ended after {len(kills)} of {options.kills} kills; lower --longest-s")
        kills.append(kill)
        command = [*agentrl, "--resume", str(options.run)]
    subprocess.run(command, check=True, timeout=options.limit_s)
    print(json.dumps({"kills": kills, **audit(options.run)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
