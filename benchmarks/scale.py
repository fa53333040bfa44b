"""How far one process carries: episodes in flight, turns a second, bytes a token, prompts of the tracker.

`python -m benchmarks.scale`: 10,000 episodes in flight with a scripted policy through the real
orchestrator, rollout, renderer, environment, recorder and ledger; memory per token of episodes held;
a tracker with a million prompts. CPU seconds and a JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.loading import load_settings
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.inference.policy import FinishReason, Generation
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.storage.durable import write_file
from agentrl.storage.run_folder import RunFolder
from agentrl.tasks.task import Task
from agentrl.training.assembly import assemble
from agentrl.training.collector import rare_collections
from agentrl.training.plan import RunPlan
from agentrl.weights.handle import WeightHandle
from agentrl_envs import Env, tool
from agentrl_sandbox import open_sandbox

TURNS = 4


class Talk(Env):
    """Three tool calls and an answer."""

    max_turns = TURNS

    def prompt(self, row: Any) -> str:
        """The row's text."""
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        "Answer at once."
        return "1"

    def reward(self, row: Any, answer: str | None) -> bool:
        """Any answer will do."""
        return answer is not None


class Prepared(ScriptedPolicy):
    """Says what was tokenised beforehand, so that what is measured is the loop and not the script."""

    def __init__(self, call: str, answer: str, tokenizer: Any = None) -> None:
        super().__init__([answer], tokenizer=tokenizer)
        self._messages = [self._message(call), self._message(answer)]
        self._said: dict[str, int] = {}
        self.turns = self.peak = self._asking = 0

    def _message(self, text: str) -> Generation:
        ids = array("i", self.tokenizer.encode(text))
        count = len(ids)
        return Generation(ids, array("f", [-1.0] * count), array("i", [0] * count), FinishReason.STOP)

    async def generate(
        self, prompt_ids: Any, sampling: Any, *, session: str, start_version: int
    ) -> Generation:
        """A call while turns are left, then an answer."""
        turn = self._said[session] = self._said.get(session, 0) + 1
        self.turns += 1
        self._asking += 1
        self.peak = max(self.peak, self._asking)
        await asyncio.sleep(1.0)  # so that all of them really are in flight together
        self._asking -= 1
        return self._messages[turn == TURNS]


class _Learner:
    """Learns nothing, so that what is measured is the loop around it."""

    async def step(self, episodes: Sequence[Episode], advantages: Any, **more: Any) -> dict[str, Any]:
        """The numbers that the loop reads."""
        return {"drift": 0.0, "tokens_learned": sum(episode.num_trainable for episode in episodes)}

    async def handle(self, version: int, attempt: int) -> WeightHandle:
        """Nothing to fetch."""
        return WeightHandle(version=version, attempt=attempt, source=self)

    async def save(self, folder: Path, **options: bool) -> None:
        """A checkpoint without weights."""
        await asyncio.to_thread(folder.mkdir, exist_ok=True)

    async def saved(self) -> bool:
        """At once."""
        return True

    save_weights = save


async def _play_all(episodes: int, tokens: int, folder: Path) -> dict[str, float]:
    filler = "x" * (tokens // TURNS - 40)
    policy = Prepared(f"{filler}<code>\n```python\n1\n```\n</code>", f"{filler}<|end|>")
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    flags = {"batch": episodes, "in_flight": episodes, "staleness": 0}
    settings = load_settings(
        None,
        ["--run.steps=1", "--tracker.initial_rollouts=0", f"--learner.mini_batch={episodes}"]
        + [f"--stream.{name}={value}" for name, value in flags.items()],
    )
    rows = tuple({"id": f"p{index}", "problem": "p"} for index in range(episodes))
    plan = RunPlan(settings, (Task("talk", Talk, {}, 1.0, rows),), ())
    learner: Any = _Learner()
    started, cpu = time.perf_counter(), time.process_time()
    async with assemble(
        plan,
        RunFolder.create(folder, "run"),
        policy=policy,
        learner=learner,
        renderer=renderer,
        sandbox=open_sandbox("broken"),
    ) as run:
        await run.run()
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    return {
        "episodes": episodes,
        "tokens_each": tokens,
        "in_flight_peak": policy.peak,
        "turns_per_cpu_s": policy.turns / used,
        "cpu_s": used,
        "wall_s": wall,
    }


def bytes_per_token(tokens: int) -> float:
    """Memory of finished episodes, per token."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = []
    for index in range(20):
        segment = SegmentBuilder()
        segment.append_given([1] * (tokens // 2))
        for _ in range(8):
            count = tokens // 16
            segment.append_sampled([2] * count, [-1.0] * count, [0] * count)
        held.append(
            Episode(f"t{index}", index, "p", (segment.build(),), (), 1.0, StopReason.ANSWERED, 0, 1.0)
        )
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / sum(episode.num_tokens for episode in held)


def tracker(prompts: int) -> dict[str, float]:
    """Draws, folds, save and load of a tracker."""
    value_tracker = ValueTracker(prompts, TrackerSettings())
    sampler = PromptSampler(value_tracker, SamplerSettings(), seed=0)
    draw_s, refill_s = [], []
    for _ in range(7):
        started = time.process_time()
        drawn = [sampler.draw() for _ in range(2048)]
        draw_s.append(time.process_time() - started)
        started = time.process_time()
        for prompt in drawn:
            assert prompt is not None
            value_tracker.fold(prompt, float(prompt % 2), start_clock=0.0)
            sampler.folded(prompt)
        refill_s.append((time.process_time() - started) / len(drawn))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        state = {**value_tracker.state_dict(), **{f"s/{k}": v for k, v in sampler.state_dict().items()}}
        buffer = io.BytesIO()
        np.savez(buffer, **{k: np.asarray(v) for k, v in state.items()})
        write_file(Path(folder) / "state.npz", buffer.getvalue(), "benchmark")
        save_s = time.perf_counter() - started
        started = time.perf_counter()
        with np.load(Path(folder) / "state.npz") as arrays:
            loaded = {k: arrays[k] for k in arrays.files}
        value_tracker.load_state_dict({k: v for k, v in loaded.items() if not k.startswith("s/")})
        sampler.load_state_dict({k[2:]: v for k, v in loaded.items() if k.startswith("s/")})
        load_s = time.perf_counter() - started
    return {
        "prompts": prompts,
        "draw_2048_cpu_ms": 1e3 * float(np.median(draw_s)),
        "fold_and_refill_cpu_ms": 1e3 * float(np.median(refill_s)),
        "save_s": save_s,
        "load_s": load_s,
    }


def main() -> None:
    """Print tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000)
    options = parser.parse_args()
    flights = []
    for episodes in (options.episodes // 100, options.episodes // 10, options.episodes):
        with tempfile.TemporaryDirectory() as folder, rare_collections():  # as `agentrl.training.train` does
            flights.append(asyncio.run(_play_all(episodes, 1000, Path(folder))))
        print("in flight: " + "  ".join(f"{k}={v:.4g}" for k, v in flights[-1].items()))
    memory = {tokens: bytes_per_token(tokens) for tokens in (1_000, 16_384)}
    print("bytes a token: " + "  ".join(f"T={k}: {v:.1f}" for k, v in memory.items()))
    trackers = [tracker(prompts) for prompts in (10_000, 100_000, 1_000_000)]
    for row in trackers:
        print("tracker: " + "  ".join(f"{k}={v:.4g}" for k, v in row.items()))
    print(
        json.dumps(
            {"benchmark": "scale", "in_flight": flights, "bytes_per_token": memory, "tracker": trackers}
        )
    )


if __name__ == "__main__":
    main()
