"""`agentrl eval`: measure a model, a run or an endpoint on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.eval_options import EPILOG, add_options

if TYPE_CHECKING:
    from agentrl.config.settings import EnvSettings, Settings
    from agentrl.evaluation.options import Experiment
    from agentrl.evaluation.rescoring import Rescoring
    from agentrl.evaluation.run import Progress
    from agentrl.evaluation.scoring import JudgeOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = subparsers.add_parser(
        "eval",
        help="measure a model, a run or an endpoint on a data set",
        allow_abbrev=False,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", nargs="?", default="", help="a run, a folder of weights, or a hub id")
    add_options(parser)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, score again, or print again."""
    from agentrl.errors import ConfigError

    if options.rescore is not None or options.report is not None:
        if options.subject or options.endpoint or options.data or (options.rescore and options.report):
            raise ConfigError("--rescore and --report take the folder of an evaluation, and play nothing")
        return _stored(options)
    return _played(options)


def _played(options: argparse.Namespace) -> int:
    from agentrl.errors import Interrupted
    from agentrl.evaluation.experiment import run_experiments

    experiments = make_experiments(options)
    live = Live(quiet=options.quiet)
    try:
        summaries = run_experiments(experiments, live.tell)
    except KeyboardInterrupt:
        where = experiments[0].out if len(experiments) == 1 else experiments[0].out.parent
        raise Interrupted(f"stopped; what was finished is in {where}, the same command goes on") from None
    finally:
        live.end()
    _show(options, summaries, [experiment.out for experiment in experiments])
    return 0


def _show(options: argparse.Namespace, summaries: list[dict[str, Any]], folders: list[Path]) -> None:
    """Print what was found, write the exports, and of several tasks the table and the mean."""
    from agentrl.evaluation.export import export
    from agentrl.evaluation.suite import suite_summary
    from agentrl.evaluation.tables import evaluation_table, suite_table
    from agentrl.storage.durable import write_file

    files = [file for folder in folders for kind in options.export for file in export(folder, kind)]
    found: dict[str, Any] = summaries[0]
    if len(summaries) > 1:
        found = suite_summary(summaries, folders)
        out = folders[0].parent
        if options.report is None:  # which only reads
            write_file(out / "summary.json", json.dumps(found, indent=2).encode(), "suite")
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("\n\n".join(evaluation_table(summary) for summary in summaries))
    if len(summaries) > 1:
        print(f"\n{suite_table(found)}")
    print(f"results: {folders[0] if len(folders) == 1 else folders[0].parent}")
    for file in files:
        print(f"exported: {file}")


def _stored(options: argparse.Namespace) -> int:
    """Print stored results again, or score them again first; of a folder of several tasks, each of them."""
    from agentrl.errors import ConfigError
    from agentrl.evaluation.rescoring import report, rescore
    from agentrl.evaluation.results import task_folders

    if options.report is not None:
        if options.grader or options.tolerance is not None or options.convention or options.judge:
            raise ConfigError("--report prints what is stored; --rescore scores it again")
        folders = task_folders(options.report)
        _show(options, [report(folder, _by(options)) for folder in folders], folders)
        return 0
    folder = options.rescore
    way = Path(options.grader or "judged").stem if options.grader or options.judge else "again"
    out = options.out or folder.with_name(f"{folder.name}-{way.replace(':', '-')}")
    folders = task_folders(folder)
    outs = [out if one == folder else out / one.name for one in folders]
    _show(options, [rescore(_rescoring(options, *pair)) for pair in zip(folders, outs, strict=True)], outs)
    return 0


def _rescoring(options: argparse.Namespace, folder: Path, out: Path) -> Rescoring:
    from agentrl.evaluation.rescoring import Rescoring

    return Rescoring(
        folder,
        out,
        options.grader or "",
        options.tolerance,
        _key_values("--convention", options.convention),
        _judge(options),
        _by(options),
        options.votes,
        options.env or "",
    )


def _by(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name.strip() for text in options.by for name in text.split(",") if name.strip())


