"""What one learner step reports. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from agentrl.storage.steps import TokenValues


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One batch: means are over the trainable tokens of all its optimizer steps."""

    loss: float
    """Token mean of everything that is minimised."""
    grad_norm: float
    """Mean length of the gradient before it was cut to `max_grad_norm`."""
    learning_rate: float
    """Of the last optimizer step."""
    optimizer_steps: int
    entropy: float
    """Of the current policy at the trainable positions, in nats, at the episode's temperature."""
    ratio_mean: float
    """Mean of current / proximal."""
    kl_proximal: float
    """k3 estimate of the divergence of current from proximal, nats a token."""
    kl_reference: float
    """k3 estimate of the divergence of current from the reference; 0 without one."""
    importance_mean: float
    """Mean of the raw weight proximal / behaviour, whatever the loss does with it."""
    importance_max: float
    behaviour_gap: float
    """Mean |log proximal - log behaviour|: staleness and engine mismatch together, nats a token."""
    effective_share: float
    """Effective sample size of the raw weights over the number of tokens, in (0, 1]."""
    drift: float
    """Mean |log-probability after the batch - before it| over the clock's tokens; 0 when none asked for."""
    drift_tokens: int
    tokens_learned: int
    """Trainable tokens of the batch, shared ones counted once."""
    tokens_read: int
    """Tokens that went through the model in one pass over the batch, padding left out."""
    padding_share: float
    """Share of padding in the micro-batches."""
    proximal_s: float
    """Wall time of recomputing proximal log-probabilities; 0 where the first pass gives them."""
    train_s: float
    drift_s: float
    """Wall time of scoring the clock's tokens, before and after."""
    seconds: float
    learn_tokens_per_s: float
    """`tokens_read` over `seconds`."""
    model_tflops: float
    """Floating-point operations that the mathematics needs, in 10^12 a second and device: nothing recomputed,
    no padding; 0 for models whose layers are not counted."""
    mfu: float
    """The same over the device's peak in bfloat16; 0 where that is not known (on a CPU)."""
    peak_memory_mb: float
    """Largest GPU memory of the step; on the CPU, largest resident memory of the process so far."""

    of_loss: Mapping[str, float] = field(default_factory=dict)
    """Means of what the loss reports of itself, for example `clip_high`."""

    token_values: TokenValues | None = None
    """What the weights before the step said of each token, on the first rank."""

    def as_dict(self) -> dict[str, float]:
        """All numbers by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["token_values"]
        return dict(values.pop("of_loss")) | values
