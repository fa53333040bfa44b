"""Evaluations from their options to their files: task, policy, loop, table.

`run_experiments` is what `agentrl eval` and `agentrl.evaluate` do; experiments with one policy share it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agentrl.cluster import event_loop
from agentrl.config.loading import to_toml
from agentrl.config.secrets import with_secrets
from agentrl.evaluation.results import Record, ResultFolder, read_records
from agentrl.evaluation.run import Plan, Progress, equivalence_of, evaluate, outlasting
from agentrl.evaluation.scoring import Judge, Scoring, open_judge
from agentrl.evaluation.settings import Experiment, MeasureSettings
from agentrl.evaluation.subjects import (
    Subject,
    SubjectOptions,
    check_subject,
    open_subject,
    subject_of,
    training_cost,
)
from agentrl.evaluation.summary import effort, summarise
from agentrl.evaluation.task import Task, prepare
from agentrl.inference.endpoint.settings import Usage
from agentrl.report.run_data import describe_outage
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Decoding
from agentrl.storage.durable import write_file
from agentrl.storage.provenance import command, versions
from agentrl.tasks.datasets import DataSet
from agentrl_envs import Env
from agentrl_sandbox import Sandbox

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]


def run_experiments(
    experiments: Sequence[Experiment],
    on_progress: OnProgress | None = None,
    subject: SubjectOptions | None = None,
) -> list[dict[str, Any]]:
    """Run several evaluations of one policy, one after the other, and return their summaries.

    Policy, sandbox and judge are those of the first. All data are read and checked before anything starts.

    Args:
        experiments: what is asked.
        on_progress: is told where it stands.
        subject: what is evaluated; None takes what the first experiment names.

    Raises:
        ConfigError, DataError, AgentRLError: as for one; what was finished is kept.
    """
    subject = subject or subject_of(experiments[0])
    check_subject(subject)
    tasks = [prepare(experiment) for experiment in experiments]
    return event_loop.run(_run_all(list(zip(experiments, tasks, strict=True)), subject, on_progress))


async def _run_all(
    pairs: Sequence[tuple[Experiment, Task]], options: SubjectOptions, on_progress: OnProgress | None
) -> list[dict[str, Any]]:
    from agentrl.tasks.task import make_sandbox

    first = pairs[0][0]
    folders = [ResultFolder(Path(experiment.eval.out)) for experiment, _ in pairs]
    try:
        tools = next((specs for _, task in pairs if (specs := task.env.tool_specs())), ())
        chosen = _with_spent(options, [folder.path for folder in folders])
        async with (
            make_sandbox(first.sandbox) as sandbox,
            open_judge(first.judge, options.concurrency) as judge,
            open_subject(chosen, first.rollout, folders[0].path / "logs", tools) as subject,
        ):
            summaries: list[dict[str, Any]] = []
            for (experiment, task), folder in zip(pairs, folders, strict=True):
                told = _named(on_progress, experiment.eval.task_name) if len(pairs) > 1 else on_progress
                place = _Place(sandbox, subject, judge, folder)
                turns = experiment.rollout.max_turns if experiment.eval.tools else 1
                rollout = replace(experiment.rollout, format=subject.rollout.format, max_turns=turns)
                decided = replace(experiment, rollout=rollout)
                summaries.append(await _run(decided, task, place, told))
            return summaries
    finally:
        for folder in folders:
            folder.close()
        for _, task in pairs:
            task.grader.close()


def _named(on_progress: OnProgress | None, name: str) -> OnProgress | None:
    return None if on_progress is None else lambda progress: on_progress(replace(progress, task=name))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an evaluation runs."""

    sandbox: Sandbox
    subject: Subject
    judge: Judge | None
    folder: ResultFolder


