"""Sums over the tokens of one batch, kept on the device until the batch is done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.learner.losses.clipped import TokenLoss, effective_share, k3, log_ratio
from agentrl.learner.ranks import Ranks

TERMS = (
    "tokens",
    "padded",
    "read",
    "loss",
    "entropy",
    "clip_low",
    "clip_high",
    "clip_dual",
    "ratio",
    "kl_proximal",
    "kl_reference",
    "importance",
    "importance_square",
    "outside",
    "gap",
)


@dataclass(frozen=True, slots=True)
class Totals:
    """What was added up, over all ranks."""

    sums: dict[str, float]
    importance_max: float

    def mean(self, name: str) -> float:
        """Mean over all tokens; 0 of none."""
        return self.sums[name] / self.sums["tokens"] if self.sums["tokens"] else 0.0

    @property
    def effective_share(self) -> float:
        """Effective sample size of the raw importance weights, over the number of tokens."""
        return effective_share(
            self.sums["importance"], self.sums["importance_square"], int(self.sums["tokens"])
        )

    @property
    def padding_share(self) -> float:
        """Share of padding in the micro-batches."""
        return 1.0 - self.sums["read"] / self.sums["padded"] if self.sums["padded"] else 0.0


class Tally:
    """Adds up what `StepMetrics` reports. Reading a number waits for the device, so it is read once.

    Args:
        device: where the sums are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self._largest = torch.zeros(1, device=device)

    def add_shape(self, read: int, padded: int) -> None:
        """Add the size of one micro-batch: its tokens without and with padding."""
        self._sums[TERMS.index("read")] += read
        self._sums[TERMS.index("padded")] += padded

    def add(
        self, result: TokenLoss, current: Tensor, proximal: Tensor, behaviour: Tensor, entropy: Tensor
    ) -> None:
        """Add the N tokens of one micro-batch; all tensors are [N]."""
        raw = result.importance.raw
        kl_reference = result.kl_reference
        terms = {
            "tokens": torch.ones_like(raw),
            "loss": result.loss,
            "entropy": entropy,
            "clip_low": result.surrogate.clipped_low,
            "clip_high": result.surrogate.clipped_high,
            "clip_dual": result.surrogate.clipped_dual,
            "ratio": result.ratio,
            "kl_proximal": k3(current, proximal),
            "kl_reference": torch.zeros_like(raw) if kl_reference is None else kl_reference,
            "importance": raw,
            "importance_square": raw.double().square(),
            "outside": result.importance.outside,
            "gap": log_ratio(proximal, behaviour).abs(),
        }
        with torch.no_grad():
            for name, values in terms.items():
                self._sums[TERMS.index(name)] += values.detach().double().sum()
            self._largest = torch.maximum(self._largest, raw.max())

    def totals(self, ranks: Ranks) -> Totals:
        """Everything added so far, on all ranks."""
        sums = ranks.sum(self._sums.clone()).tolist()
        return Totals(dict(zip(TERMS, sums, strict=True)), float(ranks.largest(self._largest.clone()).item()))