def _judge(options: argparse.Namespace) -> JudgeOptions | None:
    from agentrl.evaluation.scoring import JudgeOptions

    if not options.judge:
        return None
    return JudgeOptions(
        options.judge,
        options.judge_model,
        options.judge_key_variable,
        options.judge_over,
        options.judge_share,
    )


def _sources(options: argparse.Namespace, settings: Settings | None, env: EnvSettings | None) -> list[str]:
    """The data that are named, those with commas taken apart."""
    from agentrl.errors import ConfigError

    held_out = (env.eval_data if env is not None else "") or (settings.eval.data if settings else "")
    given = options.data or ([held_out] if held_out else [])
    parts = [[text] if Path(text).exists() else text.split(",") for text in given]
    found = [part.strip() for text in parts for part in text if part.strip()]
    if not found:
        raise ConfigError("name the data: --data gsm8k, a file, or generated:test:200")
    return found


def make_experiments(options: argparse.Namespace) -> list[Experiment]:
    """The evaluations that the options mean: defaults, the run's settings, the preset, the options."""
    from agentrl.evaluation.options import Experiment
    from agentrl.evaluation.subjects import run_settings
    from agentrl.evaluation.suite import experiments_of
    from agentrl.tasks.datasets import parse_map

    settings = run_settings(options.subject)
    env = _run_env(options, settings)
    sources = _sources(options, settings, env)
    samples, decoding, rollout = _sampling(options, settings)
    columns = parse_map(options.map)
    if not columns and not options.data and settings is not None:
        columns = dict(env.data.map if env is not None and env.data.train else settings.data.map)
    env_settings = dict(env.settings) if env is not None else {}
    if options.system is not None:
        env_settings["system_prompt"] = options.system
    base = Experiment(
        subject=_subject(options, settings),
        data=sources[0],
        out=options.out or _default_out(options, sources[0] if len(sources) == 1 else "tasks"),
        env=options.env or (env.name if env is not None else "math_with_python"),
        env_settings=env_settings | _key_values("--env-set", options.env_set),
        tools=not options.no_tools,
        columns=columns,
        limit=options.limit,
        data_dir=options.data_dir,
        shots=options.shots,
        shots_data=options.shots_data,
        choices=options.choices,
        grader=options.grader or "equivalence",
        tolerance=options.tolerance or 0.0,
        conventions=_key_values("--convention", options.convention),
        by=_by(options),
        judge=_judge(options),
        samples=samples,
        decoding=decoding,
        rollout=rollout,
        sandbox=_sandbox(options, settings),
        seed=options.seed,
        votes=options.votes,
        retry_failures=options.retry_failures,
        keep_text=not options.no_text,
        preset=options.preset,
        command=sys.argv,
    )
    return experiments_of(base, sources, options.prompt)


def _run_env(options: argparse.Namespace, settings: Settings | None) -> EnvSettings | None:
    """The environment of a run that is meant; None where there is no run, or another one is asked for.

    Raises:
        ConfigError: the run has several, and none is named.
    """
    from agentrl.errors import ConfigError

    envs = settings.env if settings is not None else ()
    if options.env is None and len(envs) > 1:
        names = ", ".join(env.name for env in envs)
        raise ConfigError(f"{options.subject} has several environments ({names}); name one with --env")
    return next((env for env in envs if options.env in (None, env.name)), None)


