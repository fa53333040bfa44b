"""What is logged of every learner step: batch, baselines, staleness, rates, and the audit of its bias.

Reads the state of the attempt; changes nothing. It knows nothing of files: rows go to
`MetricsWriter`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.algorithms.calibration import auc, calibration
from agentrl.algorithms.value_tracker import Fold
from agentrl.config import registry
from agentrl.episode import Episode
from agentrl.storage.metrics import Row, describe_batch
from agentrl.training.audit import BiasAudit
from agentrl.training.credit import Assignment

if TYPE_CHECKING:
    from agentrl.training.attempt import Attempt


class StepLog:
    """Rows of kind `step` of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._run = attempt
        self._failures = 0
        self._audit = BiasAudit()
        self._metrics = [(kind, registry.make("metric", kind, {})) for kind in attempt.settings.run.metrics]
        self._began, self._tokens = 0.0, 0
        self.idle_s = 0.0
        """Seconds that the learner waited for batches."""
        self.publish_s = 0.0
        """Seconds that the engine took for the newest version it has: the one before the step of a row."""

        self.checkpoint_s = 0.0
        """Seconds that the learner waited for a checkpoint after the step before that of a row."""

    def begin(self) -> None:
        """Training begins: rates count from here, without initial rollouts and evaluations."""
        self._began, self._tokens = time.monotonic(), self._run.progress.tokens

    def observe(self, episode: Episode) -> None:
        """An episode ended, whatever becomes of it: one side of the bias audit."""
        pool = self._run.parts.pool
        self._audit.dispatched(episode, float(pool.tracker.values([pool.index[episode.prompt_id]])[0]))

    def step(
        self,
        batch: Sequence[Episode],
        given: Assignment,
        learned: Mapping[str, Any],
        folds: Sequence[Fold],
        *,
        learn_s: float,
    ) -> Row:
        """Write the row of the step that led to the present version."""
        run = self._run
        for episode in given.trained:
            self._audit.learned(episode)
        failed, self._failures = run.stream.failures - self._failures, run.stream.failures
        row = {
            **learned,
            **describe_batch(batch),
            **self._own(batch, given),
            **self._credit(given, folds),
            **self._ages(batch),
            "step": run.version,
            "version": run.version,
            "attempt": run.progress.attempt,
            "time_s": run.progress.elapsed_s(),
            "cpu_s": run.progress.cpu_s(),
            "episodes": run.progress.totals.values["episodes_learned"],
            "failures": run.stream.failures,
            "failed_share": failed / max(1, failed + len(batch)),  # since the step before
            "first_failure": run.stream.first_failure or None,  # of this attempt
            "failed": run.outages.failures,  # by environment, in this attempt
            "set_aside": {name: len(ids) for name, ids in run.parts.pool.set_aside.items()},
            "paused": run.outages.paused,
            "in_flight": run.dispatcher.in_flight,
            "buffered": run.buffer.size,
            "tokens_generated": run.progress.tokens,
            "generate_tokens_per_s": self._generation_rate(),
            "learn_tokens_per_s": float(learned.get("tokens_read") or 0.0) / max(learn_s, 1e-9),
            "learner_idle_s": self.idle_s,
            **({"controlled": run.control.values} if run.control.values else {}),
            "learn_s": learn_s,
            "publish_s": self.publish_s,
            "checkpoint_s": self.checkpoint_s,
            **{f"engine_{name}": value for name, value in run.parts.policy.statistics().items()},
            **self._audit.report(self._frontier()),
        }
        return run.parts.metrics.write("step", **row)

    def _credit(self, given: Assignment, folds: Sequence[Fold]) -> dict[str, Any]:
        fit, tracker = calibration(given.baselines, given.scores), self._run.parts.pool.tracker
        return {
            "baseline_mean": float(given.baselines.mean()),
            "brier": fit.brier,
            "log_loss": fit.log_loss,
            "baseline_auc": auc(given.baselines, given.scores),
            # Bin of the baseline -> episodes, their mean baseline, their mean score.
            "reliability": {
                str(bin): [int(count), round(predicted, 4), round(observed, 4)]
                for bin, (count, predicted, observed) in enumerate(
                    zip(fit.counts, fit.predicted.tolist(), fit.observed.tolist(), strict=True)
                )
                if count
            },
            "advantage_std": float(np.std(given.flat())) if len(given.trained) else 0.0,
            "clock": tracker.clock,
            "unseen_share": 1.0 - float(tracker.seen(np.arange(len(tracker))).mean()),
            "rho_mean": float(np.mean([fold.rho for fold in folds])),
            "rho_quartiles": np.quantile([fold.rho for fold in folds], np.linspace(0, 1, 5))
            .round(4)
            .tolist(),
        }

    def _own(self, batch: Sequence[Episode], given: Assignment) -> dict[str, float]:
        """Numbers of the metrics that the settings name.

        Raises:
            PartError: one raised, or gave something that is no number.
        """
        seen = self._run.credit.batch(batch, given.baselines)
        row: dict[str, float] = {}
        for kind, metric in self._metrics:
            with registry.blame("metric", kind):
                row |= {str(name): float(value) for name, value in metric(seen).items()}
        return row

    def _ages(self, batch: Sequence[Episode]) -> dict[str, Any]:
        run = self._run
        ages = [episode.staleness(run.version - 1) for episode in batch]
        return {
            "staleness": {str(age): ages.count(age) for age in sorted(set(ages))},
            "staleness_mean": sum(ages) / len(ages),
            "excess_share": sum(age > run.settings.stream.staleness for age in ages) / len(ages),
            "staleness_allowed": run.buffer.staleness,
        }

    def _frontier(self) -> int:
        """Lowest dispatch index still under way."""
        run = self._run
        waiting = [episode.dispatch_index for episode in run.buffer.episodes()]
        return min([*waiting, *run.dispatcher.indices()], default=run.stream.next_index)

    def _generation_rate(self) -> float:
        """Sampled tokens a second of this attempt's training."""
        tokens = self._run.progress.tokens - self._tokens
        return tokens / max(time.monotonic() - self._began, 1e-9)
