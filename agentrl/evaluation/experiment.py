"""One evaluation from its options to its files: data, environment, policy, loop, table.

`run_experiment(options)` is what `agentrl eval` does; it may be called from Python as well.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.evaluation.datasets import DataSet, checksum, load_data_set
from agentrl.evaluation.results import Record, ResultFolder, read_records
from agentrl.evaluation.run import Plan, Progress, equivalence_of, evaluate
from agentrl.evaluation.subjects import SubjectOptions, check_subject, open_subject, training_cost
from agentrl.evaluation.summary import effort, summarise
from agentrl.rollout import Decoding
from agentrl.settings import DataSettings, RolloutSettings, SandboxSettings
from agentrl_envs import Env, EnvError, Grader, load_env

PACKAGES = ("agentrl", "numpy", "torch", "transformers", "vllm", "openai", "math-verify", "sympy")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything an evaluation is told."""

    subject: SubjectOptions
    data: str
    out: Path
    env: str = "math_with_python"
    env_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tools: bool = True
    """Without tools the environment's are hidden and there is one turn."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    limit: int = 0
    data_dir: str = ""
    samples: int = 1
    decoding: Decoding = field(default_factory=Decoding)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    seed: int = 0
    votes: str = "equivalence"
    """`equivalence`, `canonical`, `text` or `none`."""
    retry_failures: bool = False
    keep_text: bool = True
    preset: str = ""
    command: Sequence[str] = ()


def run_experiment(
    experiment: Experiment, on_progress: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """Run, or go on with, an evaluation and return its summary.

    Raises:
        ConfigError, DataError: it cannot be what was meant; nothing was started.
        AgentRLError: something could not go on; what was finished is kept in the folder.
    """
    check_subject(experiment.subject)
    env = _environment(experiment)
    data = _data(experiment, env)
    folder = ResultFolder(experiment.out)
    try:
        return asyncio.run(_run(experiment, env, data, folder, on_progress))
    finally:
        folder.close()


def _environment(experiment: Experiment) -> type[Env]:
    try:
        env = load_env(experiment.env)
        env.check_settings(experiment.env_settings)
    except EnvError as error:
        raise ConfigError(f"--env {experiment.env}: {error}") from error
    return env if experiment.tools else without_tools(env)


def without_tools(env: type[Env]) -> type[Env]:
    """The same environment with its tools hidden from the policy."""

    def tool_specs(cls: type[Env]) -> tuple[()]:
        return ()

    return type(f"{env.__name__}WithoutTools", (env,), {"tool_specs": classmethod(tool_specs)})


def _data(experiment: Experiment, env: type[Env]) -> DataSet:
    if experiment.data.startswith("generated:"):
        from agentrl.prompts import load_data

        rows = load_data(DataSettings(experiment.data, limit=experiment.limit), env, "--data")
        return DataSet(experiment.data, "", tuple(rows), checksum(rows))
    data = load_data_set(
        experiment.data,
        columns=experiment.columns,
        limit=experiment.limit,
        data_dir=experiment.data_dir or None,
    )
    try:
        env.check_rows(data.rows, where=f"{data.path}, row")
    except EnvError as error:
        raise DataError(str(error)) from error
    return data


async def _run(
    experiment: Experiment,
    env: type[Env],
    data: DataSet,
    folder: ResultFolder,
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    from agentrl.plan import make_sandbox

    chosen = _with_spent(experiment.subject, folder.path)
    async with (
        make_sandbox(experiment.sandbox) as sandbox,
        open_subject(chosen, experiment.rollout, folder.path / "logs", env.tool_specs()) as subject,
    ):
        rollout, settings = subject.rollout, dict(experiment.env_settings)
        experiment = replace(experiment, rollout=rollout)

        def make_env(seed: int) -> Env:
            return env(sandbox=sandbox, rng=random.Random(seed), **settings)

        about = plan(experiment, data, subject.identity)
        done = folder.open(about, retry_failures=experiment.retry_failures)
        records: list[Record] = list(done)

        def keep(record: Record) -> None:
            folder.append(record)
            records.append(record)

        started = time.monotonic()
        episodes = Plan(
            data.rows,
            experiment.samples,
            experiment.seed,
            environment=experiment.env,
            keep_text=experiment.keep_text,
        )
        finished: list[Record] | None = None
        try:
            finished = await evaluate(
                episodes,
                subject.player(make_env, rollout, experiment.decoding),
                concurrency=experiment.subject.concurrency,
                done=done,
                on_record=keep,
                on_progress=on_progress,
                version=subject.version,
            )
        finally:
            about |= {"sandbox": sandbox.describe(), "resumed_from": len(done)}
            about |= {"wall_s": round(time.monotonic() - started, 3), "complete": finished is not None}
            in_order = _in_order(records, data) if finished is None else finished
            summary = await _summary(experiment, data, about, in_order)
            folder.write_summary(summary)
    return summary


def _with_spent(subject: SubjectOptions, folder: Path) -> SubjectOptions:
    """An endpoint's budget is for all attempts of an evaluation together."""
    if subject.endpoint is None or not (folder / "results.jsonl").exists():
        return subject
    records = read_records(folder)
    spent = (
        sum(record.prompt_tokens for record in records),
        sum(record.sampled_tokens for record in records),
        sum(record.cost for record in records),
    )
    return replace(subject, endpoint=replace(subject.endpoint, spent=spent))


def plan(experiment: Experiment, data: DataSet, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change between a killed evaluation and its resumption.

    How many rows and samples are asked for may grow; seeds do not depend on them.
    """
    rollout = asdict(experiment.rollout)
    rollout.pop("temperature")  # evaluation has its own
    return {
        "policy": dict(identity),
        "environment": experiment.env,
        "environment_settings": dict(experiment.env_settings),
        "tools": experiment.tools,
        "data": experiment.data,
        "data_checksum": data.checksum,
        "data_map": dict(experiment.columns),
        "decoding": asdict(experiment.decoding),
        "rollout": rollout,
        "seed": experiment.seed,
    }


def _in_order(records: Sequence[Record], data: DataSet) -> list[Record]:
    place = {problem: index for index, problem in enumerate(data.ids)}
    known = [record for record in records if record.problem in place]
    return sorted(known, key=lambda record: (place[record.problem], record.draw))


async def _summary(
    experiment: Experiment, data: DataSet, about: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, Any]:
    equivalence, grader = None, Grader()
    if experiment.votes != "none" and experiment.samples > 1:
        equivalence = equivalence_of(grader, experiment.votes)
    try:
        table = await summarise(records, equivalence)
    finally:
        await grader.aclose()
    return {
        "table": table,
        "effort": effort(records),
        **about,
        "training": {} if experiment.subject.endpoint else training_cost(experiment.subject.subject),
        "samples": experiment.samples,
        "preset": experiment.preset,
        "data_set": data.describe(),
        "sandbox_settings": asdict(experiment.sandbox),
        "command": list(experiment.command),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Versions of what takes part in an evaluation, where installed."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "argv0": sys.argv[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