def _given(options: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Settings whose option was given: `_given(options, max_tokens="max_tokens")`."""
    found = {setting: getattr(options, option) for setting, option in names.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def _sampling(options: argparse.Namespace, settings: Settings | None):
    from dataclasses import replace

    from agentrl.config.settings import EvalSettings, RolloutSettings
    from agentrl.errors import ConfigError
    from agentrl.rollout.token_completer import Decoding
    from agentrl.tasks.catalog import PRESETS

    known = settings.eval if settings is not None else EvalSettings()
    rollout = settings.rollout if settings is not None else RolloutSettings()
    samples, decoding = known.samples, Decoding(known.temperature, known.top_p, known.top_k)
    if options.preset:
        preset = PRESETS.get(options.preset)
        if preset is None:
            raise ConfigError(f"no preset {options.preset!r}; known: {', '.join(PRESETS)}")
        samples, decoding = preset.samples, Decoding(preset.temperature, preset.top_p, preset.top_k)
        rollout = replace(rollout, max_tokens=preset.max_tokens, max_turns=preset.max_turns)
    decoding = replace(decoding, **_given(options, temperature="temperature", top_p="top_p", top_k="top_k"))
    changes = _given(
        options,
        max_tokens="max_tokens",
        max_turn_tokens="max_turn_tokens",
        max_turns="max_turns",
        format="format",
        limit_s="limit_s",
    )
    if options.no_tools:
        changes["max_turns"] = 1
    samples = samples if options.samples is None else options.samples
    return samples, decoding, replace(rollout, **changes)


def _subject(options: argparse.Namespace, settings: Settings | None):
    from agentrl.errors import ConfigError
    from agentrl.evaluation.subjects import EndpointOptions, Prices, SubjectOptions, engine_for

    endpoint = None
    if options.endpoint:
        if options.subject:
            raise ConfigError("give a folder or --endpoint, not both")
        if options.no_temperature and options.temperature is not None:
            raise ConfigError("give --temperature or --no-temperature, not both")
        endpoint = EndpointOptions(
            options.endpoint,
            options.model,
            options.key_variable,
            options.tool_format,
            options.requests_per_minute,
            options.tokens_per_minute,
            options.budget_tokens,
            options.budget,
            timeout_s=options.timeout_s,
            attempts=options.attempts,
            limit_name=options.limit_name,
            send_temperature=not options.no_temperature,
            body=_key_values("--body", options.body),
        )
    changes = _given(options, dtype="dtype", context_tokens="context_tokens")
    if options.vllm_url:
        changes["urls"] = tuple(options.vllm_url)
    if options.vllm_python:
        changes["python"] = options.vllm_python
    # The rows of a run's engine were chosen for its memory; more episodes than rows wait their turn.
    rows = settings.engine.slots if settings is not None else options.concurrency
    changes["slots"] = min(rows, options.concurrency)
    return SubjectOptions(
        subject=options.subject,
        endpoint=endpoint,
        engine=engine_for(settings, options.engine, changes),
        device=options.device,
        concurrency=options.concurrency,
        seed=options.seed,
        prices=Prices(options.price_prompt, options.price_completion),
    )


def _sandbox(options: argparse.Namespace, settings: Settings | None):
    from dataclasses import replace

    from agentrl.config.settings import SandboxSettings

    known = settings.sandbox if settings is not None else SandboxSettings()
    changes = _given(options, backend="sandbox", min_level="min_level")
    if options.allow_unsafe:
        changes["allow_unsafe"] = True
    if options.sandbox_url:
        changes["urls"] = tuple(options.sandbox_url)
    return replace(known, **changes)


def _key_values(option: str, items: list[str]) -> dict[str, Any]:
    from agentrl.errors import ConfigError

    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{option} {item!r}: want KEY=VALUE")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _default_out(options: argparse.Namespace, data: str) -> Path:
    subject = options.subject or options.model
    parts = [part for part in Path(subject.removeprefix("scripted:")).parts if part not in ("/", "..", ".")]
    name = "-".join(parts[-2:]).replace(":", "-")
    data_name = Path(data).stem if "/" in data or data.endswith(("l", "parquet", "csv")) else data
    return Path("evals") / f"{name}-{data_name.replace(':', '-')}{'-no-tools' if options.no_tools else ''}"


class Live:
    """The running estimate: one line that is rewritten on a terminal, or a line now and then in a log."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._told = 0
        self._width = 0

    def tell(self, progress: Progress) -> None:
        """Show where it stands."""
        from agentrl.evaluation.tables import progress_line

        if self._quiet:
            return
        if self._terminal:
            text = progress_line(progress)
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        elif progress.done >= self._told + max(1, progress.total // 20) or progress.done == progress.total:
            self._told = progress.done
            print(progress_line(progress), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._width:
            print(file=sys.stderr)
