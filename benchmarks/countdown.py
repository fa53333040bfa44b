"""Countdown in the small, and a model of 1.2 million parameters that has been shown how answers look.

Three numbers from 1 to 9, two operators of + - *, a target from 1 to 60. The model's warm start is written
answers, all right, to tasks of the training split; it is cut short, so that much is left to learn by reward.

    python -m benchmarks.countdown FOLDER    # builds the model; minutes on one core
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from agentrl.config.settings import LossSettings, ModelSettings
from agentrl_envs.countdown import Countdown

BATCH = 64


class SmallCountdown(Countdown):
    """Three numbers from 1 to 9."""

    @classmethod
    def generate_rows(cls, count: int, *, split: Literal["train", "test"], seed: int = 0):
        """Different tasks; those of the splits have no numbers and target in common."""
        tasks = sorted({(tuple(sorted(numbers)), value) for numbers, _, value in expressions()})
        half = [task for place, task in enumerate(tasks) if (place % 4 == 0) == (split == "test")]
        chosen = random.Random(f"{split}/{seed}").sample(half, min(count, len(half)))
        return [
            {"id": f"{numbers}={target}", "nums": list(numbers), "target": target, "answer": ""}
            for numbers, target in chosen
        ]


def expressions() -> Iterator[tuple[tuple[int, ...], str, int]]:
    """(numbers, expression, value) of all expressions whose value is from 1 to 60."""
    for numbers in itertools.product(range(1, 10), repeat=3):
        for signs in itertools.product("+-*", repeat=2):
            text = f"{numbers[0]}{signs[0]}{numbers[1]}{signs[1]}{numbers[2]}"
            value = int(eval(text))  # digits and operators of this module
            if 1 <= value <= 60:
                yield numbers, text, value


def make_traces(count: int, seed: int) -> list[Any]:
    """Written conversations about tasks of the training split."""
    from agentrl.training.traces import make_trace

    rng = random.Random(seed)
    rows = SmallCountdown.generate_rows(10**6, split="train")
    right: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for numbers, text, value in expressions():
        right.setdefault((tuple(sorted(numbers)), value), []).append(text)
    traces = []
    for _ in range(count):
        row = rng.choice(rows)
        key = tuple(row["nums"]), row["target"]
        said = rng.choice(right[key])
        question = SmallCountdown().prompt(row)
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"\\boxed{{{said}}}"},
        ]
        traces.append(make_trace({"messages": messages}))
    return traces


def make_model(folder: Path, *, steps: int = 600, rate: float = 2e-3) -> Path:
    """Write the model and its tokenizer, unless they are there."""
    if (folder / "model.safetensors").exists():
        return folder
    from agentrl.learner.learner import Learner
    from agentrl.training.rendered_traces import render_traces
    from agentrl.training.sft import WarmLearnerSettings, WarmStartSettings, learn
    from scripts.build_demo_model import build_model, build_tokenizer, report

    traces = make_traces(steps * BATCH, seed=0)
    tokenizer = build_tokenizer(traces[:1000])
    folder.mkdir(parents=True, exist_ok=True)
    build_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rendered = render_traces(traces, tokenizer, "code", max_tokens=256)
    learner = Learner(
        ModelSettings(str(folder)), WarmLearnerSettings(learning_rate=rate), LossSettings("cross_entropy")
    )
    settings = WarmStartSettings(final_share=0.05, warmup_share=0.1, batch=BATCH)
    learn(learner, rendered.segments, settings, rate, report("countdown"))
    learner.save_weights(folder)
    return folder


def shared_model(folder: Path, seed: int) -> Path:
    """The one model of all seeds, built once and kept with the temporary files of this machine."""
    return make_model(folder.parent / "agentrl-countdown-model")


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    make_model(options.folder, steps=options.steps)


if __name__ == "__main__":
    main()
