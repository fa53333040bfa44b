"""POISE's prompt-only prior: a success rate predicted from the policy's own hidden state at the end of a
prompt, where the prompt is hardly known (arXiv 2605.07579, text read).

The paper's regression also reads hidden states of the answer and its entropy, which takes two rollouts of a
prompt, each with the other's features: with those of its own answer a baseline would be biased. One rollout
leaves the prompt's part; its mean absolute error is .234 in the paper, .126 with all features. Which layer is
read was not found, nor what the PCA keeps that the released code is said to have before its ridge regression:
here the last layer, and no PCA. There the regression is the baseline; the tracker's value in it is ours.

agentrl train run.toml --estimator.kind examples/methods/poise.py:PromptPrior
"""

import base64

import numpy as np

from agentrl.algorithms.advantage import normalise
from agentrl.config.ranges import Count, Positive


class PromptPrior:
    """Score less (n v + weight g) / (n + weight): the tracker's v over n visits, drawn to a regression g.

    g is a ridge regression of scores on hidden states of their prompts, over the newest episodes folded
    before: no baseline contains its own reward, and none depends on what was sampled. Hidden states are those
    of the weights that sampled, centred and divided by the root of their mean square length. With
    `sampler.fresh_copies` a first visit has the mean of its n siblings for v."""

    requires = ("baselines", "prompt_features")

    class Settings:
        """Settings of the section `[estimator]`."""

        feature_tokens: Count = 10
        """Last tokens of the prompt whose hidden states are averaged."""
        feature_layer: int = -1
        """Layer whose hidden states are taken: 0 are the embeddings, -1 is what the output layer reads."""
        buffer: Count = 512
        """Newest episodes that the regression is made of."""
        ridge: Positive = 1.0
        """Penalty of the regression, in episodes."""
        weight: Positive = 4.0
        """Visits that the regression counts for."""
        deviation_floor: Positive = 0.1
        """Smallest deviation that advantages are divided by."""

    def __init__(self, settings):
        self.settings = settings
        self.features, self.scores, self.folded = [], [], 0

    def __call__(self, batch):
        """[B] advantages."""
        prior = self.predicted([features_of(episode) for episode in batch.episodes])
        weight = np.where(np.isnan(prior), 0.0, self.settings.weight)
        drawn = batch.counts * batch.baselines + weight * np.nan_to_num(prior)
        return normalise(batch.scores - drawn / (batch.counts + weight), self.settings.deviation_floor)

    def predicted(self, features):
        """[B] success rates in [0, 1] from hidden states, [D] each; nan where there is none ([0])."""
        mean = (sum(self.scores) + 0.5) / (len(self.scores) + 1.0)
        rates = np.array([mean if len(one) else np.nan for one in features])
        known = np.flatnonzero(~np.isnan(rates))
        if len(self.scores) and len(known):
            rows = np.array(self.features, dtype=np.float64)
            centre = rows.mean(0)
            rows -= centre
            scale = max(float((rows**2).sum(1).mean()), 1e-12)
            matrix = rows @ rows.T / scale + self.settings.ridge * np.eye(len(rows))
            slope = rows.T @ np.linalg.solve(matrix, np.array(self.scores) - mean) / scale
            rates[known] += (np.array([features[at] for at in known]) - centre) @ slope
        return np.clip(rates, 0.0, 1.0)

    def fold(self, episode):
        """Take an episode into the buffer; one that was not sampled from has no hidden state."""
        if len(features := features_of(episode)):
            place = self.folded % self.settings.buffer
            self.features[place : place + 1] = [features]
            self.scores[place : place + 1] = [episode.score]
            self.folded += 1

    def state_dict(self):
        """The buffer: hidden states as the bytes of float32, and scores.

        By place, and what is new takes the oldest one's: a step writes what changed, and a list that moves
        on would be written whole, megabytes of it.
        """
        packed = {str(at): base64.b64encode(one.tobytes()).decode() for at, one in enumerate(self.features)}
        return {"features": packed, "scores": list(self.scores), "folded": self.folded}

    def load_state_dict(self, state):
        """Go back to a saved state."""
        newest, packed = self.settings.buffer, state["features"]
        places = range(min(newest, len(packed)))
        self.features = [np.frombuffer(base64.b64decode(packed[str(at)]), dtype="<f4") for at in places]
        self.scores, self.folded = list(state["scores"])[:newest], state["folded"]


def features_of(episode):
    """[D] the hidden state of an episode's prompt; [0] where it has none."""
    return np.array(episode.segments[0].prompt_features, dtype="<f4")
