"""Optimizers whose steps have one size: the learning rate, in every weight; only their signs are learned.

They step this rank's part of split weights: every operation is element by element.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from agentrl.learner.ranks import local


class SignOptimizer(torch.optim.Optimizer):
    """Steps by signs, after weight decay.

    Args:
        groups: of parameters, each with a `weight_decay`.
        lr: learning rate.
        betas: of the two averages.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(list(groups), {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore[bad-override]
        """Take one step."""
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.begin(parameter))
                state["step"] += 1
                sign = self.sign(
                    local(parameter.grad), {k: local(v) for k, v in state.items()}, group["betas"], place
                )
                here = local(parameter)
                here.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(sign, alpha=group["lr"])

    def begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a weight that was never stepped."""
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}

    def sign(
        self, gradient: Tensor, state: dict[str, Tensor], betas: tuple[float, float], place: int
    ) -> Tensor:
        """The sign of each weight's step; moves the averages."""
        raise NotImplementedError


class Lion(SignOptimizer):
    """Sign of an average of momentum and gradient; momentum forgets more slowly than that average (Lion).

    With weight decay d the weights are drawn into |w| <= 1 / d. Takes a learning rate 3 to 10 times smaller
    than AdamW's, and a decay larger by as much; its authors take betas of .9 and .99.

    Source: arXiv 2302.06675, code read.
    """

    def sign(
        self, gradient: Tensor, state: dict[str, Tensor], betas: tuple[float, float], place: int
    ) -> Tensor:
        """sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
        momentum = state["exp_avg"]
        sign = torch.lerp(gradient, momentum, betas[0]).sign_()
        momentum.lerp_(gradient, 1.0 - betas[1])
        return sign


class StoSignSGD(SignOptimizer):
    """Sign of momentum with noise as large as the largest momentum so far: right on average (StoSignSGD).

    E[sign(m + G n)] = m / G for n uniform in [-1, 1]. G never falls: where gradients shrink over a long run,
    so do the steps. The noise is drawn from the number of the step, so a resumed run draws it again.

    Source: arXiv 2604.15416, reading notes with the whole update.
    """

    def begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Momentum and its largest size."""
        return {**super().begin(parameter), "exp_avg_max": torch.zeros_like(parameter)}

    def sign(
        self, gradient: Tensor, state: dict[str, Tensor], betas: tuple[float, float], place: int
    ) -> Tensor:
        """sign(m + G n) with m = b1 m + (1 - b1) g and G = max(G, |m|)."""
        momentum, largest = state["exp_avg"], state["exp_avg_max"]
        momentum.lerp_(gradient, 1.0 - betas[0])
        torch.maximum(largest, momentum.abs(), out=largest)
        seed = int(state["step"]) * 1_000_003 + place
        generator = torch.Generator(device=momentum.device).manual_seed(seed)
        noise = torch.rand(momentum.shape, generator=generator, device=momentum.device, dtype=momentum.dtype)
        return (momentum + largest * noise.mul_(2.0).sub_(1.0)).sign_()
