"""Floating-point operations that learning needs, and what a device could do of them.

A product of matrices counts 2 per multiplication and addition. Counted is what the mathematics needs: no
recomputed activations, no padding, and the head only where a token is learned from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from agentrl.cluster.model_shape import ModelShape
from agentrl.errors import ConfigError
from agentrl.learner.batch import TokenSequence

PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
}
"""Dense bfloat16 operations a second by a part of the device's name, from the vendors' data sheets."""


def peak(device: torch.device) -> float:
    """Operations a second of a device in bfloat16; 0 where it is not known."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), 0.0)


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward pass: of a token, of a pair of tokens in attention, of a target.

    Args:
        token: 2 per weight of the layers.
        pair: 4 H D per layer for each query and key (logits, and the sum of values); half are causal.
        target: 2 V D of the head.
    """

    token: float
    pair: float
    target: float

    @classmethod
    def of(cls, config: Any) -> Flops | None:
        """Those of a transformers configuration; None where its layers are not counted."""
        try:
            shape = ModelShape.from_config(config.to_dict())
        except ConfigError:
            return None
        return cls(
            token=2.0 * shape.layers * shape.per_layer,
            pair=4.0 * shape.layers * shape.heads * shape.head_size,
            target=2.0 * shape.vocabulary * shape.hidden,
        )

    @property
    def even_at(self) -> float:
        """Length at which attention costs as much as the layers' matrices."""
        return 2.0 * self.token / self.pair

    def forward(self, sequences: Iterable[TokenSequence]) -> float:
        """One forward pass over sequences. A backward pass is two more, with an adapter about one."""
        return sum(
            self.token * len(sequence)
            + self.pair * len(sequence) ** 2 / 2.0
            + self.target * len(sequence.targets)
            for sequence in sequences
        )
