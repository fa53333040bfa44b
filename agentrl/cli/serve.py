"""`agentrl serve`: an environment as an MCP server on standard streams, for agents and trainers of others."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings, settings_of
from agentrl.config.ranges import Number
from agentrl.config.settings import DataSettings, SandboxSettings
from agentrl.evaluation.settings import PlayedEnvSettings

__all__ = ["SHORT", "ServeSettings", "add_parser"]

SHORT = {"set": "env.settings", "data": "data.train", "row": "serve.row", "sandbox": "sandbox.backend"}
"""Short options, and the settings that they stand for."""
EPILOG = """\
examples:
  agentrl serve examples/word_count.py                     its first example row
  agentrl serve my_env.py --data rows.jsonl --row 17       a row of a file; each process is one episode
"""


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """`[serve]`: the episode that is served."""

    row: Number = 0
    """Number of the row, from 0."""
    submit: bool = False
    """Adds a tool `submit(answer)`, which tells the reward."""
    address: str = ""
    """`HOST:PORT`: serves runs of agentrl instead, which name the environment `remote:HOST:PORT`."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything that serving an environment is told."""

    env: PlayedEnvSettings = field(default_factory=PlayedEnvSettings)
    data: DataSettings = field(default_factory=DataSettings)
    serve: ServingSettings = field(default_factory=ServingSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `agentrl`."""
    parser = add_command(
        subparsers, "serve", "offer an environment's tools as an MCP server, on standard streams", EPILOG
    )
    parser.add_argument("env", help="an environment, as in training; or settings (.toml)")
    add_settings(parser, ServeSettings, SHORT)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Serve until standard input ends."""
    from agentrl.cluster import event_loop
    from agentrl.errors import ConfigError
    from agentrl.tasks.task import env_class, load_data

    settings = settings_of(ServeSettings, options.env, "env.name", options.settings)
    if settings.serve.address:
        _serve_runs(settings)
    env = env_class(settings.env.name, settings.env.settings, settings.env)
    rows = load_data(settings.data, env, "agentrl serve") if settings.data.train else tuple(env.example_rows)
    if not rows:
        raise ConfigError(f"{env.__name__} has no example_rows: give --data FILE, or put a row in the class")
    if settings.serve.row >= len(rows):
        raise ConfigError(f"--row {settings.serve.row}: there are {len(rows)} rows, counted from 0")
    event_loop.run(_serve(env, settings, rows[settings.serve.row]))
    return 0


def _serve_runs(settings: ServeSettings) -> None:
    """Serve runs of agentrl until this process is ended."""
    from agentrl.config.secrets import with_secrets
    from agentrl.errors import ConfigError
    from agentrl_envs.isolation.remote import serve_remotely
    from agentrl_envs.registry import reads_variables
    from agentrl_envs.secret_text import masked

    env, address = settings.env, settings.serve.address
    used = ServeSettings(
        PlayedEnvSettings(name=env.name, settings=env.settings), serve=ServingSettings(address=address)
    )
    sections = [(one.name, getattr(settings, one.name), getattr(used, one.name)) for one in fields(settings)]
    unused = [
        f"{name}.{one.name}"
        for name, given, known in sections
        for one in fields(given)
        if getattr(given, one.name) != getattr(known, one.name)
    ]
    if unused:
        raise ConfigError(
            f"not with serve.address, because each run that connects brings its own: {', '.join(unused)}"
        )
    serve_remotely(
        env.name,
        address,
        lambda bound: print(f"serving {masked(env.name)} at {bound}", flush=True),
        with_secrets(env.settings, reads_variables(env.name)),
    )


async def _serve(env: Any, settings: ServeSettings, row: Any) -> None:
    from agentrl.config.secrets import with_secrets
    from agentrl.tasks.task import make_sandbox
    from agentrl_envs.mcp.serving import serve_env

    async with make_sandbox(settings.sandbox) as sandbox:
        told = env.check_settings(with_secrets(settings.env.settings, env.reads_variables))
        made = env(sandbox=sandbox, **told)
        await serve_env(made, row, submit=settings.serve.submit)
