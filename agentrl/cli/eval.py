"""`agentrl eval`: measure a model, a run or an endpoint on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.ranges import Amount, Count, Number, Seconds, Seed, number
from agentrl.settings import Nucleus

if TYPE_CHECKING:
    from agentrl.evaluation.experiment import Experiment
    from agentrl.evaluation.run import Progress
    from agentrl.settings import Settings

EPILOG = """\
examples:
  agentrl eval runs/001 --data gsm8k --samples 4 --limit 200
  agentrl eval models/smollm2 --data gsm8k --samples 4 --limit 200 --no-tools
  agentrl eval Qwen/Qwen3-8B --engine vllm --data aime25 --preset spo-paper --format hermes \\
    --context-tokens 40960
  agentrl eval --endpoint http://localhost:8000/v1 --model NAME --data my.jsonl --map problem=question

The same command again goes on where a killed one stopped. Definitions: docs/evaluation.md.
"""


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
    _add_task(parser)
    _add_sampling(parser)
    _add_engine(parser)
    _add_endpoint(parser)
    _add_output(parser)
    parser.set_defaults(handler=run)


def _add_task(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("task")
    task.add_argument("--data", help="name of a benchmark, a jsonl or parquet file, or generated:test:200")
    task.add_argument("--data-dir", default="", help="folder with the files of the benchmarks")
    task.add_argument("--map", default="", metavar="NEW=OLD,...", help="problem=question,answer=final")
    task.add_argument("--limit", type=number(Number), default=0, help="first rows only; 0 takes all")
    task.add_argument("--env", help="a registered name or a file (default: the run's, or math_with_python)")
    task.add_argument(
        "--env-set", action="append", default=[], metavar="KEY=VALUE", help="of the environment"
    )
    task.add_argument("--no-tools", action="store_true", help="hide the tools; one turn")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling (defaults: the run's [eval] and [rollout], or the preset)")
    sampling.add_argument("--preset", default="", help="a named protocol: spo-paper")
    sampling.add_argument("--samples", type=number(Count), help="episodes per problem (k)")
    sampling.add_argument("--temperature", type=number(Amount))
    sampling.add_argument("--top-p", type=number(Nucleus))
    sampling.add_argument("--top-k", type=number(Number))
    sampling.add_argument("--max-tokens", type=number(Count), help="sampled tokens of one episode")
    sampling.add_argument("--max-turn-tokens", type=number(Number), help="sampled tokens of one message")
    sampling.add_argument("--max-turns", type=number(Number), help="messages of one episode")
    sampling.add_argument("--format", choices=("auto", "code", "hermes"), help="how tools are called")
    sampling.add_argument("--seed", type=number(Seed), default=0)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine and sandbox")
    engine.add_argument("--engine", choices=("transformers", "vllm"), default="")
    engine.add_argument("--concurrency", type=number(Count), default=64, help="episodes in flight")
    engine.add_argument("--device", default="auto", help="of the transformers engine")
    engine.add_argument("--dtype", choices=("auto", "float32", "bfloat16"))
    engine.add_argument("--context-tokens", type=number(Number), help="longest sequence")
    engine.add_argument("--vllm-url", action="append", default=[], help="a running server to attach to")
    engine.add_argument("--vllm-python", default="", help="Python that has vLLM")
    engine.add_argument("--sandbox", choices=("local", "docker", "remote", "broken"))
    engine.add_argument("--sandbox-url", action="append", default=[], help="servers of a remote pool")
    engine.add_argument("--min-level", help="lowest level of isolation accepted")
    engine.add_argument("--allow-unsafe", action="store_true", help="run programs without isolation")
    engine.add_argument("--limit-s", type=number(Seconds), help="longest wall time of one episode")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    endpoint = parser.add_argument_group("endpoint (OpenAI-compatible)")
    endpoint.add_argument("--endpoint", default="", metavar="URL")
    endpoint.add_argument("--model", default="", help="name of the model at the endpoint")
    endpoint.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="environment variable that holds the key (default: OPENAI_API_KEY)",
    )
    endpoint.add_argument("--tool-format", choices=("native", "code"), default="native")
    endpoint.add_argument(
        "--limit-name",
        choices=("max_tokens", "max_completion_tokens"),
        default="max_tokens",
        help="name of the limit on an answer; reasoning models want max_completion_tokens",
    )
    endpoint.add_argument(
        "--no-temperature", action="store_true", help="send none, for models that refuse one"
    )
    endpoint.add_argument(
        "--timeout-s", type=number(Seconds), default=300.0, help="longest wait for one answer (300)"
    )
    endpoint.add_argument("--attempts", type=number(Count), default=6, help="tries of one request (6)")
    endpoint.add_argument("--requests-per-minute", type=number(Number), default=0)
    endpoint.add_argument("--tokens-per-minute", type=number(Number), default=0)
    endpoint.add_argument("--budget-tokens", type=number(Number), default=0)
    endpoint.add_argument(
        "--budget", type=number(Amount), default=0.0, help="money, in the currency of the prices"
    )
    endpoint.add_argument("--price-prompt", type=number(Amount), default=0.0, help="of a million tokens")
    endpoint.add_argument("--price-completion", type=number(Amount), default=0.0, help="of a million tokens")


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="folder of the results (default: evals/NAME-DATA)")
    output.add_argument(
        "--votes", choices=("equivalence", "canonical", "text", "none"), default="equivalence"
    )
    output.add_argument("--retry-failures", action="store_true", help="play failed episodes again")
    output.add_argument("--no-text", action="store_true", help="keep no transcripts")
    output.add_argument("--json", action="store_true", help="print the summary instead of the table")
    output.add_argument("--quiet", action="store_true", help="no live progress")


def run(options: argparse.Namespace) -> int:
    """Evaluate."""
    from agentrl.errors import Interrupted
    from agentrl.evaluation.experiment import run_experiment
    from agentrl.evaluation.tables import evaluation_table

    experiment = make_experiment(options)
    live = Live(quiet=options.quiet)
    try:
        summary = run_experiment(experiment, live.tell)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was finished is in {experiment.out}, the same command goes on"
        ) from None
    finally:
        live.end()
    print(json.dumps(summary, indent=2) if options.json else evaluation_table(summary))
    if not options.json:
        print(f"results: {experiment.out}")
    return 0


def make_experiment(options: argparse.Namespace) -> Experiment:
    """The evaluation that the options mean: defaults, then the run's settings, the preset, the options."""
    from agentrl.errors import ConfigError
    from agentrl.evaluation.datasets import parse_map
    from agentrl.evaluation.experiment import Experiment
    from agentrl.evaluation.subjects import run_settings

    settings = run_settings(options.subject)
    data = options.data or (settings.eval.data if settings is not None else "")
    if not data:
        raise ConfigError("name the data: --data gsm8k, a file, or generated:test:200")
    samples, decoding, rollout = _sampling(options, settings)
    env = settings.env[0] if settings is not None and settings.env else None
    same_env = env is not None and options.env in (None, env.name)
    columns = parse_map(options.map)
    if not columns and not options.data and settings is not None:
        columns = dict(settings.data.map)
    env_settings = dict(env.settings) if env is not None and same_env else {}
    return Experiment(
        subject=_subject(options, settings),
        data=data,
        out=options.out or _default_out(options, data),
        env=options.env or (env.name if env is not None else "math_with_python"),
        env_settings=env_settings | _env_settings(options.env_set),
        tools=not options.no_tools,
        columns=columns,
        limit=options.limit,
        data_dir=options.data_dir,
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


def _given(options: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Settings whose option was given: `_given(options, max_tokens="max_tokens")`."""
    found = {setting: getattr(options, option) for setting, option in names.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def _sampling(options: argparse.Namespace, settings: Settings | None):
    from dataclasses import replace

    from agentrl.errors import ConfigError
    from agentrl.evaluation.benchmarks import PRESETS
    from agentrl.rollout import Decoding
    from agentrl.settings import EvalSettings, RolloutSettings

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

    from agentrl.settings import SandboxSettings

    known = settings.sandbox if settings is not None else SandboxSettings()
    changes = _given(options, backend="sandbox", min_level="min_level")
    if options.allow_unsafe:
        changes["allow_unsafe"] = True
    if options.sandbox_url:
        changes["urls"] = tuple(options.sandbox_url)
    return replace(known, **changes)


def _env_settings(items: list[str]) -> dict[str, Any]:
    from agentrl.errors import ConfigError

    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--env-set {item!r}: want KEY=VALUE")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _default_out(options: argparse.Namespace, data: str) -> Path:
    subject = options.subject or options.model
    parts = [part for part in Path(subject.removeprefix("scripted:")).parts if part not in ("/", "..", ".")]
    name = "-".join(parts[-2:]).replace(":", "-")
    data_name = Path(data).stem if "/" in data or data.endswith(("l", "parquet")) else data
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
