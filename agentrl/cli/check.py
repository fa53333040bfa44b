"""`agentrl check`: an environment tried on scripted policies before anybody trains on it.

Prints one line per check and exits with 1 when one fails. The checks themselves are in `agentrl_envs.check`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from agentrl.config.ranges import Count, Range, number

__all__ = ["add_parser"]

_MARKS = {True: "ok  ", False: "FAIL", None: "skip"}


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `agentrl`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "check",
        help="try an environment on scripted policies before training on it",
        description="Try an environment on scripted policies: the ground truth must score the most, empty "
        "and malformed answers the least, known cheats nothing; wrong arguments must be survived, and the "
        "answer must not reach the sandbox.",
    )
    parser.add_argument(
        "env", help='a file ("my_env.py", "my_env.py:Class"), a dotted path or a registered name'
    )
    parser.add_argument("--data", help="rows to try it on (default: the class's example_rows)")
    parser.add_argument("--map", default="", metavar="NEW=OLD,..", help="rename: problem=question")
    parser.add_argument("--limit", type=number(Count), default=8, help="rows to try (default: 8)")
    parser.add_argument(
        "--answer-field", default="answer", help="field of the ground truth (default: answer)"
    )
    parser.add_argument(
        "--truth-reward",
        type=number(Annotated[float, Range()]),
        metavar="R",
        help="reward of a right answer alone, where the rest is for something else, such as calling a tool "
        "(default: the greatest of reward_range)",
    )
    parser.add_argument("--sandbox", default="local", help="sandbox backend: local, docker, remote, or none")
    parser.add_argument("--sandbox-url", action="append", default=[], help="servers of a remote pool")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the environment"
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Run the checks and print what they found; 1 when one failed."""
    from agentrl.errors import ConfigError
    from agentrl_envs import load_env, load_rows

    env_class = load_env(options.env)
    if options.data:
        names = _pairs(options.map.split(","))
        rows: Sequence[Mapping[str, Any]] = load_rows(options.data, map=names, limit=options.limit)
    else:
        rows = env_class.example_rows[: options.limit]
    if not rows:
        raise ConfigError(
            f"{env_class.__name__} has no example_rows: give --data FILE, or put a row in the class"
        )
    from agentrl.cluster import event_loop

    findings = event_loop.run(_check(env_class, rows, options))
    width = max(len(finding.check) for finding in findings)
    print(f"{env_class.__name__} on {len(rows)} rows")
    for finding in findings:
        print(f"  {_MARKS[finding.ok]}  {finding.check:<{width}}  {finding.detail}".rstrip())
    failed = sum(finding.ok is False for finding in findings)
    print(f"{failed} of {len(findings)} checks failed" if failed else "ready to train on")
    return 1 if failed else 0


async def _check(env_class: Any, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> Any:
    from agentrl_envs.check import check_env

    told: dict[str, Any] = {
        "settings": _pairs(options.set),
        "answer_field": options.answer_field,
        "truth_reward": options.truth_reward,
    }
    if options.sandbox == "none":
        return await check_env(env_class, rows, **told)
    from agentrl_sandbox import open_sandbox

    sandbox = open_sandbox(options.sandbox, **({"urls": options.sandbox_url} if options.sandbox_url else {}))
    try:
        return await check_env(env_class, rows, sandbox=sandbox, **told)
    finally:
        await sandbox.close()


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    from agentrl.errors import ConfigError

    pairs = {}
    for text in filter(None, texts):
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{text!r}: want NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs
