"""`agentrl check`: an environment tried on scripted policies before anybody trains on it.

Prints one line per check and exits with 1 when one fails. The checks themselves are in `agentrl_envs.check`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings, settings_of
from agentrl.config.ranges import Count, Range
from agentrl.config.settings import SandboxSettings
from agentrl.evaluation.settings import PlayedEnvSettings

__all__ = ["SHORT", "CheckSettings", "add_parser"]

_MARKS = {True: "ok  ", False: "FAIL", None: "skip"}
SHORT = {
    "set": "env.settings",
    "data": "check.data",
    "map": "check.map",
    "limit": "check.limit",
    "answer_field": "check.answer_field",
    "truth_reward": "check.truth_reward",
    "sandbox": "sandbox.backend",
    "sandbox_url": "sandbox.urls",
}
"""Short options, and the settings that they stand for."""


@dataclass(frozen=True, slots=True)
class TriedEnvSettings(PlayedEnvSettings):
    """`[env]`: the environment."""

    name: str = ""
    """A file (`my_env.py`, `my_env.py:Class`), a dotted path or a registered name."""


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """`[check]`: rows that it is tried on, and what they are worth."""

    data: str = ""
    """Rows to try it on; empty takes the class's `example_rows`, or has it generate some."""
    map: dict[str, str] = field(default_factory=dict)
    """Renames columns: `problem = "question"` reads the field `problem` from the column `question`."""
    limit: Count = 8
    """Rows to try."""
    answer_field: str = "answer"
    """Field of the ground truth."""
    truth_reward: Annotated[float, Range()] | None = None
    """Reward of a right answer alone, where the rest is for something else, such as calling a tool; by
    default the greatest of `reward_range`."""


@dataclass(frozen=True, slots=True)
class TrialSandboxSettings(SandboxSettings):
    """`[sandbox]`: as in training, or `none`."""

    backend: Literal["local", "docker", "remote", "broken", "none"] = "local"  # pyrefly: ignore[bad-override]
    """Where programs run; `none` gives the environment no sandbox."""


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """A whole trial."""

    env: TriedEnvSettings = field(default_factory=TriedEnvSettings)
    check: TrialSettings = field(default_factory=TrialSettings)
    sandbox: TrialSandboxSettings = field(default_factory=TrialSandboxSettings)


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `agentrl`."""
    parser = add_command(
        subparsers,
        "check",
        "try an environment on scripted policies before training on it",
        description="Try an environment on scripted policies: the ground truth must score the most, empty\n"
        "and malformed answers the least, known cheats nothing; wrong arguments must be survived, and the\n"
        "answer must not reach the sandbox.",
    )
    parser.add_argument(
        "env",
        help="a file (my_env.py, my_env.py:Class), a dotted path or a registered name; or settings (.toml)",
    )
    add_settings(parser, CheckSettings, SHORT)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Run the checks and print what they found; 1 when one failed."""
    from agentrl.cluster import event_loop
    from agentrl.errors import ConfigError
    from agentrl.tasks.task import env_class as env_class_of
    from agentrl_envs import load_rows

    settings = settings_of(CheckSettings, options.env, "env.name", options.settings)
    env_class = env_class_of(settings.env.name, settings.env.settings, settings.env)
    trial = settings.check
    if trial.data:
        rows: Sequence[Mapping[str, Any]] = load_rows(trial.data, map=trial.map, limit=trial.limit)
    else:
        rows = env_class.example_rows[: trial.limit]
        if not rows and (make := getattr(env_class, "generate_rows", None)) is not None:
            rows = make(trial.limit, split="train")
    if not rows:
        raise ConfigError(
            f"{env_class.__name__} has no example_rows: give --data FILE, or put a row in the class"
        )
    findings = event_loop.run(_check(env_class, rows, settings))
    width = max(len(finding.check) for finding in findings)
    print(f"{env_class.__name__} on {len(rows)} rows")
    for finding in findings:
        print(f"  {_MARKS[finding.ok]}  {finding.check:<{width}}  {finding.detail}".rstrip())
    failed = sum(finding.ok is False for finding in findings)
    print(f"{failed} of {len(findings)} checks failed" if failed else "ready to train on")
    return 1 if failed else 0


async def _check(env_class: Any, rows: Sequence[Mapping[str, Any]], settings: CheckSettings) -> Any:
    from agentrl.config.secrets import with_secrets
    from agentrl.tasks.task import make_sandbox
    from agentrl_envs.check import check_env

    told: dict[str, Any] = {
        "settings": with_secrets(settings.env.settings, env_class.reads_variables),
        "answer_field": settings.check.answer_field,
        "truth_reward": settings.check.truth_reward,
    }
    if settings.sandbox.backend == "none":
        return await check_env(env_class, rows, **told)
    async with make_sandbox(settings.sandbox) as sandbox:
        return await check_env(env_class, rows, sandbox=sandbox, **told)
