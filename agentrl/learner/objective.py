"""What a learner minimises: the loss of each token, and how tokens are added up; both may be a user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrl.config import registry
from agentrl.config.settings import AggregatorSettings, LossSettings
from agentrl.errors import ConfigError, PartError
from agentrl.learner.losses.clipped import LossInputs, with_divergence, with_regularisers


class Objective:
    """Loss and aggregator of a run.

    Args:
        loss: names the loss, and the regularisers that are added to any.
        aggregator: names the aggregator.

    Raises:
        ConfigError: there is no such part, or it refuses its settings.
    """

    def __init__(self, loss: LossSettings, aggregator: AggregatorSettings) -> None:
        self._loss_settings, self._aggregator_settings = loss, aggregator
        self._loss = registry.make("loss", loss.kind, loss.own)
        self._aggregator = registry.make("aggregator", aggregator.kind, aggregator.own)
        requires = registry.declared("loss", loss.kind).requires
        self.needs_reference = loss.kl_coefficient > 0.0 or "reference" in requires
        """Whether the loss looks at the weights that the run began with."""
        self.top_k = int(getattr(self._loss, "top_k", 0))
        """Likeliest tokens that the loss looks at."""
        self.behaviour_top_k = registry.behaviour_top_k(loss.kind, loss.own)
        """Likeliest tokens of the sampler that the loss looks at."""
        taught = "teacher" in requires
        self.teacher = loss.teacher if taught and not loss.teacher_is_served else ""
        """Weights of the teacher; empty where the loss looks at none, or it is a server."""
        self.served_teacher = taught and loss.teacher_is_served
        """Whether episodes bring what the teacher says of their tokens."""
        if "teacher" in requires and not loss.teacher:
            raise ConfigError(
                f'loss.kind = {loss.kind!r} requires a teacher: name its weights, loss.teacher = "path", or '
                "a vLLM server, http://host:port"
            )
        self.needs_proximal = "proximal" in requires or hasattr(self._loss, "statistics")
        """Whether the whole batch is scored before its first step, also where one step takes it all."""

    def control(self, values: Mapping[str, float]) -> None:
        """Use other coefficients from now on, by name of their settings."""
        known = ("kl_coefficient", "entropy_coefficient")
        own: dict[str, Any] = {name: values[f"loss.{name}"] for name in known if f"loss.{name}" in values}
        self._loss_settings = replace(self._loss_settings, **own)

    @property
    def statistics(self) -> Callable[[LossInputs], Mapping[str, Tensor]] | None:
        """What the loss computes over the whole batch; None where it computes nothing."""
        statistics = getattr(self._loss, "statistics", None)
        if statistics is None:
            return None

        def compute(inputs: LossInputs) -> Mapping[str, Tensor]:
            with torch.no_grad(), registry.blame("loss", self._loss_settings.kind):
                return statistics(inputs)

        return compute

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss with regularisers, and [N] each of what the loss reports.

        Raises:
            PartError: the loss raised, or gave something of another shape.
        """
        settings = self._loss_settings
        if settings.kl == "k1" and settings.kl_coefficient > 0.0:
            inputs = with_divergence(inputs, settings.kl_coefficient)
        with registry.blame("loss", settings.kind):
            loss, metrics = self._loss(inputs)
            given = {"loss": loss, **metrics}
        for name, values in given.items():
            if np.shape(values) != inputs.current.shape:
                raise PartError(
                    f"loss.kind = {settings.kind!r} gave {name!r} of shape {list(np.shape(values))} for "
                    f"{len(inputs.current)} tokens; every one needs the shape [{len(inputs.current)}]"
                )
        loss = with_regularisers(
            loss,
            inputs,
            kl=settings.kl,
            kl_coefficient=settings.kl_coefficient,
            entropy_coefficient=settings.entropy_coefficient,
        )
        return loss, metrics

    def weights(self, counts: Sequence[int]) -> NDArray[np.float64]:
        """[S] what a token of each of S sequences weighs, from how many tokens they have.

        Raises:
            PartError: the aggregator raised, or gave something else than S finite numbers.
        """
        kind = self._aggregator_settings.kind
        with registry.blame("aggregator", kind):
            weights = np.asarray(self._aggregator(np.array(counts, dtype=np.int64)), dtype=np.float64)
        if weights.shape != (len(counts),) or not np.isfinite(weights).all():
            raise PartError(
                f"aggregator.kind = {kind!r} gave {weights!r:.200} for {len(counts)} sequences; it needs as "
                "many finite numbers"
            )
        return weights
