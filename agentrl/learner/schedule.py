"""The learning rate of each optimizer step, as a share of the largest. No torch; its state is the step."""

from __future__ import annotations

import math

from agentrl.config.settings import LearnerSettings
from agentrl.errors import ConfigError


def check_schedule(settings: LearnerSettings) -> None:
    """Make sure that a schedule knows its end.

    Raises:
        ConfigError: it does not.
    """
    if settings.schedule_steps == 0 and (settings.schedule != "constant" or 0 < settings.warmup_steps < 1):
        raise ConfigError(
            f"learner.schedule = {settings.schedule!r} with learner.warmup_steps = {settings.warmup_steps:g} "
            "needs learner.schedule_steps, the optimizer steps until its end"
        )


def rate_share(step: int, settings: LearnerSettings) -> float:
    """Share of the learning rate at an optimizer step.

    With w steps of warm-up and N in all, (step + 1) / w first; then, at p = (step - w) / (N - w) of the way
    and with the floor f, 1 - (1 - f) p (linear) or f + (1 - f) (1 + cos(pi p)) / 2 (cosine); f past the end.

    Args:
        step: from 0.
        settings: of the learner.
    """
    warmup, steps = settings.warmup_steps, settings.schedule_steps
    if 0 < warmup < 1:
        warmup = math.ceil(warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    way = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    left = 1.0 - way if settings.schedule == "linear" else (1.0 + math.cos(math.pi * way)) / 2.0
    return settings.schedule_floor + (1.0 - settings.schedule_floor) * left
