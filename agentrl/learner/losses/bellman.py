"""Losses that read log-probabilities as values, without ratio, clip or baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from agentrl.config.ranges import Positive
from agentrl.errors import DataError
from agentrl.learner.losses.clipped import LossInputs


class TBRMLoss:
    """Squared Bellman residual of a whole trajectory, one episode a prompt (TBRM).

    e = logit of the first sampled token + sum of log current over the later ones - sum of log reference over
    all - score / beta; the loss of a sequence is e squared. The logit (before the normaliser) is a learned
    soft value of the prompt. Advantages are not looked at, so neither is a baseline or its normalisation;
    tool output is in no sum. Made for `aggregator.kind = "sequences"` and small learning rates: one number is
    regressed over thousands of tokens; watch the residual.

    Source: arXiv 2505.15311, text read (its sum telescopes to this); beta was not found, that here is ours.
    """

    requires = ("reference",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `tbrm`."""

        beta: Positive = 1.0
        """What the score is divided by: the weight of the divergence from the first weights."""

    def __init__(self, settings: Settings) -> None:
        self._beta = settings.beta

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] squared residual of each token's sequence, and the residual."""
        if inputs.reference is None or inputs.score is None:
            raise DataError(
                "the loss 'tbrm' needs reference log-probabilities and the score of every episode"
            )
        first = inputs.sequence != inputs.sequence.roll(1)
        first[0] = True
        terms = inputs.current - inputs.reference + inputs.logsumexp.where(first, 0.0)
        residual = inputs.sequence_sum(terms) - inputs.score / self._beta
        return residual.square(), {"residual": residual.detach()}
