"""How well baselines predict, beside a smoother that sees the whole run in hindsight.

The smoother is what a tracker could know at best of scores alone: logit P(success) = trend(version) + prompt,
the trend a random walk over versions, prompts normal around 0, all fitted to every score of the run, also
later ones. Each score is predicted without itself (approximate leave-one-out of a penalised logistic
regression), so the smoother's Brier score is no optimist's. A tracker's excess over it is what its memory loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrl.storage.recorder import read_episodes
from agentrl.storage.steps import read_credit

Array = NDArray[np.float64]
SPREADS = (0.3, 0.6, 1.2, 2.5, 5.0)
"""Deviations of prompts, in logits, of which the best by leave-one-out is taken."""
WALK = 0.5
"""Deviation of a step of the trend, in logits."""


@dataclass(frozen=True, slots=True)
class Visits:
    """N graded episodes of a run, in the order they were folded."""

    prompts: NDArray[np.int64]
    """[N]"""
    versions: NDArray[np.int64]
    """[N] of the policy that an episode began with."""
    scores: Array
    """[N] 0 or 1."""
    baselines: Array
    """[N]"""
    seen: NDArray[np.bool_]
    """[N] whether an earlier batch had an episode of the prompt."""


def read_visits(folder: Path) -> Visits:
    """The graded episodes of a run."""
    episodes = {episode.episode_id: episode for episode in read_episodes(folder / "episodes")}
    prompts: dict[str, int] = {}
    columns: list[tuple[int, int, float, float, bool]] = []
    before: set[int] = set()
    for row in read_credit(folder):
        for name, score, baseline in zip(row["episode_ids"], row["scores"], row["baselines"], strict=True):
            episode = episodes[name]
            prompt = prompts.setdefault(episode.prompt_id, len(prompts))
            columns.append((prompt, episode.start_version, score, baseline, prompt in before))
        before = set(range(len(prompts)))
    found = [np.array(column) for column in zip(*columns, strict=True)]
    return Visits(found[0], found[1], found[2].astype(float), found[3].astype(float), found[4])


def smooth(visits: Visits, spread: float) -> Array:
    """[N] logits of success, each without its own score.

    With H the negative Hessian of the penalised log-likelihood, w = p (1 - p) and a = x' H^-1 x, leaving out
    a score s changes its logit by (p - s) a / (1 - w a), to first order.
    """
    times, prompts = visits.versions - visits.versions.min(), visits.prompts
    steps = int(times.max()) + 1
    size = steps + int(prompts.max()) + 1
    rows = np.arange(len(times))
    design = np.zeros((len(times), size))
    design[rows, times] = design[rows, steps + prompts] = 1.0
    jumps = np.diff(np.eye(size)[:steps], axis=0) / WALK
    penalty = jumps.T @ jumps + np.diag(np.r_[np.full(steps, 1e-2), np.full(size - steps, spread**-2)])
    weights = np.zeros(size)
    for _ in range(30):
        chance = 1.0 / (1.0 + np.exp(-design @ weights))
        variance = chance * (1.0 - chance)
        hessian = (design.T * variance) @ design + penalty
        change = np.linalg.solve(hessian, design.T @ (visits.scores - chance) - penalty @ weights)
        weights += change / max(1.0, float(np.abs(change).max()))
        if np.abs(change).max() < 1e-6:
            break
    reach = np.einsum("ij,ji->i", design, np.linalg.solve(hessian, design.T))
    return design @ weights + (chance - visits.scores) * reach / (1.0 - variance * reach)


def scores_of_baselines(visits: Visits) -> dict[str, dict[str, float]]:
    """Brier scores of baselines and smoother, over all episodes and over those of prompts seen before."""
    chances = [1.0 / (1.0 + np.exp(-smooth(visits, spread))) for spread in SPREADS]
    errors = min(((chance - visits.scores) ** 2 for chance in chances), key=np.mean)
    own = (visits.baselines - visits.scores) ** 2
    found: dict[str, dict[str, float]] = {}
    for name, chosen in (("all", np.ones(len(own), dtype=bool)), ("seen before", visits.seen.astype(bool))):
        found[name] = {"episodes": int(chosen.sum())}
        if chosen.any():
            brier, smoother = float(own[chosen].mean()), float(errors[chosen].mean())
            found[name] |= {"brier": brier, "smoother": smoother, "excess": brier - smoother}
    return found
