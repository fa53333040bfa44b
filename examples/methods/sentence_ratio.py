"""SSPO (subsentence) and DHPO (hybrid): between a ratio for each token and one for the whole sequence.

SSPO (arXiv 2511.04256, reading notes) is here with messages as spans, for the loss does not see text, and a
geometric mean, for its normalisation was not found. DHPO (arXiv 2601.05607, abstract and notes) clips both
ratios, then takes their mean; its entropy weight and widths were not found: the widths here are GRPO's and
GSPO's.

agentrl train run.toml --loss.kind examples/methods/sentence_ratio.py:TurnRatio
agentrl train run.toml --loss.kind examples/methods/sentence_ratio.py:HybridRatio
"""

import torch

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


def surrogate(ratio, clipped, inputs):
    """Minus the smaller of the two, times the advantage; and where they differ."""
    loss = -torch.minimum(ratio * inputs.advantage, clipped * inputs.advantage)
    return loss, {"clipped": ratio.detach() != clipped.detach()}


def of_spans(inputs, span):
    """[N] geometric mean of the ratios of a token's span; the gradient flows through its own log-
    probability."""
    _, member = torch.unique(span, return_inverse=True)
    ratios = (inputs.current - inputs.proximal).detach()
    sums = ratios.new_zeros(int(member.max()) + 1).index_add(0, member, ratios)
    mean = (sums / torch.bincount(member))[member]
    return (mean + inputs.current - inputs.current.detach()).exp()


class TurnRatio(Part):
    """One ratio for each message of the policy, clipped."""

    class Settings:
        """Settings of the section `[loss]`."""

        width: Positive = 0.2
        """The ratio is clipped at 1 - width and 1 + width."""

    def __call__(self, inputs):
        """[N] loss, and where it is clipped."""
        ratio = of_spans(inputs, inputs.sequence * (int(inputs.turn.max()) + 1) + inputs.turn)
        return surrogate(ratio, ratio.clamp(1 - self.settings.width, 1 + self.settings.width), inputs)


class HybridRatio(Part):
    """Mean of a token's clipped ratio and its sequence's."""

    class Settings:
        """Settings of the section `[loss]`."""

        token_width: Positive = 0.2
        """Of the token's ratio."""
        sequence_width: Positive = 0.0004
        """Of the sequence's."""

    def __call__(self, inputs):
        """[N] loss, and where it is clipped."""
        token, whole = (inputs.current - inputs.proximal).exp(), of_spans(inputs, inputs.sequence)
        wide, narrow = self.settings.token_width, self.settings.sequence_width
        mixed = 0.5 * token.clamp(1 - wide, 1 + wide) + 0.5 * whole.clamp(1 - narrow, 1 + narrow)
        return surrogate(0.5 * token + 0.5 * whole, mixed, inputs)
