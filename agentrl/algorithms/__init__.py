"""The mathematics of Single-stream Policy Optimization (arXiv 2509.13232).

Value tracker, prompt sampler and advantages, in NumPy. Prompts are integers 0 .. P-1. This package
knows nothing of torch, asyncio, environments or tokens.
"""

from agentrl.algorithms.advantage import (
    CreditBatch,
    Estimator,
    advantages,
    grpo_advantages,
    mixed_groups,
    normalise,
)
from agentrl.algorithms.calibration import Calibration, brier_score, calibration, log_loss
from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import Fold, ValueTracker

__all__ = [
    "Calibration",
    "CreditBatch",
    "Estimator",
    "Fold",
    "PromptSampler",
    "ValueTracker",
    "advantages",
    "brier_score",
    "calibration",
    "grpo_advantages",
    "log_loss",
    "mixed_groups",
    "normalise",
]
