"""An optimizer over float32 master weights.

Weights in bfloat16 have 8 bits of mantissa: a step of 1e-6 would vanish in them. So where the model is
not in float32, the optimizer keeps a float32 copy of each weight, gathers gradients in float32 over the
micro-batches, steps the copy, and writes it back rounded. It knows nothing of losses or episodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentrl.config.settings import LearnerSettings
from agentrl.errors import CheckpointError
from agentrl.learner.ranks import local, whole
from agentrl.learner.schedule import check_schedule, rate_share
from agentrl.learner.sign_optimizers import Lion, StoSignSGD

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",), "sto_sign": ("exp_avg", "exp_avg_max")}
"""What each optimizer remembers of a weight."""


def _make(groups: list[dict[str, Any]], settings: LearnerSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.adam_epsilon, fused=True
        )
    kind = Lion if settings.optimizer == "lion" else StoSignSGD
    return kind(groups, lr=settings.learning_rate, betas=settings.betas)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights, moments and step count of one moment, in host memory."""

    state: dict[str, Tensor]
    steps: int


class MasterOptimizer:
    """The optimizer that the settings name, over the weights of a model.

    Weight decay acts on matrices only; norms and biases are left alone.

    Args:
        model: whose trainable parameters are stepped.
        settings: learning rate, schedule, betas, epsilon, weight decay and longest gradient; whether
            masters, moments and gradients lie in host memory. Weights that are split among ranks (FSDP2) are
            offloaded where they are split, and stepped where they lie.

    Raises:
        ConfigError: the schedule does not know its end.
    """

    def __init__(self, model: nn.Module, settings: LearnerSettings) -> None:
        check_schedule(settings)
        self._settings = settings
        self.full_rate = settings.learning_rate
        """Largest learning rate."""
        self._names: list[str] = []
        self._parameters: list[nn.Parameter] = []
        self._masters: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._names.append(name)
                self._parameters.append(parameter)
                self._masters.append(self._make_master(parameter))
        matrices = [master for master in self._masters if master.ndim >= 2]
        others = [master for master in self._masters if master.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._inner = _make(groups, settings)
        self.steps = 0
        """Optimizer steps taken."""
        self.last_learning_rate = 0.0
        """Of the step taken last."""

    def _make_master(self, parameter: nn.Parameter) -> Tensor:
        away = self._settings.offload and not hasattr(parameter, "to_local")
        if parameter.dtype == torch.float32 and not away:
            return parameter
        home = torch.device("cpu") if away else parameter.device
        master = parameter.detach().to(home, torch.float32, copy=True).requires_grad_()

        def gather(_: Tensor) -> None:
            # In float32 and at once, so that bfloat16 gradients of the whole model exist only briefly.
            assert parameter.grad is not None
            gradient = parameter.grad.to(home).float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(gather)
        return master

    @property
    def learning_rate(self) -> float:
        """Of the next step, as the schedule has it."""
        return self.full_rate * rate_share(self.steps, self._settings)

    def zero_grad(self) -> None:
        """Forget gradients."""
        for tensor in (*self._masters, *self._parameters):
            tensor.grad = None

    def step(self) -> float | None:
        """Cut the gradient to its longest length, step, and forget it.

        Returns:
            Length of the gradient before it was cut; None where it is not finite, and then no weight
            has changed and the gradient is still there.
        """
        longest = self._settings.max_grad_norm
        bound = longest if longest > 0 else math.inf
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._masters, bound)))
        if not math.isfinite(norm):
            return None
        self.last_learning_rate = self.learning_rate
        for group in self._inner.param_groups:
            group["lr"] = self.last_learning_rate
        self._inner.step()
        self.write_back()
        self.zero_grad()
        self.steps += 1
        return norm

    def write_back(self) -> None:
        """Round the masters into the model's weights."""
        with torch.no_grad():
            for parameter, master in self._separate():
                parameter.copy_(master)

    def finite_gradient(self) -> bool:
        """Whether all gradients gathered so far are finite."""
        return all(
            bool(torch.isfinite(local(master.grad)).all())
            for master in self._masters
            if master.grad is not None
        )

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors of the state by name: float32 weights, moments and step counts."""
        result: dict[str, Tensor] = {}
        for name, master in zip(self._names, self._masters, strict=True):
            result[f"master:{name}"] = master.detach()
            for key, value in self._inner.state.get(master, {}).items():
                result[f"{key}:{name}"] = value
        return result

    def blank(self, names: Collection[str]) -> dict[str, Tensor]:
        """Live tensors to copy a saved state into; moments are new. `loaded` ends what this begins.

        Args:
            names: of the tensors of that state.

        Raises:
            CheckpointError: they are of another optimizer; this one is as before.
        """
        moments = MOMENTS[self._settings.optimizer]
        stepped = [f"step:{name}" in names for name in self._names]
        for name in itertools.compress(self._names, stepped):
            if any(f"{key}:{name}" not in names for key in moments):
                raise CheckpointError(
                    f"the saved optimizer is not {self._settings.optimizer!r}: resume with the "
                    "learner.optimizer that the run had"
                )
        self.zero_grad()
        self._inner.state.clear()
        for master in itertools.compress(self._masters, stepped):
            state = {key: torch.zeros_like(master, requires_grad=False) for key in moments}
            self._inner.state[master] = {"step": torch.zeros((), device=local(master).device)} | state
        return self.tensors()

    def loaded(self, steps: int) -> None:
        """Go on from what was copied into `blank`, after so many steps."""
        self.steps = steps
        self.write_back()

    def snapshot(self) -> Snapshot:
        """A copy of the state in host memory, to go back to with `restore`."""
        state = {name: local(tensor).to("cpu", copy=True) for name, tensor in self.tensors().items()}
        return Snapshot(state, self.steps)

    def restore(self, snapshot: Snapshot) -> None:
        """Undo every step since the snapshot."""
        for name, tensor in self.blank(snapshot.state).items():
            local(tensor).copy_(snapshot.state[name])
        self.loaded(snapshot.steps)

    def _separate(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                yield parameter, master
