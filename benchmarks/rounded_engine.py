"""The embedded engine with weights rounded to 8 bits: a sampler that is never quite the learner's policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agentrl.config.settings import Settings
from agentrl.inference.embedded.engine import TransformersPolicy
from agentrl.weights.handle import WeightHandle


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """A matrix with each row rounded to 255 even steps between plus and minus its largest entry."""
    if weight.ndim < 2:
        return weight.clone()
    step = weight.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127.0
    return (weight / step).round() * step


class RoundedPolicy(TransformersPolicy):
    """Loads every version rounded.

    Args:
        settings: of the run.
        source: the learner's model.
        tokenizer: of the model.
        logs: folder of logs, not used.
    """

    def __init__(self, settings: Settings, source: Any, tokenizer: Any, logs: Path) -> None:
        engine = settings.engine
        super().__init__(
            source,
            tokenizer,
            slots=engine.slots,
            context_tokens=engine.context_tokens,
            dtype=engine.dtype,
            keep_keys=engine.keep_keys,
            seed=settings.run.seed,
            attempt=1,
            update_limit_s=engine.update_limit_s,
        )

    async def load(self, weights: WeightHandle) -> None:
        """Round, then load."""
        with torch.no_grad():
            source = {name: rounded(weight) for name, weight in weights.source.named_parameters()}
        await super().load(WeightHandle(weights.version, weights.attempt, source))

    def _make_model(self) -> Any:
        model = super()._make_model()
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(rounded(weight))
        return model
