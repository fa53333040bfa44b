"""EMPO: an answer is worth the share of its group that gave the same (arXiv 2504.05812, id from memory; code
read).

agentrl train run.toml --estimator.kind examples/methods/empo.py:EMPO --estimator.group_size 8
"""

import numpy as np

from agentrl.algorithms.advantage import grpo_advantages


class EMPO:
    """GRPO of answer frequencies. Answers are compared as text, after blanks: the paper asks a judge.

    A group in which all answers differ, and an episode without an answer, get a frequency of 0. The
    environment's reward is not looked at: what many answer wrongly is confirmed."""

    requires = ("groups",)

    def __call__(self, batch):
        """[B] advantages."""
        answers = [" ".join((episode.answer or "").split()) for episode in batch.episodes]
        share = np.zeros(len(answers))
        for group in np.unique(batch.groups):
            members = np.flatnonzero(batch.groups == group)
            given = [answers[at] for at in members]
            if len(set(given)) < len(given):
                share[members] = [given.count(one) / len(given) if one else 0.0 for one in given]
        return grpo_advantages(share, batch.groups, floor=1e-6)
