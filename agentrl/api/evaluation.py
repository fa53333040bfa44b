"""Evaluation from Python: `evaluate`, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.api import keywords
from agentrl.api.episodes import subject_of
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError
from agentrl.evaluation.experiment import run_experiments
from agentrl.evaluation.results import Record, read_records
from agentrl.evaluation.settings import (
    OF_ENV,
    Experiment,
    MeasureSettings,
    PlayedEnvSettings,
    SubjectSettings,
)
from agentrl.evaluation.tables import evaluation_table
from agentrl.inference.endpoint.settings import EndpointSettings

if TYPE_CHECKING:
    from agentrl.inference.policy import Policy
    from agentrl_envs import Env


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found; printed, it is the table of `agentrl eval`.

    Example:
        >>> rows = [{"problem": "7*8+1", "answer": "57"}]
        >>> found = evaluate("arithmetic", data=rows, model="models/demo", max_tokens=32)
        >>> str(found).splitlines()[1]
        'arithmetic, models/demo'
    """

    folder: Path
    """Where every answer is kept."""
    summary: Mapping[str, Any]
    """As `summary.json` has it."""

    def __str__(self) -> str:
        return evaluation_table(self.summary)

    __repr__ = __str__

    @property
    def mean(self) -> float | None:
        """avg@k: the mean over problems of the share of right answers; None where nothing was answered."""
        found = self.summary["table"].get("avg@k")
        return None if found is None else found["value"]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over new problems of this kind."""
        found = self.summary["table"].get("avg@k")
        return None if found is None else (found["new_problems"]["low"], found["new_problems"]["high"])

    @property
    def records(self) -> Sequence[Record]:
        """One for each episode, with its answer, reward and verdict."""
        return read_records(self.folder)


def evaluate(
    env: type[Env] | Mapping[str, Any] | Path | str | None = None,
    /,
    *,
    data: Iterable[Mapping[str, Any]] | Path | str = "",
    model: PathLike[str] | str = "",
    policy: Policy | None = None,
    endpoint: EndpointSettings | str = "",
    samples: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    settings: Settings | Path | str | None = None,
    **given: Any,
) -> Evaluation:
    """Measure a model, a run or an endpoint, with intervals.

    Args:
        env: a class, a file, a registered name; None takes that of the run.
        data: rows, a file, or a name (`gsm8k`, `generated:test:200`); by default the run's held-out rows.
        model: a run, a folder of weights, a Hugging Face id; or the name of an endpoint's model.
        policy: an engine with a `tokenizer`, in place of a model.
        endpoint: URL of an OpenAI-compatible endpoint, or all its options.
        samples: episodes of each problem.
        seed: of the sampling; evaluations with the same seed are paired.
        out: folder of the answers, where an evaluation that was stopped goes on; None takes a new one.
        settings: file or settings to take limits and sandbox from; by default those of the run.
        given: settings, as for `load_settings`: `temperature`, `max_tokens`, `sandbox={...}`, ...

    Raises:
        ConfigError, DataError: it cannot be what was meant; nothing was started.
        AgentRLError: something could not go on; what was finished is kept.

    Example:
        >>> rows = [{"problem": "7*8+1", "answer": "57"}, {"problem": "9*9-1", "answer": "80"}]
        >>> found = evaluate("arithmetic", data=rows, model="models/demo", samples=2, max_tokens=32)
        >>> len(found.records), found.interval[0] <= found.mean <= found.interval[1]
        (4, True)
    """
    if env is not None:
        given = {"env": env, **given}
    if "temperature" in given:
        given["eval.temperature"] = given.pop("temperature")
    found, subject = subject_of(model, policy, endpoint, settings, {"seed": seed, **given})
    if len(found.env) != 1:
        raise ConfigError(f"say which environment is meant; there are {[one.name for one in found.env]}")
    chosen = found.env[0]
    source = str(data) if isinstance(data, str | Path) else keywords.rows_file(data, Path("evals", "rows"))
    source = source or chosen.eval_data or found.eval.data
    if not source:
        raise ConfigError("give data: rows, a file, or a name such as generated:test:200")
    measure = MeasureSettings(
        data=(source,),
        out=str(_new_folder(Path("evals")) if out is None else out),
        samples=found.eval.samples if samples is None else samples,
        temperature=found.eval.temperature,
        top_p=found.eval.top_p,
        top_k=found.eval.top_k,
        concurrency=subject.concurrency,
        seed=seed,
    )
    experiment = Experiment(
        SubjectSettings(subject.subject, subject.device),
        measure,
        PlayedEnvSettings(**{name: getattr(chosen, name) for name in OF_ENV}),
        found.rollout,
        found.sandbox,
        subject.engine,
        subject.endpoint,
    )
    return Evaluation(Path(measure.out), run_experiments([experiment], subject=subject)[0])


def _new_folder(parent: Path) -> Path:
    """The first free number."""
    number = 1
    while (parent / f"{number:03d}").exists():
        number += 1
    return parent / f"{number:03d}"
