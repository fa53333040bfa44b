"""Settings of a run's sections that name a part of the algorithm.

What a part has of its own stands in the same section and is kept in `own`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from agentrl.config.ranges import Amount, Count, Number, PartOf, Positive, Range

Rules: TypeAlias = Iterator[tuple[tuple[str, ...], str]]
"""(settings concerned, what is wrong) of every rule between settings that does not hold."""
Forgetting = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """`[tracker]`: the value tracker of SPO (paper section 4.1)."""

    kind: Annotated[str, PartOf("tracker")] = "spo"
    """`spo` (the paper's), `trend` (values follow what all prompts of an environment learn), or a class in a
    file, `my.py:Name`, with the methods of `ValueTracker`."""
    drift: Literal["clock", "replay", "constant"] = "clock"
    """How far the policy moved since a prompt's last visit: a clock of the learner's own drift, the
    prompt's previous episode scored again, or not measured at all."""
    rho_min: Forgetting = 0.875
    """Strongest forgetting; its window 1 / (1 - rho) is also the weight of the initial value."""
    rho_max: Forgetting = 0.96
    """Weakest forgetting."""
    rho_constant: Forgetting = 0.875
    """Forgetting factor of `drift = "constant"`."""
    d_half: Amount = 0.0
    """Drift that halves what is remembered, in nats a token; 0 takes the fitted value of the drift."""
    initial_rollouts: Number = 0
    """Rollouts per prompt that set its initial value (n0; the paper takes 8), all of them played before the
    first step; 0 starts from the running mean of first visits."""
    initial_file: str = ""
    """Rewards of earlier rollouts, jsonl with `prompt_id` and `rewards`, in place of initial rollouts."""
    clock_tokens: Number = 2048
    """Model tokens scored again after each batch to advance the clock."""
    own: dict[str, Any] = field(default_factory=dict)

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.drift == "clock" and self.clock_tokens == 0:
            text = (
                "tracker.clock_tokens = 0 would keep the clock of tracker.drift = 'clock' at 0 for ever; "
                "give it tokens to measure with, or tracker.drift = 'constant'"
            )
            yield ("clock_tokens", "drift"), text
        if self.rho_min > self.rho_max:
            text = f"tracker.rho_min = {self.rho_min} must not exceed tracker.rho_max = {self.rho_max}"
            yield ("rho_min", "rho_max"), text
        if self.initial_rollouts and self.initial_file:
            text = "tracker.initial_file takes the place of tracker.initial_rollouts: give one of them"
            yield ("initial_rollouts", "initial_file"), text


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """`[sampler]`: which prompt is drawn next (paper section 4.3)."""

    kind: Annotated[str, PartOf("sampler")] = "priority"
    """`priority` (by what is left to learn), `deviation` (the same for rewards that
    are not only 0 and 1), `uniform`, or a class in a file, `my.py:Name`."""
    copies_per_prompt: Count = 1
    """Episodes of one prompt in flight when all prompts are pending."""
    fresh_copies: Count = 1
    """Episodes of a prompt that was never seen, each with the mean of the others as its baseline; it is drawn
    as much more rarely."""
    quarantine_after: Count = 3
    """Infrastructure failures in a row after which a prompt is set aside."""
    own: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShaperSettings:
    """`[shaper]`: what an episode counts for, made from its reward."""

    kind: Annotated[str, PartOf("shaper", also=("none",))] = "none"
    """`none`, or a function or class in a file, `my.py:name`: from an episode to a reward in the range of its
    environment. The value tracker and the estimator see it; metrics show the environment's own reward."""
    own: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """`[estimator]`: rewards to advantages."""

    kind: Annotated[str, PartOf("estimator")] = "spo"
    """`spo` (reward less the tracker's value), `grpo` (less the mean of its group), `no_baseline` (the reward
    itself), or a class in a file, `my.py:Name`."""
    group_size: Count = 1
    """Episodes per prompt; 1 except for estimators that compare the episodes of a group."""
    own: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LossSettings:
    """`[loss]`: what is minimised at each token (paper appendix D)."""

    kind: Annotated[str, PartOf("loss")] = "clipped"
    """`clipped` (the paper's), another of `agentrl parts --kind loss`, or a class in a file, `my.py:Name`."""
    kl_coefficient: Amount = 0.0
    """Weight of the divergence from the first weights, for any loss; 0 needs no reference."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """`k3` in the loss: never negative, with the gradient of KL(reference || current). `k2` in the loss: the
    gradient of KL(current || reference) at each token. `k1` in the reward, from each token on: the gradient
    of KL(current || reference) of whole sequences."""
    entropy_coefficient: Annotated[float, Range()] = 0.0
    """Weight of an entropy bonus, taken from any loss."""
    teacher: str = ""
    """Teacher of losses that require one, with the same token ids: weights, like `model.path`, or the address
    of a vLLM server, `http://host:port` (its key is read from `AGENTRL_TEACHER_KEY`)."""
    teacher_at_once: Count = 8
    """Sequences that a served teacher scores at once."""
    teacher_limit_s: Positive = 300.0
    """How long a sequence may take a served teacher, tries included; then its episode fails, as where a
    grader is gone."""
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher_is_served(self) -> bool:
        """Whether the teacher is a server."""
        return self.teacher.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """`[aggregator]`: how the losses of tokens become one number."""

    kind: Annotated[str, PartOf("aggregator")] = "tokens"
    """`tokens` (mean over all tokens of a mini-batch), `sequences` (mean of the means of its sequences),
    `constant` (sum over a constant), or a part in a file, `my.py:Name`."""
    own: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """`[controller]`: changes numbers between steps."""

    kind: Annotated[str, PartOf("controller", also=("none",))] = "none"
    """`none`, `effective_share` (lowers the staleness while importance weights leave too few effective
    tokens), or a class in a file, `my.py:Name`."""
    own: dict[str, Any] = field(default_factory=dict)
