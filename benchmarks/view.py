"""Time to look at a run of 1,000 steps and 100,000 episodes: the first index, the overview, an episode, a filter.

    python -m benchmarks.view [--steps 1000] [--batch 100] [--folder DIR]

Answers of the server's parts, without a browser: medians of five, the first one, and CPU time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agentrl.report.run_view import RunView
from tests.agentrl.report.run_files import make_episode, step_row, write_tokenizer


def write(folder: Path, steps: int, batch: int) -> None:
    """A run of so many steps; a packed file of episodes every 20 steps."""
    (folder / "episodes").mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "weights" / "step_1")
    (folder / "run.json").write_text('{"format": 2, "run_id": "1"}')
    shapes = [make_episode(index).to_json() for index in range(8)]
    packed: list[str] = []
    files = [(folder / f"{name}.jsonl").open("w") for name in ("metrics", "ledger", "credit")]
    metrics, ledger, credit = files
    for version in range(1, steps + 1):
        keys = [f"t{(version - 1) * batch + place}" for place in range(batch)]
        for place, key in enumerate(keys):
            index = int(key[1:])
            given = {"episode_id": key, "dispatch_index": index, "prompt_id": f"p{index % 5000}"}
            packed.append(json.dumps(shapes[index % 8] | given | {"ended": 1e9 + version + place / batch}))
            ledger.write(
                json.dumps({"e": "pending", "k": key, "p": given["prompt_id"], "v": version - 1}) + "\n"
            )
        ledger.write(json.dumps({"e": "learned", "ks": keys, "v": version - 1, "x": {}}) + "\n")
        halves = [0.5] * batch
        credit.write(
            json.dumps({"v": version, "a": 1, "ks": keys, "s": halves, "b": halves, "A": halves}) + "\n"
        )
        metrics.write(json.dumps(step_row(version)) + "\n")
        if version % 20 == 0:
            path = folder / "episodes" / f"{version // 20:06d}.jsonl.gz"
            path.write_bytes(gzip.compress(("\n".join(packed) + "\n").encode(), 1))
            packed = []
    for file in files:
        file.close()


def timed(name: str, act: Callable[[int], object]) -> None:
    """Print the first and the median time of five, and the median CPU time."""
    walls: list[float] = []
    used: list[float] = []
    for number in range(5):
        began, cpu = time.perf_counter(), time.process_time()
        act(number)
        walls.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    middle = statistics.median(walls), statistics.median(used)
    print(f"{name:<34}{walls[0]:9.3f} s first{middle[0]:9.3f} s median{middle[1]:9.3f} CPU s")


def main() -> None:
    """Write a run, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "run"
        write(folder, options.steps, options.batch)
        count = options.steps * options.batch
        began, cpu = time.perf_counter(), time.process_time()
        view = RunView(folder)
        view.index.update()
        wall, used = time.perf_counter() - began, time.process_time() - cpu
        print(f"first index of {count:,} episodes: {wall:.1f} s ({used:.1f} CPU s), behind the page")
        timed("opened again, nothing new", lambda _: RunView(folder).index.update())
        timed("overview", lambda _: view.overview())
        timed("list, newest", lambda _: view.episodes({}))
        timed(
            "filter and sort by advantage",
            lambda n: view.episodes({"reward_min": str(n / 9), "sort": "advantage"}),
        )
        timed("text search", lambda n: view.episodes({"q": f"p{n}1"}))
        timed("an episode, another file each", lambda n: view.episode(f"t{n * count // 5 + 7}"))
        timed("list of prompts", lambda n: view.prompts({"sort": ("attempts", "value")[n % 2]}))
        timed("a prompt", lambda n: view.prompt(f"p{n}"))
        view.close()


if __name__ == "__main__":
    main()
