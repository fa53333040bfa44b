"""`agentrl train`: start a run from a settings file or an environment file, or resume one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_preset, add_settings
from agentrl.cli.run_settings import said_in, settings_of
from agentrl.config.settings import Settings
from agentrl.config.short_names import TRAIN

EPILOG = """\
examples:
  agentrl train my_env.py
  agentrl train examples/gsm8k_python.toml
  agentrl train examples/gsm8k_python.toml --learner.learning_rate=1e-5 --steps 3
  agentrl train examples/qwen3_1p7b_gsm8k.toml --env.name=my_env.py --data train.jsonl
  agentrl train --resume runs/001

Every setting of the file is also a flag: --section.key=value (docs/configuration.md lists them).
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "train", "train a model in an environment, or resume a run", EPILOG)
    parser.add_argument("file", nargs="?", help="settings (.toml) or an environment (.py, .py:Class, a name)")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with an earlier run, in its folder")
    parser.add_argument("--dry-run", action="store_true", help="check settings and data, print the former")
    parser.add_argument(
        "--forgive", action="store_true", help="with --resume: draw prompts again that were set aside"
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    add_settings(parser, Settings, TRAIN)
    add_preset(parser)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from agentrl.config import loading
    from agentrl.errors import ConfigError
    from agentrl.report.terminal import progress
    from agentrl.training.parts import Options
    from agentrl.training.train import resume, train

    flags = options.settings
    if options.resume is None and options.file is None:
        raise ConfigError("name a settings file or an environment, or give --resume RUN (see --help)")
    if options.forgive and options.resume is None:
        raise ConfigError("--forgive is for --resume RUN: a new run has set no prompt aside")
    if options.resume is not None:
        finished = finished_steps(options.resume, flags)
        if finished:
            print(f"{options.resume} is finished ({finished} steps); --steps MORE goes on from there")
            return 0
        with progress(quiet=options.quiet) as live:
            told = Options(listeners=(live.row,), on_ready=live.line, forgive=options.forgive)
            summary = resume(options.resume, flags, told)
    else:
        settings, said = settings_of(options.file, flags), said_in(options.file, flags)
        if options.dry_run:
            from agentrl.cli.doctor import memory_lines
            from agentrl.training.plan import plan_run

            plan = plan_run(settings, fetch=False, said=said)
            print(loading.to_toml(plan.settings))
            print("\n".join((*plan.lines, *memory_lines(plan.settings))), file=sys.stderr)
            return 0
        with progress(quiet=options.quiet) as live:
            summary = train(settings, Options(listeners=(live.row,), on_ready=live.line, said=said))
    print(sentence(summary))
    return 0


def finished_steps(path: Path, flags: list[str]) -> int:
    """Steps of a run that has taken all of them and written its last weights; 0 for any other."""
    from agentrl.config import loading
    from agentrl.storage.run_folder import RunFolder

    folder = RunFolder.open(path)
    steps = loading.load_settings(folder.config, flags).run.steps
    try:
        taken = json.loads(folder.summary.read_text())["policy_versions"]
    except (OSError, ValueError, KeyError):
        return 0  # the summary is written last
    newest = folder.newest_weights()
    return steps if newest is not None and newest.name == f"step_{taken}" and taken >= steps else 0


def _initial(summary: dict) -> str:
    """What initial values cost, which is part of what the run cost."""
    if not summary["episodes_initial"]:
        return ""
    return (
        f"{summary['episodes_initial']} more for initial values ({summary['tokens_initial']:,} of "
        f"{summary['tokens_total']:,} tokens, {summary['seconds_initial']:.0f} s), "
    )


def sentence(summary: dict) -> str:
    """What a run came to, in one sentence."""
    first, last = summary["reward_first"], summary["reward_last"]
    reward = (
        f"reward went from {first:.2f} to {last:.2f}"
        if first is not None and last is not None
        else f"{summary['policy_versions']} steps"
    )
    return (
        f"{reward} in {summary['wall_s']:.0f} s ({summary['cpu_s']:.0f} CPU-seconds): "
        f"{summary['episodes']} episodes, {_initial(summary)}{summary['policy_versions']} policy versions, "
        f"{summary['python_calls']} Python calls; {_best(summary)}report: {summary['report']}"
    )


def _best(summary: dict) -> str:
    best = summary.get("best")
    return f"best held-out score: {best['score']:.2f}, version {best['version']}; " if best else ""
