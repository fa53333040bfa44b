"""What recording a run and looking at it cost of a step, from a run that is on disk.

    python -m benchmarks.page_cost runs/001

Everything that the run recorded is written again with the classes that wrote it, into a folder of its own, and
the index of the page follows step by step as `agentrl view` does. CPU time is measured, and compared with the
CPU time and the wall time of the run's own steps. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from agentrl.report import write_report
from agentrl.report.run_view import RunView
from agentrl.storage.durable import LineFile, read_lines
from agentrl.storage.metrics import read_metrics
from agentrl.storage.recorder import read_episodes
from agentrl.storage.steps import StepFiles


@contextmanager
def clock(spent: list[float]) -> Iterator[None]:
    """Add the CPU seconds of what stands inside."""
    began = time.process_time()
    yield
    spent.append(time.process_time() - began)


def measure(run: Path, copy: Path) -> dict[str, Any]:
    """Write the records of a run again, step by step, and follow them."""
    rows = read_metrics(run / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    summary = json.loads((run / "summary.json").read_text())
    records = {episode.episode_id: episode for episode in read_episodes(run / "episodes")}
    (copy / "episodes").mkdir(parents=True)
    (copy / "run.json").write_bytes((run / "run.json").read_bytes())
    source, target = StepFiles(run), StepFiles(copy, keep=10**9)
    files = {
        name: LineFile(copy / f"{name}.jsonl", name) for name in ("metrics", "ledger", "episodes/000001")
    }
    events = list(read_lines(run / "ledger.jsonl"))
    share = len(events) / len(steps)
    logged: list[float] = []
    followed: list[float] = []
    shown: list[float] = []
    view = RunView(copy)
    for place, row in enumerate(steps):
        step = source.read(row["version"])
        with clock(logged):
            for key in step.episode_ids:
                if key in records:
                    files["episodes/000001"].append(records[key].to_json())
            for event in events[round(place * share) : round((place + 1) * share)]:
                files["ledger"].append(event)
            target.write(step)
            files["metrics"].append(row)
        with clock(followed):
            view.index.update()
        with clock(shown):
            view.overview()
    view.close()
    report: list[float] = []
    with clock(report):
        write_report(copy)
    cpu, wall = summary["cpu_s"] / len(steps), steps[-1]["time_s"] / len(steps)
    parts = {"logging": median(logged), "index": median(followed), "overview": median(shown)}
    parts["report"] = report[0] / len(steps)
    return {
        "benchmark": "page_cost",
        "steps": len(steps),
        "episodes": len(records),
        "step_cpu_s": round(cpu, 4),
        "step_wall_s": round(wall, 4),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in parts.items()},
        "share_of_cpu_logging": round(parts["logging"] / cpu, 4),
        "share_of_cpu_logging_and_report": round((parts["logging"] + parts["report"]) / cpu, 4),
        "share_of_cpu_all": round(sum(parts.values()) / cpu, 4),
    }


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args().run, Path(folder) / "run")))


if __name__ == "__main__":
    main()
