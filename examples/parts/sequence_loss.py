"""A loss: one ratio for a whole sequence, clipped (GSPO, arXiv 2507.18071).

agentrl train run.toml --loss.kind examples/parts/sequence_loss.py:SequenceLoss --loss.width 0.0004
"""

import torch

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


class SequenceLoss(Part):
    """Minus the smaller of ratio and clipped ratio, times the advantage; the ratio is a sequence's."""

    class Settings:
        """Settings of the section `[loss]`."""

        width: Positive = 0.0004
        """The ratio is clipped at 1 - width and 1 + width."""

    def __call__(self, inputs):
        """[N] loss, and what is logged of it."""
        mean = inputs.sequence_mean(inputs.current.detach() - inputs.proximal)
        # The value is the sequence's ratio, the gradient flows through each token's own probability.
        ratio = (mean + inputs.current - inputs.current.detach()).exp()
        clipped = ratio.clamp(1 - self.settings.width, 1 + self.settings.width)
        loss = -torch.minimum(ratio * inputs.advantage, clipped * inputs.advantage)
        return loss, {"clipped": ratio.detach() != clipped.detach()}
