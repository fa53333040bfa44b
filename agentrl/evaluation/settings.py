"""Settings of an evaluation: the tree of `agentrl eval`, its short options, and the defaults of a run.

Sections and settings that training has too have the same names and meanings. This module reads no data and
imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from agentrl.config import loading, presets
from agentrl.config.ranges import Count, Number, Seed, Share
from agentrl.config.settings import (
    EngineSettings,
    IsolationSettings,
    RolloutSettings,
    Rules,
    SampleSettings,
    SandboxSettings,
)
from agentrl.errors import ConfigError
from agentrl.inference.endpoint.settings import EndpointAddress, EndpointSettings
from agentrl.storage.run_folder import RunFolder

SHORT = {
    "model": "model.path",
    "device": "model.device",
    "data": "eval.data",
    "data_dir": "eval.data_dir",
    "map": "eval.map",
    "limit": "eval.limit",
    "env": "env.name",
    "env_set": "env.settings",
    "system": "env.settings.system_prompt",
    "no_tools": "eval.tools=false",
    "prompt": "eval.prompt",
    "shots": "eval.shots",
    "shots_data": "eval.shots_data",
    "choices": "eval.choices",
    "grader": "eval.grader",
    "tolerance": "eval.tolerance",
    "convention": "eval.conventions",
    "by": "eval.by",
    "preset": "eval.preset",
    "samples": "eval.samples",
    "temperature": "eval.temperature",
    "top_p": "eval.top_p",
    "top_k": "eval.top_k",
    "seed": "eval.seed",
    "concurrency": "eval.concurrency",
    "votes": "eval.votes",
    "out": "eval.out",
    "retry_failures": "eval.retry_failures=true",
    "no_text": "eval.keep_text=false",
    "max_tokens": "rollout.max_tokens",
    "max_turn_tokens": "rollout.max_turn_tokens",
    "max_turns": "rollout.max_turns",
    "format": "rollout.format",
    "limit_s": "rollout.limit_s",
    "engine": "engine.kind",
    "dtype": "engine.dtype",
    "context_tokens": "engine.context_tokens",
    "vllm_url": "engine.urls",
    "vllm_python": "engine.python",
    "sandbox": "sandbox.backend",
    "sandbox_url": "sandbox.urls",
    "min_level": "sandbox.min_level",
    "allow_unsafe": "sandbox.allow_unsafe=true",
    "endpoint": "endpoint.url",
    "key_variable": "endpoint.key_variable",
    "tool_format": "endpoint.tool_format",
    "limit_name": "endpoint.limit_name",
    "no_temperature": "endpoint.send_temperature=false",
    "body": "endpoint.body",
    "timeout_s": "endpoint.timeout_s",
    "attempts": "endpoint.attempts",
    "requests_per_minute": "endpoint.requests_per_minute",
    "tokens_per_minute": "endpoint.tokens_per_minute",
    "budget_tokens": "endpoint.budget_tokens",
    "budget": "endpoint.budget_money",
    "price_prompt": "endpoint.price_prompt",
    "price_completion": "endpoint.price_completion",
    "judge": "judge.url",
    "judge_model": "judge.model",
    "judge_key_variable": "judge.key_variable",
    "judge_over": "judge.over",
    "judge_share": "judge.share",
}
"""Short options of `agentrl eval`, and the settings that they stand for."""

TASK = {name: SHORT[name] for name in ("data", "map", "limit", "samples", "env", "system", "prompt", "shots")}
TASK |= {name: SHORT[name] for name in ("shots_data", "choices", "grader", "tolerance", "by")}
TASK |= {"env_settings": "env.settings", "tools": "eval.tools", "conventions": "eval.conventions"}
"""Keys of a file of tasks."""


@dataclass(frozen=True, slots=True)
class SubjectSettings:
    """`[model]`: what is evaluated."""

    path: str = ""
    """A run, a folder of weights, a Hugging Face id, or `scripted:file.py:function`; with `endpoint.url` the
    name of the model there."""
    device: str = "auto"
    """Of the transformers engine; `auto` takes a GPU where there is one."""


@dataclass(frozen=True, slots=True)
class MeasureSettings(SampleSettings):
    """`[eval]`: what is asked, how often, and how answers are scored."""

    data: tuple[str, ...] = ()
    """Names of benchmarks, jsonl or parquet files, `generated:test:200`, or files of tasks (.toml); several
    in a list or with commas. Empty takes the run's held-out rows."""
    name: str = ""
    """Of the task among several; empty takes that of the data."""
    data_dir: str = ""
    """Folder with the files of the benchmarks."""
    map: dict[str, str] = field(default_factory=dict)
    """Renames columns: `problem = "question"` reads the field `problem` from the column `question`."""
    limit: Number = 0
    """First rows only; 0 takes all."""
    tools: bool = True
    """Whether the policy has the environment's tools; without them there is one turn."""
    prompt: tuple[str, ...] = ()
    """Templates of the first message, with `{problem}` and other columns, or `@file`; several are variants.
    Empty leaves it to the environment."""
    shots: Number = 0
    """Worked examples before the problem, from `shots_data` or the benchmark's training set."""
    shots_data: str = ""
    """File of worked examples."""
    choices: str = ""
    """Column with the choices of multiple choice."""
    grader: str = "equivalence"
    """`equivalence`, `strict`, or `file.py:function`, called with answer and gold."""
    tolerance: Share = 0.0
    """Relative difference up to which numbers are equal."""
    conventions: dict[str, object] = field(default_factory=dict)
    """How answers of this data set are read: `decimal_comma`, `log_base` (docs/grading.md)."""
    by: tuple[str, ...] = ()
    """Columns by whose values accuracy is broken down."""
    preset: str = ""
    """A named protocol: `spo-paper`."""
    seed: Seed = 0
    """Of what is sampled; evaluations with one seed are paired."""
    concurrency: Count = 64
    """Episodes in flight."""
    votes: Literal["equivalence", "canonical", "text", "none"] = "equivalence"
    """Which answers count as one in a vote."""
    out: str = ""
    """Folder of the results; empty takes `evals/NAME-DATA`."""
    retry_failures: bool = False
    """Whether failed episodes are played again."""
    keep_text: bool = True
    """Whether transcripts are kept."""

    @property
    def task_name(self) -> str:
        """What the task is called."""
        source = self.data[0] if self.data else ""
        return self.name or (Path(source).stem if Path(source).suffix else source)


