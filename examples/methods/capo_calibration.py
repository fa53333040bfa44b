"""CAPO (calibration): right and wrong answers of a group are told apart by their likelihood (arXiv
2604.12632).

From reading notes, complete with constants, save the normalisation of the sum, which is left out here.

agentrl train run.toml --estimator.kind examples/methods/capo_calibration.py:CAPO --estimator.group_size 8
"""

import numpy as np

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


class CAPO(Part):
    """The derivative of a logistic loss of the AUC: a right answer as likely as the wrong ones gets most.

    The paper also leaves out right answers of perplexity above 2.5 and wrong ones below 1.05 under a
    reference; here the perplexity is the sampler's."""

    requires = ("groups",)

    class Settings:
        """Settings of the section `[estimator]`."""

        temperature: Positive = 0.6
        """Of differences of mean log-probability, in nats; .5 for 7B (paper)."""
        right_max: Positive = 2.5
        """Largest perplexity of a right answer that is learned from."""
        wrong_min: Positive = 1.05
        """Smallest perplexity of a wrong one."""

    def __call__(self, batch):
        """[B] advantages."""
        likely = np.array([mean_logprob(episode) for episode in batch.episodes])
        right = batch.scores > 0.5
        # [B, B] sigma(-(right's likelihood less wrong's) / temperature) of each pair in one group.
        gap = (likely[:, None] - likely[None, :]) / self.settings.temperature
        pairs = right[:, None] & ~right[None, :] & (batch.groups[:, None] == batch.groups[None, :])
        weight = np.where(pairs, 1.0 / (1.0 + np.exp(gap)), 0.0)
        kept = np.where(
            right, np.exp(-likely) <= self.settings.right_max, np.exp(-likely) >= self.settings.wrong_min
        )
        return np.where(kept, weight.sum(axis=1) - weight.sum(axis=0), 0.0)


def mean_logprob(episode):
    """Nats a sampled token."""
    total = sum(sum(segment.logprobs) for segment in episode.segments)
    return total / max(episode.num_sampled, 1)