async def _run(
    experiment: Experiment, task: Task, place: _Place, on_progress: OnProgress | None
) -> dict[str, Any]:
    data, folder, rollout, measure = task.data, place.folder, experiment.rollout, experiment.eval
    settings = with_secrets(experiment.env.settings, task.env.reads_variables)

    def make_env(seed: int) -> Env:
        return task.env(sandbox=place.sandbox, grader=task.grader, rng=random.Random(seed), **settings)

    about = plan(experiment, data, place.subject.identity)
    done = folder.open(about, retry_failures=measure.retry_failures)
    folder.keep_rows(data.rows)
    write_file(folder.path / "config.toml", to_toml(experiment).encode(), "config")
    records: list[Record] = list(done)

    def keep(record: Record) -> None:
        folder.append(record)
        records.append(record)

    started = time.monotonic()
    episodes = Plan(
        data.rows,
        measure.samples,
        measure.seed,
        environment=experiment.env.name,
        keep_text=measure.keep_text,
        tools=bool(task.env.tool_specs()),
    )
    finished: list[Record] | None = None
    outages = Outages(
        [experiment.env.name],
        fewest_prompts=2,
        tell=_tell_outage,
        remedy="run the same command again: what was finished is kept",
    )
    player = place.subject.player(make_env, rollout, _decoding(measure))
    try:
        finished = await evaluate(
            episodes,
            outlasting(player, outages, from_start=False),
            concurrency=measure.concurrency,
            done=done,
            on_record=keep,
            on_progress=on_progress,
            version=place.subject.version,
            score=Scoring(task.grader, place.judge),
        )
    finally:
        outages.close()
        about |= {"sandbox": place.sandbox.describe(), "resumed_from": len(done)}
        about |= {"wall_s": round(time.monotonic() - started, 3), "complete": finished is not None}
        about |= {"address": place.subject.address}
        in_order = _in_order(records, data) if finished is None else finished
        summary = await _summary(experiment, task, about, in_order)
        folder.write_summary(summary)
    return summary


def _tell_outage(row: Mapping[str, Any]) -> None:
    if row["state"] != "waiting":
        logger.warning("%s", describe_outage(row))


def _decoding(measure: MeasureSettings) -> Decoding:
    return Decoding(measure.temperature, measure.top_p, measure.top_k)


def _with_spent(subject: SubjectOptions, folders: Sequence[Path]) -> SubjectOptions:
    """An endpoint's budget is for all attempts of an evaluation together."""
    if not subject.endpoint.url:
        return subject
    begun = [folder for folder in folders if (folder / "results.jsonl").exists()]
    records = [record for folder in begun for record in read_records(folder)]
    spent = Usage(
        sum(record.prompt_tokens for record in records),
        sum(record.sampled_tokens for record in records),
        sum(record.cost for record in records),
    )
    return replace(subject, spent=spent)


SHAPING = ("prompt", "shots", "shots_data", "choices", "grader", "tolerance", "conventions")
"""Fields of an experiment that change what is asked, or which answers are right."""


def plan(experiment: Experiment, data: DataSet, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change between a killed evaluation and its resumption.

    How many rows and samples are asked for may grow; seeds do not depend on them.
    """
    rollout, measure, usual = asdict(experiment.rollout), experiment.eval, MeasureSettings()
    rollout.pop("temperature")  # evaluation has its own
    shaping = {name: getattr(measure, name) for name in SHAPING}
    if experiment.judge.url:
        shaping["judge"] = {"model": experiment.judge.model, "over": experiment.judge.over}
    return {
        # Defaults are left out, so that a folder made before there was a choice goes on.
        **{name: value for name, value in shaping.items() if value != getattr(usual, name, None)},
        "policy": dict(identity),
        "environment": experiment.env.name,
        "environment_settings": dict(experiment.env.settings),
        "tools": measure.tools,
        "data": measure.data[0],
        "data_checksum": data.checksum,
        "data_map": dict(measure.map),
        "decoding": {name: getattr(measure, name) for name in ("temperature", "top_p", "top_k")},
        "rollout": rollout,
        "seed": measure.seed,
    }


def _in_order(records: Sequence[Record], data: DataSet) -> list[Record]:
    place = {problem: index for index, problem in enumerate(data.ids)}
    known = [record for record in records if record.problem in place]
    return sorted(known, key=lambda record: (place[record.problem], record.draw))


async def _summary(
    experiment: Experiment, task: Task, about: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, Any]:
    equivalence, measure = None, experiment.eval
    if measure.votes != "none" and measure.samples > 1:
        equivalence = equivalence_of(task.grader, measure.votes)
    return {
        "task": experiment.eval.task_name,
        "table": await summarise(records, equivalence, task.labels),
        "effort": effort(records),
        **about,
        "training": {} if experiment.endpoint.url else training_cost(experiment.model.path),
        "samples": measure.samples,
        "preset": measure.preset,
        "data_set": task.data.describe(),
        "sandbox_settings": asdict(experiment.sandbox),
        "command": command(),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
