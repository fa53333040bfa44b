"""From settings to a run: makes every part, runs the orchestrator, writes the summary and the report.

`train(settings)` starts a new run, `resume(folder)` goes on with an earlier one. The parts are made by
`agentrl.training.assembly`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.cluster import event_loop
from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.config import loading
from agentrl.config.settings import Settings
from agentrl.errors import Interrupted, LearnerLost
from agentrl.storage.durable import write_file
from agentrl.storage.metrics import read_metrics
from agentrl.storage.run_folder import RunFolder
from agentrl.training.assembly import assemble
from agentrl.training.collector import rare_collections
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.parts import Options
from agentrl.training.plan import RunPlan, plan_run
from agentrl.training.settings_log import check_changes, log_resumption, log_start

logger = logging.getLogger(__name__)


def train(settings: Settings, options: Options | None = None) -> dict[str, Any]:
    """Start a new run and return its summary.

    Raises:
        ConfigError: settings, model or data cannot be used; nothing was started, and no folder is left.
        Interrupted: Ctrl-C, and what a second one lost; the run can be resumed.
        AgentRLError: something could not go on.
    """
    options = options or Options()
    plan = plan_run(settings, said=options.said)
    settings = plan.settings
    folder = RunFolder.create(Path(settings.run.directory), settings.run.name)
    try:
        write_config(folder, settings)
        log_start(folder, settings, plan.tasks, {choice.name: choice.value for choice in plan.chosen})
        with _second_interrupt(folder):
            return _attempts(plan, folder, options)
    except BaseException:
        folder.remove_unstarted()
        raise


def resume(
    path: Path,
    flags: Sequence[str] = (),
    options: Options | None = None,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Go on with an earlier run, in its folder, with its settings and the flags and values given now.

    Raises:
        ConfigError: there is no run, it is running, or the flags would change what its values mean.
    """
    folder = RunFolder.open(path)
    folder.lock()  # first: the settings of a run that goes on are nobody's to judge
    try:
        plan = plan_run(loading.load_settings(folder.config, flags, values))
        changed = check_changes(folder, plan.settings, plan.tasks)
        with _second_interrupt(folder):
            return _attempts(plan, folder, options or Options(), changed)
    finally:
        folder.unlock()


def _attempts(
    plan: RunPlan, folder: RunFolder, options: Options, changed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run to the end, from the checkpoint again where a process of the learner died (`run.restarts`)."""
    left, version = plan.settings.run.restarts, -1
    while True:
        try:
            return event_loop.run(_run(plan, folder, options, changed))
        except LearnerLost as error:
            newest = max((row["version"] for row in _steps(folder)), default=0)
            left = plan.settings.run.restarts if newest > version else left
            if left == 0:
                raise
            logger.warning("%s; the run goes on from its checkpoint", error)
            left, version, changed = left - 1, newest, {}


def _steps(folder: RunFolder) -> list[Any]:
    return [row for row in read_metrics(folder.metrics) if row["kind"] == "step"]


@contextlib.contextmanager
def _second_interrupt(folder: RunFolder) -> Iterator[None]:
    """Tell what is kept and what is lost where a Ctrl-C ends a run at once."""
    try:
        yield
    except KeyboardInterrupt as error:
        steps = [row["version"] for row in _steps(folder)]
        if not steps:
            raise
        raise Interrupted(
            f"ended at once; version {max(steps)} is kept, and what came after it is lost: the step under "
            f"way and episodes that were not finished; continue with `agentrl train --resume {folder.path}`"
        ) from error


def write_config(folder: RunFolder, settings: Settings) -> None:
    """Write the settings that are in force into the folder of their run."""
    write_file(folder.config, loading.to_toml(settings).encode(), "config")


async def _run(
    plan: RunPlan, folder: RunFolder, options: Options, changed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run to the end; `changed` are the settings that a resumption changed, None in a new run."""
    folder.lock()
    if options.on_ready is not None and changed is None:
        for line in plan.lines:
            options.on_ready(line)
    started, cpu_started = time.monotonic(), cpu_seconds()
    try:
        async with assemble(plan, folder, options) as orchestrator:
            if changed is not None:
                from agentrl.training.resume import resume as go_back

                orchestrator.forgive |= options.forgive
                with event_loop.on_interrupt(orchestrator.stop):
                    await go_back(orchestrator)
                # Not before: another process may have the run, or refuse these settings.
                write_config(folder, plan.settings)
                log_resumption(folder, changed)
            with rare_collections(), event_loop.on_interrupt(orchestrator.stop):
                try:
                    await orchestrator.run()
                finally:
                    wall_s = orchestrator.progress.earlier_s + time.monotonic() - started
                    cpu_s = orchestrator.progress.earlier_cpu_s + cpu_seconds() - cpu_started
                    summary = summarise(orchestrator, wall_s, cpu_s)
                    _write_last(
                        folder.summary,
                        lambda: write_file(folder.summary, json.dumps(summary, indent=2).encode(), "summary"),
                    )
        return summary
    finally:
        folder.unlock()
        _write_last(folder.report, lambda: write_report(folder))


def _write_last(path: Path, write: Callable[[], object]) -> None:
    """Write what can be made again: a full disk must not hide why the run ended."""
    try:
        write()
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error)


def summarise(orchestrator: Orchestrator, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Totals of a run over all its attempts, as `summary.json` has them."""
    parts, progress, totals = orchestrator.parts, orchestrator.progress, orchestrator.progress.totals
    rows = read_metrics(parts.folder.metrics)
    rewards = [row["reward_mean"] for row in rows if row["kind"] == "eval"]
    steps = [row for row in rows if row["kind"] == "step"]
    return {
        "run_id": parts.folder.identity["run_id"],
        "name": parts.folder.name,
        "report": str(parts.folder.report),
        "best": parts.folder.best_version(),
        "reward_first": rewards[0] if rewards else None,
        "reward_last": rewards[-1] if rewards else None,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "episodes": totals.values["episodes_learned"],
        "episodes_initial": totals.values["episodes_initial"],
        "seconds_initial": totals.initial_s,
        "tokens": progress.tokens,
        "tokens_initial": totals.values["tokens_initial"],
        "tokens_total": progress.tokens + totals.values["tokens_initial"],
        "tokens_learned": totals.values["tokens_learned"],
        "policy_versions": progress.version,
        "attempts": progress.attempt,
        "prompts": len(parts.pool),
        "environments": dict(sorted(totals.environments.items())),
        "visits_per_prompt": totals.values["episodes_learned"] / max(1, len(parts.pool)),
        "staleness": {str(age): count for age, count in sorted(totals.staleness.items())},
        "python_calls": totals.values["python_calls"],
        "tool_errors": totals.values["tool_errors"],
        "discarded": parts.ledger.discarded_by_reason(),
        "ledger": parts.ledger.summary(),
        "generate_tokens_per_s": steps[-1]["generate_tokens_per_s"] if steps else None,
        "learn_tokens_per_s": _median([row["learn_tokens_per_s"] for row in steps]),
    }


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(value for value in values if value is not None)
    return ordered[len(ordered) // 2] if ordered else None


def write_report(folder: RunFolder) -> None:
    """Write `report.html` from the files of the run."""
    from agentrl.report import write_report as write

    write(folder.path)
