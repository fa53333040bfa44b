"""`agentrl eval`: measure a model, a run or an endpoint on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings
from agentrl.errors import ConfigError, Interrupted
from agentrl.evaluation.settings import SHORT, Experiment

if TYPE_CHECKING:
    from agentrl.evaluation.run import Progress

EPILOG = """\
examples:
  agentrl eval runs/001 --data gsm8k --samples 4 --limit 200
  agentrl eval examples/eval.toml --samples=8
  agentrl eval my_env.py --model models/smollm2 --data my.jsonl --samples 4
  agentrl eval Qwen/Qwen3-8B --engine vllm --data aime25 --preset spo-paper --format hermes \\
    --context-tokens 40960
  agentrl eval --endpoint http://localhost:8000/v1 --model NAME --data my.jsonl --map problem=question
  agentrl eval models/smollm2 --data gsm8k,math500 --by subject --samples 4
  agentrl eval --rescore evals/smollm2-math500 --grader strict
  agentrl eval --report evals/smollm2-math500 --by level --export inspect

Every setting of the file is also a flag: --section.key=value (docs/configuration.md lists them). The same
command again goes on where a killed one stopped. Definitions: docs/evaluation.md.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "eval", "measure a model, a run or an endpoint on a data set", EPILOG)
    parser.add_argument(
        "subject",
        nargs="?",
        default="",
        help="a run, a folder of weights, a hub id; or settings (.toml), or an environment (.py, .py:Class)",
    )
    parser.add_argument("--rescore", type=Path, metavar="FOLDER", help="score stored results again")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="print stored results again")
    parser.add_argument(
        "--export",
        action="append",
        default=[],
        choices=("inspect", "lm-eval"),
        help="write for others too",
    )
    parser.add_argument("--json", action="store_true", help="print the summary instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    add_settings(parser, Experiment, SHORT)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, score again, or print again."""
    if options.rescore is None and options.report is None:
        return _played(options)
    plays = ("--eval.data", "--endpoint.url", "--model.path")
    if (
        options.subject
        or (options.rescore and options.report)
        or any(flag.startswith(plays) for flag in options.settings)
    ):
        raise ConfigError("--rescore and --report take the folder of an evaluation, and play nothing")
    return _stored(options)


def experiment_of(subject: str, flags: list[str]) -> Experiment:
    """The evaluation that a command means; `subject` is a model, settings, an environment, or nothing."""
    from agentrl.evaluation.settings import load_experiment

    if subject.endswith(".toml"):
        return load_experiment(Path(subject), flags)
    is_env = not subject.startswith("scripted:") and subject.partition(":")[0].endswith(".py")
    named = [f"--{'env.name' if is_env else 'model.path'}={subject}"] if subject else []
    if named and not is_env and any(flag.startswith("--endpoint.url") for flag in flags):
        raise ConfigError("give a folder or --endpoint, not both")
    unsent = "--endpoint.send_temperature=false" in flags
    if unsent and any(flag.startswith("--eval.temperature") for flag in flags):
        raise ConfigError("give --temperature or --no-temperature, not both")
    return load_experiment(None, [*named, *flags])


def _played(options: argparse.Namespace) -> int:
    from agentrl.evaluation.experiment import run_experiments
    from agentrl.evaluation.settings import experiments_of

    whole = experiment_of(options.subject, options.settings)
    experiments = experiments_of(whole)
    live = Live(quiet=options.quiet)
    try:
        summaries = run_experiments(experiments, live.tell)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was finished is in {whole.eval.out}, the same command goes on"
        ) from None
    finally:
        live.end()
    _show(options, summaries, [Path(experiment.eval.out) for experiment in experiments])
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
    from agentrl.config import loading
    from agentrl.evaluation.rescoring import Rescoring, report, rescore
    from agentrl.evaluation.results import task_folders
    from agentrl.evaluation.settings import apart

    scoring = loading.load(Rescoring, None, options.settings)
    scoring = replace(scoring, eval=replace(scoring.eval, by=apart(scoring.eval.by)))
    if options.report is not None:
        if not all(flag.startswith("--eval.by") for flag in options.settings):
            raise ConfigError("--report prints what is stored; --rescore scores it again")
        folders = task_folders(options.report)
        _show(options, [report(folder, scoring.eval.by) for folder in folders], folders)
        return 0
    folder: Path = options.rescore
    way = Path(scoring.eval.grader or ("judged" if scoring.judge.url else "again")).stem
    out = Path(scoring.eval.out or folder.with_name(f"{folder.name}-{way.replace(':', '-')}"))
    folders = task_folders(folder)
    outs = [out if one == folder else out / one.name for one in folders]
    _show(options, [rescore(*pair, scoring) for pair in zip(folders, outs, strict=True)], outs)
    return 0


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
