"""Supervised warm start: the learner with the loss `cross_entropy` on rendered traces."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from agentrl.config.ranges import Amount, Count, Number, PartOf, Seed, Share
from agentrl.config.settings import Beta, LearnerSettings, LossSettings, ModelSettings, Rules
from agentrl.episode import Episode, Segment, StopReason
from agentrl.errors import ConfigError, DataError
from agentrl.storage.durable import whole_folder
from agentrl.training.rendered_traces import Format, render_traces
from agentrl.training.traces import load_traces
from agentrl.weights.model_files import WARM_START, load_tokenizer

if TYPE_CHECKING:
    from agentrl.learner.learner import Learner
    from agentrl.learner.metrics import StepMetrics

SHORT = {
    "model": "model.path",
    "dtype": "model.dtype",
    "device": "model.device",
    "threads": "model.threads",
    "learning_rate": "learner.learning_rate",
    "micro_batch_tokens": "learner.micro_batch_tokens",
    "out": "sft.out",
    "format": "sft.format",
    "epochs": "sft.epochs",
    "batch": "sft.batch",
    "limit": "sft.limit",
    "max_tokens": "sft.max_tokens",
    "seed": "sft.seed",
}
"""Short options of `agentrl sft`, and the settings that they stand for."""


@dataclass(frozen=True, slots=True)
class WarmStartSettings:
    """`[sft]`: what is learned from, and how often."""

    traces: str = ""
    """A jsonl file of conversations in the form of OpenAI's fine-tuning files."""
    out: str = ""
    """Folder of the new weights, which are written in bfloat16."""
    format: Annotated[str, PartOf("renderer", also=("auto",))] = "auto"
    """As `rollout.format`; `auto` takes what the chat template or the tools of the traces ask for."""
    epochs: Count = 1
    """Passes over the traces."""
    batch: Count = 16
    """Traces of one optimizer step."""
    limit: Number = 0
    """First traces only; 0 takes all."""
    max_tokens: Count = 1024
    """Longer traces are left out."""
    held_out: Number = 32
    """Last traces (after shuffling) that are not learned from and measure the loss."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    final_share: Share = 0.1
    """Learning rate at the end, relative to the largest; it falls along a cosine."""
    seed: Seed = 0
    """Of the order of the traces."""

    def rules(self) -> Rules:
        """What is missing."""
        for name in ("traces", "out"):
            if not getattr(self, name):
                yield (name,), f"name the {name}: agentrl sft TRACES --model MODEL --out FOLDER"


@dataclass(frozen=True, slots=True)
class WarmLearnerSettings(LearnerSettings):
    """`[learner]`: as in training, with defaults for a warm start."""

    learning_rate: Amount = 2e-5
    """The largest; it rises and falls with the steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """How slowly the optimizer's averages move."""
    micro_batch_tokens: Count = 4096
    """Tokens of one forward and backward pass, padding included."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.place != "thread" or self.ranks > 1 or self.mini_batch or self.epochs > 1:
            text = "a warm start takes one optimizer step a batch, in this process: leave learner.place, "
            yield (
                ("place", "ranks"),
                text + "ranks, mini_batch and epochs as they are (sft.batch, sft.epochs)",
            )


@dataclass(frozen=True, slots=True)
class SftSettings:
    """A whole warm start."""

    model: ModelSettings = field(default_factory=ModelSettings)
    sft: WarmStartSettings = field(default_factory=WarmStartSettings)
    learner: WarmLearnerSettings = field(default_factory=WarmLearnerSettings)


@dataclass(frozen=True, slots=True)
class SftResult:
    """What a warm start came to; also written as `sft.json` beside the weights."""

    traces: int
    too_long: int
    unlearned_reasoning: int
    """Traces with reasoning that was left out."""
    format: Format
    """How the model was taught to call tools."""
    learned_tokens: int
    """Tokens with a loss in one pass over the traces."""
    steps: int
    loss_first: float
    """Held-out loss before, nats a token."""
    loss_last: float
    """Held-out loss after, nats a token."""
    cpu_s: float
    wall_s: float
    history: list[dict[str, float]] = field(default_factory=list)


OnStep = Callable[[int, int, "StepMetrics"], None]
"""Is told the number of a step, the number of all steps, and what happened."""


def fine_tune(settings: SftSettings, on_step: OnStep | None = None) -> SftResult:
    """Train a Hugging Face model on traces and write weights and tokenizer to `sft.out`.

    Raises:
        DataError: the traces cannot be used.
        ConfigError: there is no model at `model.path`.
        AgentRLError: the disk does not take the weights; no half of them is left.
    """
    traces = load_traces(settings.sft.traces)[: settings.sft.limit or None]
    if (Path(settings.sft.out) / "config.json").exists():
        raise ConfigError(f"{settings.sft.out} holds a model already; choose another --out")
    import torch

    from agentrl.learner.learner import Learner

    tokenizer = load_tokenizer(settings.model.path, "--model")
    chosen = cast("Any", settings.sft.format)
    rendered = render_traces(traces, tokenizer, chosen, max_tokens=settings.sft.max_tokens)
    learner = Learner(settings.model, settings.learner, LossSettings("cross_entropy"), seed=settings.sft.seed)
    outcome = learn(learner, rendered.segments, settings.sft, settings.learner.learning_rate, on_step)
    result = SftResult(
        traces=len(rendered.segments),
        too_long=rendered.too_long,
        unlearned_reasoning=rendered.unlearned_reasoning,
        format=rendered.format,
        learned_tokens=rendered.learned_tokens,
        **outcome,
    )
    learner.model.to(torch.bfloat16)
    with whole_folder(Path(settings.sft.out)) as folder:
        learner.save_weights(folder)
        (folder / WARM_START).write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    return result


def learn(
    learner: Learner,
    segments: Sequence[Segment],
    settings: WarmStartSettings,
    learning_rate: float,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train in place; returns `steps`, `loss_first`, `loss_last` (held out), `wall_s`, `cpu_s`, `history`.

    Raises:
        DataError: no token to learn.
        LearnerError: loss or gradient is not finite.
    """
    order = random.Random(settings.seed)
    episodes = [_episode(at, segment) for at, segment in enumerate(segments) if segment.num_sampled]
    if not episodes:
        raise DataError("the traces have no token to learn")
    order.shuffle(episodes)
    keep = min(settings.held_out, len(episodes) // 5)
    held, episodes = episodes[len(episodes) - keep :], episodes[: len(episodes) - keep]
    started, cpu = time.monotonic(), time.process_time()
    loss_first, history = mean_loss(learner, held), list[dict[str, float]]()
    steps = settings.epochs * math.ceil(len(episodes) / settings.batch)
    for _ in range(settings.epochs):
        order.shuffle(episodes)
        for at in range(0, len(episodes), settings.batch):
            batch = episodes[at : at + settings.batch]
            rate = learning_rate * learning_rate_share(len(history), steps, settings)
            done = learner.step(batch, [1.0] * len(batch), controls={"learner.learning_rate": rate})
            history.append(
                {"loss": done.loss, "learning_rate": done.learning_rate, "grad_norm": done.grad_norm}
            )
            if on_step is not None:
                on_step(len(history), steps, done)
    return {
        "steps": len(history),
        "loss_first": loss_first,
        "loss_last": mean_loss(learner, held),
        "wall_s": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "history": history,
    }


def learning_rate_share(step: int, steps: int, settings: WarmStartSettings) -> float:
    """Share of the largest learning rate at step `step` (from 0) of `steps`: warm-up, then half a cosine."""
    warmup = max(1, round(settings.warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress, low = (step - warmup) / max(1, steps - warmup), settings.final_share
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def mean_loss(learner: Learner, episodes: Sequence[Episode]) -> float:
    """Mean -log p over the learned tokens, nats; NaN without any."""
    tokens = sum(episode.num_sampled for episode in episodes)
    scores = (part for parts in learner.score(episodes) for part in parts)
    return -math.fsum(float(part.sum()) for part in scores) / tokens if tokens else math.nan


def _episode(index: int, segment: Segment) -> Episode:
    """A trace as the learner takes it; what it is worth does not matter to the loss."""
    name = f"trace {index}"
    return Episode(name, index, name, (segment,), (), 0.0, StopReason.ANSWERED, 0, 1.0)
