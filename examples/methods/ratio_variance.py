"""R2VPO: no clip; what the ratio strays from 1 is penalised (arXiv 2601.03320, abstract and a third party's
code).

Its dual ascent on the penalty needs constants that were not found: the penalty is fixed here.

agentrl train run.toml --loss.kind examples/methods/ratio_variance.py:RatioVariance --loss.penalty 2
"""

from agentrl.config.part import Part
from agentrl.config.ranges import Amount


class RatioVariance(Part):
    """-(ratio A - penalty (ratio - 1)^2). Watch the entropy: a toy study found that it is burned."""

    class Settings:
        """Settings of the section `[loss]`."""

        penalty: Amount = 1.0
        """lambda."""

    def __call__(self, inputs):
        """[N] loss, and the squared distance of the ratio from 1."""
        ratio = (inputs.current - inputs.behaviour).clamp(-20, 20).exp()
        strayed = (ratio - 1).square()
        return -(ratio * inputs.advantage - self.settings.penalty * strayed), {
            "ratio_variance": strayed.detach()
        }
