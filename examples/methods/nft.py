"""NFT: likelihood of right answers, and of an implicit policy of wrong ones (arXiv 2505.18116, id from
memory; code read).

The advantage is not looked at; the success rate of a prompt is the tracker's value, and the estimator below
hands it on in place of an advantage.

agentrl train run.toml --loss.kind examples/methods/nft.py:NFT --estimator.kind examples/methods/nft.py:Rate
"""

import numpy as np
import torch

from agentrl.config.part import Part
from agentrl.config.ranges import Share


class Rate:
    """The tracker's value of each prompt, within [.02, .98]: not an advantage."""

    requires = ("baselines",)

    def __call__(self, batch):
        """[B] values."""
        return np.clip(batch.baselines, 0.02, 0.98)


class NFT(Part):
    """-log max(ratio, c) where right, -log max((1 - p ratio) / (1 - p), c) where wrong, straight through the
    max."""

    class Settings:
        """Settings of the section `[loss]`."""

        right_floor: Share = 0.1
        """c of right answers (ours: the paper's was not found)."""
        wrong_floor: Share = 0.1
        """c of wrong ones."""

    def __call__(self, inputs):
        """[N] loss, and the implicit ratio."""
        right, rate = inputs.score > 0.5, inputs.advantage
        ratio = (inputs.current - inputs.proximal).exp()
        implicit = torch.where(right, ratio, (1 - rate * ratio) / (1 - rate))
        floor = torch.where(right, self.settings.right_floor, self.settings.wrong_floor)
        bounded = implicit + (torch.maximum(implicit, floor) - implicit).detach()
        return -bounded.log(), {"implicit_ratio": implicit.detach()}
