"""A prior of the success rate from the tokens of a prompt, where a prompt is hardly known.

POISE (arXiv 2605.07579, text read) predicts rewards from hidden states of the policy, at the end of the
prompt and along the answer; engines and learners here do not hand those on. This has the idea of its
prompt-only form, which one rollout a prompt leaves unbiased, with features that are there: how often hashed
tokens stand in the prompt. It is not POISE, and its errors are not the paper's.

agentrl train run.toml --estimator.kind examples/methods/prompt_prior.py:PromptPrior
"""

import numpy as np

from agentrl.algorithms.advantage import normalise
from agentrl.config.ranges import Count, Positive, Share


class PromptPrior:
    """Score less (n v + weight g) / (n + weight): the tracker's v over n visits, drawn to a regression g.

    g is a ridge regression of scores on tokens of their prompts, over episodes folded before, so no baseline
    contains its own reward, and what was sampled is not looked at: with features of the episode's own answer
    (the released code's, for pairs of rollouts) a baseline of one rollout would be biased. With
    `sampler.fresh_copies` a first visit has its siblings for a baseline and needs no prior."""

    requires = ("baselines",)

    class Settings:
        """Settings of the section `[estimator]`."""

        size: Count = 64
        """Places that tokens are hashed into."""
        ridge: Positive = 1.0
        """Penalty of the regression, in episodes."""
        weight: Positive = 4.0
        """Visits that the regression counts for."""
        kept: Share = 0.999
        """Of what was folded, at each further episode: the policy moves on."""
        deviation_floor: Positive = 0.1
        """Smallest deviation that advantages are divided by."""

    def __init__(self, settings):
        self.settings = settings
        self.products = np.zeros((settings.size, settings.size))
        self.scored, self.features = np.zeros(settings.size), np.zeros(settings.size)
        self.total, self.count = 0.0, 0.0

    def __call__(self, batch):
        """[B] advantages."""
        prior = self.predicted(np.stack([self.features_of(episode) for episode in batch.episodes]))
        weight = self.settings.weight
        baselines = (batch.counts * batch.baselines + weight * prior) / (batch.counts + weight)
        return normalise(batch.scores - baselines, self.settings.deviation_floor)

    def features_of(self, episode):
        """[size] how often tokens of each place stand in the prompt, of length 1."""
        segment = episode.segments[0]
        prompt = segment.token_ids[: max(0, segment.loss_mask.find(1))]
        counts = np.bincount(
            np.asarray(prompt, dtype=np.int64) % self.settings.size, minlength=self.settings.size
        )
        return counts / max(1.0, float(np.linalg.norm(counts)))

    def predicted(self, features):
        """[B] success rates, from features [B, size]."""
        mean = (self.total + 0.5) / (self.count + 1.0)
        matrix = self.products + self.settings.ridge * np.eye(self.settings.size)
        return np.clip(
            mean + features @ np.linalg.solve(matrix, self.scored - mean * self.features), 0.0, 1.0
        )

    def fold(self, episode):
        """Take an episode into the regression."""
        features, kept = self.features_of(episode), self.settings.kept
        self.products = kept * self.products + np.outer(features, features)
        self.scored = kept * self.scored + episode.score * features
        self.features = kept * self.features + features
        self.total, self.count = kept * self.total + episode.score, kept * self.count + 1.0

    def state_dict(self):
        """Sums of the regression."""
        return {
            "products": self.products.tolist(),
            "scored": self.scored.tolist(),
            "features": self.features.tolist(),
            "total": self.total,
            "count": self.count,
        }

    def load_state_dict(self, state):
        """Go back to a saved state."""
        for name in ("products", "scored", "features"):
            setattr(self, name, np.array(state[name]))
        self.total, self.count = state["total"], state["count"]