@dataclass(frozen=True, slots=True)
class PlayedEnvSettings(IsolationSettings):
    """`[env]`: the environment; that of a run where one is evaluated."""

    name: str = "math_with_python"
    """A registered name, a dotted path `package.module:Class`, or a file `my_env.py:Class`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Passed to the environment; unknown names are errors."""


OF_ENV = tuple(one.name for one in fields(PlayedEnvSettings))
"""Settings of an environment that an evaluation takes from a run."""


@dataclass(frozen=True, slots=True)
class JudgeSettings(EndpointAddress):
    """`[judge]`: an OpenAI-compatible endpoint that is asked about answers too."""

    over: Literal["undecided", "wrong"] = "undecided"
    """`undecided`: may say right where the grader could not compare. `wrong`: also where it said wrong, or
    found no answer."""
    share: Share = 0.1
    """Of the answers that the grader decided, how many the judge sees too: so their agreement is known."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.url and not self.model:
            yield ("url", "model"), "a judge needs the name of a model: --judge-model"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything an evaluation is told."""

    model: SubjectSettings = field(default_factory=SubjectSettings)
    eval: MeasureSettings = field(default_factory=MeasureSettings)
    env: PlayedEnvSettings = field(default_factory=PlayedEnvSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)


def load_experiment(
    path: Path | None = None, flags: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Experiment:
    """An evaluation: defaults, then the run that is evaluated, the preset, the file, flags, and values.

    Args:
        path: a TOML file; None takes none.
        flags: `--section.key=value`.
        values: dotted names with values as Python has them.

    Raises:
        ConfigError: with every mistake found; or a run of several environments, of which none is named.
    """
    found = loading.load(Experiment, path, flags, values, below=_below)
    measure = replace(found.eval, data=apart(found.eval.data, Path), by=apart(found.eval.by))
    if not measure.data:
        raise ConfigError("name the data: --data gsm8k, a file, or generated:test:200")
    out = measure.out or str(_default_out(found.model.path, measure))
    return replace(found, eval=replace(measure, out=out))


def apart(texts: Sequence[str], kind: Any = None) -> tuple[str, ...]:
    """Texts with commas taken apart, save for names of files."""
    parts = [[text] if kind and Path(text).exists() else text.split(",") for text in texts]
    return tuple(part.strip() for several in parts for part in several if part.strip())


def _default_out(subject: str, measure: MeasureSettings) -> Path:
    data = measure.data[0] if len(measure.data) == 1 else "tasks"
    parts = [part for part in Path(subject.removeprefix("scripted:")).parts if part not in ("/", "..", ".")]
    name = "-".join(parts[-2:]).replace(":", "-")
    data_name = Path(data).stem if "/" in data or data.endswith(("l", "parquet", "csv")) else data
    return Path("evals") / f"{name}-{data_name.replace(':', '-')}{'' if measure.tools else '-no-tools'}"


def _below(told: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where file and flags say nothing: the settings of the evaluated run, and the preset."""
    measure = _section(told, "eval")
    asked = _section(told, "endpoint").get("url")
    subject = "" if asked else str(_section(told, "model").get("path", ""))
    table: dict[str, Any] = {"eval": {}}
    if subject and (Path(subject) / "run.json").exists():
        run, _ = loading.read(RunFolder.open(Path(subject)).config)
        table = {name: run[name] for name in ("rollout", "sandbox", "engine") if name in run}
        known = run.get("eval", {})
        shared = ("samples", "temperature", "top_p", "top_k")
        table["eval"] = {name: known[name] for name in shared if name in known}
        env = _run_env(subject, run, told)
        table["env"] = {name: env[name] for name in OF_ENV if name in env}
        if "data" not in measure:
            table["eval"]["data"] = env.get("eval_data") or known.get("data") or []
            data = env.get("data", {})
            table["eval"]["map"] = (data if data.get("train") else run.get("data", {})).get("map", {})
    # The rows of a run's engine were chosen for its memory; more episodes than rows wait their turn.
    table.setdefault("engine", {}).setdefault("slots", measure.get("concurrency", 64))
    if name := measure.get("preset"):
        for section, values in presets.settings_of(str(name), presets.PROTOCOLS).items():
            table[section] = table.get(section, {}) | values
    return table


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _run_env(subject: str, run: Mapping[str, Any], told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The environment of a run that is meant; empty where another one is asked for.

    Raises:
        ConfigError: the run has several, and none is named.
    """
    envs, asked = run.get("env", []), _section(told, "env").get("name")
    envs = [envs] if isinstance(envs, dict) else envs
    if asked is None and len(envs) > 1:
        names = ", ".join(env["name"] for env in envs)
        raise ConfigError(f"{subject} has several environments ({names}); name one with --env")
    return next((env for env in envs if asked in (None, env.get("name"))), {})


def experiments_of(base: Experiment) -> list[Experiment]:
    """The experiments of a command: one for each data set, task of a file of tasks, and prompt.

    `eval.out` is the folder of one, and of several their parent.

    Raises:
        ConfigError: a file of tasks that cannot be used, or two tasks of one name.
    """
    found: list[Experiment] = []
    for source in base.eval.data:
        if source.endswith(".toml"):
            found += _tasks(base, source)
        else:
            found.append(loading.changed(base, {"eval.data": [source]}))
    if len(found) == 1 and len(found[0].eval.prompt) <= 1:
        return found
    found = [one for each in found for one in _variants(each)]
    names = [one.eval.task_name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tasks are called {twice!r}; name them in a file of tasks")
    places = [name.replace("/", "-").replace(":", "-") for name in names]
    return [
        loading.changed(one, {"eval.out": str(Path(base.eval.out) / place)})
        for one, place in zip(found, places, strict=True)
    ]


def _variants(one: Experiment) -> list[Experiment]:
    if len(one.eval.prompt) <= 1:
        return [one]
    name = one.eval.task_name
    return [
        loading.changed(one, {"eval.prompt": [prompt], "eval.name": f"{name}-prompt{number}"})
        for number, prompt in enumerate(one.eval.prompt, 1)
    ]


def _tasks(base: Experiment, source: str) -> list[Experiment]:
    """The tasks of a file: one table each, whose keys are short options."""
    tables, places = loading.read(Path(source))
    loose = next((key for key, value in tables.items() if not isinstance(value, dict)), None)
    if loose is not None or not tables:
        raise ConfigError(f'{source}: want one table a task, such as [mine] with data = "rows.jsonl"')
    found: list[Experiment] = []
    for name, table in tables.items():
        if "data" not in table:
            raise ConfigError(f"{places[name]}: task [{name}] needs data: a benchmark or a file")
        if unknown := [key for key in table if key not in TASK]:
            near = difflib.get_close_matches(unknown[0], TASK, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TASK)}"
            place = places.get(f"{name}.{unknown[0]}", places[name])
            raise ConfigError(f"{place}: task [{name}]: unknown key {unknown[0]!r} ({hint})")
        values = {TASK[key]: value for key, value in table.items()}
        written = {TASK[key]: places.get(f"{name}.{key}", places[name]) for key in table}
        task = loading.changed(base, {"eval.name": name, **values}, written)
        found.append(replace(task, eval=replace(task.eval, by=apart(task.eval.by))))
    return found
