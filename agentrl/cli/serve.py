"""`agentrl serve`: an environment as a server of MCP or of OpenEnv, for agents and trainers of others."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings, settings_of
from agentrl.config.ranges import Count, Number, Seconds
from agentrl.config.settings import DataSettings, SandboxSettings
from agentrl.evaluation.settings import PlayedEnvSettings

__all__ = ["SHORT", "ServeSettings", "add_parser"]

SHORT = {
    "set": "env.settings",
    "data": "data.train",
    "row": "serve.row",
    "sandbox": "sandbox.backend",
    "openenv": "serve.openenv",
}
"""Short options, and the settings that they stand for."""
EPILOG = """\
examples:
  agentrl serve examples/word_count.py                     its first example row
  agentrl serve my_env.py --data rows.jsonl --row 17       a row of a file; each process is one episode
  agentrl serve my_env.py --openenv 127.0.0.1:8000         for clients of OpenEnv; each connection plays many
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
    openenv: str = ""
    """`HOST:PORT`: serves by the protocol of OpenEnv instead, many episodes of all rows."""
    sessions: Count = 64
    """Connections of OpenEnv at once; each has an environment."""
    idle_s: Seconds = 3600.0
    """Seconds within which a connection of OpenEnv must say something."""


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
        subparsers,
        "serve",
        "offer an environment as an MCP server, on standard streams, or as one of OpenEnv",
        EPILOG,
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
    if settings.serve.address and settings.serve.openenv:
        raise ConfigError("serve.address and serve.openenv are two servers: start one process for each")
    if settings.serve.address:
        _serve_runs(settings)
    env = env_class(settings.env.name, settings.env.settings, settings.env)
    rows = load_data(settings.data, env, "agentrl serve") if settings.data.train else tuple(env.example_rows)
    if not rows:
        raise ConfigError(f"{env.__name__} has no example_rows: give --data FILE, or put a row in the class")
    if settings.serve.openenv:
        event_loop.run(_serve_openenv(env, settings, rows))
        return 0
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


async def _serve_openenv(env: Any, settings: ServeSettings, rows: Sequence[Any]) -> None:
    """Serve by the protocol of OpenEnv until this process is ended."""
    from aiohttp import web

    from agentrl.config.secrets import with_secrets
    from agentrl.errors import ConfigError
    from agentrl.tasks.task import make_sandbox
    from agentrl_envs.adapters.serving import EpisodeServer
    from agentrl_envs.isolation.remote import place_of

    serve = settings.serve
    if serve.row or serve.submit:
        raise ConfigError("not with serve.openenv: serve.row (a reset names its row) and serve.submit")
    host, port = place_of(serve.openenv, f"serve.openenv={serve.openenv!r}: want HOST:PORT")
    async with make_sandbox(settings.sandbox) as sandbox:
        told = env.check_settings(with_secrets(settings.env.settings, env.reads_variables))
        server = EpisodeServer(
            lambda rng: env(sandbox=sandbox, rng=rng, **told), rows, serve.sessions, serve.idle_s
        )
        runner = web.AppRunner(server.app(), handle_signals=True, access_log=None, shutdown_timeout=5.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError as error:
                raise ConfigError(f"cannot listen at {serve.openenv!r}: {error}") from error
            bound = runner.addresses[0]
            print(f"serving {env.__name__} at http://{bound[0]}:{bound[1]}", flush=True)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


async def _serve(env: Any, settings: ServeSettings, row: Any) -> None:
    from agentrl.config.secrets import with_secrets
    from agentrl.tasks.task import make_sandbox
    from agentrl_envs.mcp.serving import serve_env

    async with make_sandbox(settings.sandbox) as sandbox:
        told = env.check_settings(with_secrets(settings.env.settings, env.reads_variables))
        made = env(sandbox=sandbox, **told)
        await serve_env(made, row, submit=settings.serve.submit)
