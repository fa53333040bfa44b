"""Sums over the tokens of one batch, kept on the device until the batch is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.learner.losses.clipped import LossInputs, effective_share, k3, log_ratio
from agentrl.learner.ranks import Ranks


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
        self._sums: dict[str, Tensor] = {}
        self._device = device
        self._largest = torch.zeros(1, device=device)
        self.loss_metrics: tuple[str, ...] = ()
        """Names of what the loss reports of itself."""

    def add_shape(self, read: int, padded: int) -> None:
        """Add the size of one micro-batch: its tokens without and with padding."""
        self._add("read", read)
        self._add("padded", padded)

    def add(
        self, inputs: LossInputs, loss: Tensor, metrics: Mapping[str, Tensor], *, counts: bool = True
    ) -> None:
        """Add the N tokens of one micro-batch.

        Args:
            inputs: of the loss.
            loss: [N]
            metrics: [N] each, what the loss reports of itself.
            counts: without it nothing is added but names: every rank must know the same ones.
        """
        self.loss_metrics = tuple(metrics)
        with torch.no_grad():
            current, proximal = inputs.current.detach(), inputs.proximal
            raw = log_ratio(proximal, inputs.behaviour).exp()
            reference = inputs.reference
            terms = {
                "tokens": torch.ones_like(raw),
                "loss": loss,
                "entropy": inputs.entropy,
                "ratio": log_ratio(current, proximal).exp(),
                "kl_proximal": k3(current, proximal),
                "kl_reference": torch.zeros_like(raw) if reference is None else k3(current, reference),
                "importance": raw,
                "importance_square": raw.double().square(),
                "gap": log_ratio(proximal, inputs.behaviour).abs(),
                # A loss may call something `tokens` too.
                **{f"loss.{name}": values for name, values in metrics.items()},
            }
            for name, values in terms.items():
                self._add(name, values.detach().double().sum() if counts else 0.0)
            if counts:
                self._largest = torch.maximum(self._largest, raw.max())

    def _add(self, name: str, value: Tensor | float) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums[name] += value

    def totals(self, ranks: Ranks) -> Totals:
        """Everything added so far, on all ranks."""
        names = sorted(self._sums)
        sums = ranks.sum(torch.stack([self._sums[name] for name in names])).tolist()
        return Totals(dict(zip(names, sums, strict=True)), float(ranks.largest(self._largest.clone()).item()))
