"""The loss of a supervised warm start."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from agentrl.learner.losses.clipped import LossInputs


class CrossEntropyLoss:
    """-log p of each token, whatever its advantage: next-token prediction on what an episode says.

    `agentrl sft` minimises it on written conversations. On sampled episodes it learns to repeat them, those
    of low reward too.

    Source: maximum likelihood, as language models are trained everywhere.
    """

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss; nothing is logged besides."""
        return -inputs.current, {}
