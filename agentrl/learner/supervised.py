"""Next-token training on written token sequences: the warm start before reinforcement learning.

The loss is the mean of -log p over all learned tokens of a batch, however the batch is cut into
micro-batches, and made of the same parts as the learner's. Knows nothing of text, renderers or rewards.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from agentrl.config.ranges import Amount, Count, Number, Positive, Seed, Share, check_ranges
from agentrl.episode import Segment
from agentrl.errors import ConfigError, DataError, LearnerError
from agentrl.learner.batch import TokenSequence, pad, split_micro_batches
from agentrl.learner.logprobs import TokenScorer
from agentrl.weights.model_files import load_tokenizer


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """How the warm start is trained."""

    epochs: Count = 1
    """Passes over the traces."""
    batch: Count = 16
    """Traces of one optimizer step."""
    micro_batch_tokens: Count = 4096
    """Padded tokens of one forward and backward pass."""
    learning_rate: Amount = 2e-5
    """Largest, after the warm-up; it falls to a tenth along a cosine."""
    final_share: Share = 0.1
    """Learning rate at the end, relative to the largest."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Amount = 0.01
    """Of AdamW."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients longer than this are scaled down to it."""
    held_out: Number = 32
    """Last traces (after shuffling) that are not learned from and measure the loss."""
    seed: Seed = 0
    """Of the order of the traces."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; weights and optimizer are float32 either way."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    threads: Number = 0
    """CPU threads of torch; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class SupervisedMetrics:
    """One optimizer step."""

    step: int
    steps: int
    loss: float
    """Nats a learned token."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Learned tokens of the batch."""


def learning_rate_at(step: int, steps: int, settings: SupervisedSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then half a cosine."""
    warmup = max(1, round(settings.warmup_share * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    low = settings.final_share
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def load_model(path: str, settings: SupervisedSettings) -> tuple[Any, Any]:
    """Model in float32 on its device, and its tokenizer.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoModelForCausalLM

    if settings.threads:
        torch.set_num_threads(settings.threads)
    tokenizer = load_tokenizer(path, "--model")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path!r}: no Hugging Face model there (want a folder with config, weights, tokenizer): {error}"
        ) from error
    cast("Any", model).to(_device(settings))
    return model, tokenizer


def _device(settings: SupervisedSettings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def save_model(model: Any, tokenizer: Any, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write Hugging Face weights of `dtype` and the tokenizer; the model in memory stays as it is."""
    # `save_pretrained` writes the type the weights have, whatever the configuration says.
    copied = copy.deepcopy(model).to("cpu", dtype)
    copied.save_pretrained(out)
    tokenizer.save_pretrained(out)


def to_sequence(segment: Segment) -> TokenSequence:
    """The part of a segment that matters: its tokens up to the last learned one.

    Raises:
        DataError: the first token is learned, so nothing predicts it.
    """
    mask = np.frombuffer(segment.loss_mask, dtype=np.uint8)
    positions = np.flatnonzero(mask).astype(np.int64)
    if not len(positions) or positions[0] == 0:
        raise DataError("a sequence needs a learned token, and at least one token before the first")
    ids = np.asarray(segment.token_ids, dtype=np.int64)
    return TokenSequence(
        episode=0,
        segment=0,
        token_ids=ids[: positions[-1]],
        positions=positions,
        targets=ids[positions],
        behaviour=np.zeros(len(positions), dtype=np.float32),
        temperature=1.0,
    )


def _summed_losses(scorer: TokenScorer, batch: Sequence[TokenSequence], tokens: int) -> Iterator[Tensor]:
    """For each micro-batch the sum of -log p over its learned tokens, a scalar in nats."""
    device = next(scorer.parameters()).device
    for indices in split_micro_batches([len(sequence) for sequence in batch], tokens):
        part = pad(batch, indices)
        arrays = (part.input_ids, part.rows, part.columns, part.targets, part.temperature)
        logprobs = scorer(*(torch.from_numpy(array).to(device) for array in arrays)).logprobs
        yield -logprobs.sum()


@torch.no_grad()
def mean_loss(scorer: TokenScorer, sequences: Sequence[TokenSequence], settings: SupervisedSettings) -> float:
    """Mean -log p over the learned tokens, nats; NaN without any."""
    tokens = sum(len(sequence.targets) for sequence in sequences)
    if not tokens:
        return math.nan
    return (
        sum(float(loss) for loss in _summed_losses(scorer, sequences, settings.micro_batch_tokens)) / tokens
    )


def train_supervised(
    model: Any,
    segments: Sequence[Segment],
    settings: SupervisedSettings,
    *,
    on_step: Callable[[SupervisedMetrics], None] | None = None,
) -> dict[str, Any]:
    """Train in place; returns `steps`, `loss_first`, `loss_last` (held out), `wall_s`, `cpu_s`, `history`.

    Raises:
        DataError: no token to learn.
        LearnerError: the loss is not finite.
    """
    order = random.Random(settings.seed)
    learned = [to_sequence(segment) for segment in segments if segment.num_sampled]
    if not learned:
        raise DataError("the traces have no token to learn")
    order.shuffle(learned)
    keep = min(settings.held_out, len(learned) // 5)
    held, learned = learned[len(learned) - keep :], learned[: len(learned) - keep]
    scorer = TokenScorer(model)
    started, cpu = time.monotonic(), time.process_time()
    loss_first = mean_loss(scorer, held, settings)
    history = _optimise(scorer, learned, settings, order, on_step)
    return {
        "steps": len(history),
        "loss_first": loss_first,
        "loss_last": mean_loss(scorer, held, settings),
        "wall_s": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "history": history,
    }


def _optimise(
    scorer: TokenScorer,
    sequences: list[TokenSequence],
    settings: SupervisedSettings,
    order: random.Random,
    on_step: Callable[[SupervisedMetrics], None] | None,
) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(
        scorer.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    steps = settings.epochs * math.ceil(len(sequences) / settings.batch)
    history: list[dict[str, float]] = []
    scorer.train()
    for _ in range(settings.epochs):
        order.shuffle(sequences)
        for at in range(0, len(sequences), settings.batch):
            rate = learning_rate_at(len(history), steps, settings)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            loss, norm, tokens = _step(scorer, sequences[at : at + settings.batch], settings, optimizer)
            history.append({"loss": loss, "learning_rate": rate, "grad_norm": norm})
            if on_step is not None:
                on_step(SupervisedMetrics(len(history), steps, loss, rate, norm, tokens))
    scorer.eval()
    return history


def _step(
    scorer: TokenScorer,
    batch: Sequence[TokenSequence],
    settings: SupervisedSettings,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, float, int]:
    """One optimizer step; the gradient is that of the token mean over the whole batch."""
    tokens = sum(len(sequence.targets) for sequence in batch)
    device = next(scorer.parameters()).device.type
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        for loss in _summed_losses(scorer, batch, settings.micro_batch_tokens):
            (loss / tokens).backward()
            total += loss.item() / tokens
    if not math.isfinite(total):
        raise LearnerError(f"the loss of a supervised step is {total}; lower the learning rate")
    norm = torch.nn.utils.clip_grad_norm_(scorer.parameters(), settings.max_grad_norm)
    optimizer.step()
    return total, float(norm), tokens
