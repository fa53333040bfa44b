"""How long a step will take, from what a device can do and the share of it that was measured.

Rates of GPUs are the vendors' (dense bfloat16, memory); shares are those of `docs/results/gpu`. On a machine
without GPUs the rate of products of matrices is measured. An estimate to plan with, not a promise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from agentrl.cluster.model_shape import ModelShape
from agentrl.config.settings import Settings

GPU_RATES: dict[str, tuple[float, float, int]] = {
    "B200": (2250e12, 8.0e12, 180),
    "H200": (989e12, 4.8e12, 141),
    "H100": (989e12, 3.35e12, 80),
    "A100": (312e12, 2.0e12, 80),
    "L40S": (362e12, 0.86e12, 48),
    "4090": (165e12, 1.0e12, 24),
    "A10": (125e12, 0.6e12, 24),
    "L4": (121e12, 0.3e12, 24),
}
"""Operations and bytes a second, and GB, by a part of the device's name."""
BY_SIZE = {24: "A10", 48: "L40S", 80: "H100", 141: "H200", 180: "B200"}
"""The device that is assumed where only its GB are known."""
LEARN_SHARE, LEARN_SHARE_COMPILED = 0.28, 0.45
"""Of a GPU's operations that learning reaches (0.6B, sequences of 16,384 tokens, H200)."""
DECODE_SHARE = 0.5
"""Of a GPU's memory rate that decoding reaches; assumed, not measured."""
CPU_SHARE = 0.5
"""Of a core's products of matrices in float32, for learning and decoding."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one device can do in a second."""

    name: str
    operations: float
    bytes: float
    gpu: bool


def gpu_rates(name: str, size: int) -> Rates | None:
    """Rates of a GPU by its name, else by its size in bytes; None for others."""
    known = next((part for part in GPU_RATES if part in name), None)
    known = known or BY_SIZE.get(min(BY_SIZE, key=lambda gb: abs(gb * 10**9 - size)))
    if known is None:
        return None
    operations, rate, _ = GPU_RATES[known]
    return Rates(known, operations, rate, gpu=True)


def cpu_rates(cores: int) -> Rates:
    """Measured here, in a fraction of a second; all cores together."""
    matrix = np.ones((768, 768), dtype=np.float32)
    matrix @ matrix
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        matrix @ matrix
        rounds.append(time.perf_counter() - started)
    large = np.ones(1 << 24, dtype=np.float32)
    started = time.perf_counter()
    large.copy()
    copied = 2 * large.nbytes / (time.perf_counter() - started)
    return Rates(f"{cores} cores", 2.0 * 768**3 / min(rounds), copied, gpu=False)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step of B episodes of T tokens."""

    tokens: int
    """T that is assumed: half of what an episode may have."""
    learn_s: float
    sample_s: float
    together: bool
    """Whether learning and sampling go on at the same time."""
    device: str

    @property
    def step_s(self) -> float:
        """From one version to the next."""
        return max(self.learn_s, self.sample_s) if self.together else self.learn_s + self.sample_s


def forward_operations(shape: ModelShape, tokens: int) -> float:
    """Of one forward pass over a sequence: matrices of the layers, half of the pairs of tokens, the head."""
    layers = 2.0 * shape.layers * shape.per_layer * tokens
    attention = 2.0 * shape.layers * shape.heads * shape.head_size * float(tokens) ** 2
    return layers + attention + 2.0 * shape.vocabulary * shape.hidden * tokens


def step_time(shape: ModelShape, settings: Settings, rates: Rates) -> StepTime:
    """What a step will take on devices of one kind."""
    learner, engine = settings.learner, settings.engine
    context = engine.context_tokens or shape.context
    tokens = max(1, min(context, settings.rollout.max_tokens) // 2)
    several = learner.epochs > 1 or 0 < learner.mini_batch < settings.stream.batch
    backward = 1 if learner.adapter.rank else 2
    passes = learner.epochs * (1 + backward + learner.gradient_checkpointing) + several
    passes += settings.loss.kl_coefficient > 0
    share = (LEARN_SHARE_COMPILED if learner.compile else LEARN_SHARE) if rates.gpu else CPU_SHARE
    operations = settings.stream.batch * passes * forward_operations(shape, tokens)
    ranks = learner.ranks if rates.gpu else 1
    return StepTime(
        tokens=tokens,
        learn_s=operations / (ranks * rates.operations * share),
        sample_s=_sampling(shape, settings, rates, tokens),
        together=settings.stream.staleness > 0 and rates.gpu and engine.layout == "separate",
        device=rates.name,
    )


def _sampling(shape: ModelShape, settings: Settings, rates: Rates, tokens: int) -> float:
    """Every decoded token reads the weights once for all slots, and its own keys."""
    engine = settings.engine
    width = 2 if (settings.model.dtype if engine.dtype == "auto" else engine.dtype) == "bfloat16" else 4
    replicas, devices = engine.replicas, engine.tensor_parallel if rates.gpu else 1
    busy = min(engine.slots, max(1, settings.stream.batch // replicas))
    read = shape.parameters * width + busy * tokens / 2 * shape.key_bytes(width)
    share = DECODE_SHARE if rates.gpu else CPU_SHARE
    seconds = read / (rates.bytes * share * devices)
    work = busy * forward_operations(shape, 1) / (rates.operations * share * devices)
    return settings.stream.batch * tokens / (busy * replicas) * max(seconds, work)
