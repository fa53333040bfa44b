"""What it costs to keep an environment elsewhere: a call, and what a thousand episodes leave behind.

    python -m benchmarks.adapters calls       medians of 1,000 calls of one tool, each way
    python -m benchmarks.adapters episodes    1,000 episodes of three calls, each way; what is left over

Ways: in this process, in a process of its own, an MCP server over pipes and over HTTP (package `mcp`), one in plain
Python started for each episode, the server of `agentrl serve --openenv`, and with `--openenv PYTHON` (an interpreter
that has OpenEnv) that package's own. With `--image TAG` (an image with bash and curl, of a Docker engine that runs
nothing else), episodes of an agent program in a container each, which asks once; what is left of containers, networks
and volumes is counted too. Each way prints a JSON line, with the load of the machine beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.config.settings import RolloutSettings
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, ToolCall, load_env, tool
from agentrl_envs.isolation import end_hosts, isolated
from agentrl_envs.program import ProgramEnv, program_env

SERVERS = Path(__file__).parents[1] / "tests" / "agents" / "servers"
PACKAGE = [sys.executable, str(SERVERS / "python_server.py")]
OUR_SERVER = [
    sys.executable,
    "-m",
    "agentrl.cli.main",
    "serve",
    f"{__file__}:Echo",
    "--openenv=127.0.0.1:PORT",
]
THEIR_SERVER = [str(SERVERS.parents[1] / "adapters" / "openenv_server.py"), "many", "PORT"]
SHARED = "mcp, pipes, package, shared"
HTTP = "mcp, http, package, a session each"
PLAIN = "mcp, pipes, plain, a server each"
OURS, THEIRS = "openenv, our server", "openenv, its own server"
CONTAINED = "program, a container each"
WAYS = ("in process", "process", SHARED, HTTP, PLAIN, OURS, THEIRS, CONTAINED)
ROW = {"problem": "Say it.", "answer": "42"}
SCRIPT = ["<code>\n4 + 38\n</code>"] * 3 + ["\\boxed{42}<|end|>"]
AGENT = """
said=$(curl -sS "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \
  -H 'Content-Type: application/json' -d '{"model": "policy", "messages": [{"role": "user", "content": "Say it."}]}')
said=${said#*\\"content\\": \\"}
echo "${said%%\\"*}"
"""
CALL = ToolCall("1", "python", {"code": "4 + 38"})


class Echo(Env):
    """Says it again."""

    example_rows = (ROW,)

    def prompt(self, row: Any) -> str:
        """The problem."""
        return row["problem"]

    @tool
    def python(self, code: str) -> str:
        """Say it again."""
        return code

    def reward(self, row: Any, answer: str | None) -> Any:
        """Whether the answer is right."""
        return self.grade(answer, row["answer"])


@contextlib.contextmanager
def listening(command: list[str], path: str = "") -> Iterator[str]:
    """The URL of a server, whose command has its port where `PORT` stands."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = subprocess.DEVNULL
    told = [part.replace("PORT", str(port)) for part in command]
    process = subprocess.Popen(told, stdout=nowhere, stderr=nowhere)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the server at port {port} did not listen within a minute")
        yield f"http://127.0.0.1:{port}{path}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def loaded(way: str, openenv: str, image: str) -> Iterator[tuple[type[Env], dict[str, Any]]]:
    """The class of a way, and the settings of its objects; its server runs while the context is open."""
    python = {"variables": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    given: dict[str, Any] = {**python, "shared": True} if way == SHARED else {}
    with contextlib.ExitStack() as stack:
        served = {
            HTTP: lambda: "mcp:" + stack.enter_context(listening([*PACKAGE, "PORT"], "/mcp")),
            SHARED: lambda: f"mcp:{shlex.join(PACKAGE)}",
            PLAIN: lambda: f"mcp:{shlex.join([sys.executable, '-S', str(SERVERS / 'plain.py')])}",
            OURS: lambda: f"openenv:{stack.enter_context(listening(OUR_SERVER))}",
            THEIRS: lambda: f"openenv:{stack.enter_context(listening([openenv, *THEIR_SERVER]))}",
        }
        if way == CONTAINED:
            yield program_env(shlex.join(["bash", "-c", AGENT])), {"image": image, "memory_mb": 256}
        elif way in served:
            yield load_env(served[way](), given), given
        else:
            yield (Echo if way == "in process" else isolated(f"{__file__}:Echo")), {}


async def calls(env_class: type[Env], settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Milliseconds of a call."""
    env = env_class(**settings)
    await env.start(ROW)
    seconds = []
    for number in range(count + 20):
        began = time.perf_counter()
        (result,) = await env.call_tools([CALL])
        if number >= 20:
            seconds.append(time.perf_counter() - began)
        assert result.ok, result.text
    await env.aclose()
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 3), "p90_ms": round(cuts[89] * 1e3, 3), "calls": count}


async def episodes(env_class: type[Env], settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Play so many, sixteen at once."""
    turns = asyncio.Semaphore(16)
    script = SCRIPT[-1:] if issubclass(env_class, ProgramEnv) else SCRIPT
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")

    async def one(number: int) -> Any:
        async with turns:
            return await run_episode(
                lambda: env_class(**settings),
                ScriptedPolicy(script, tokenizer=ByteTokenizer()),
                renderer,
                row=ROW,
                dispatch=Dispatch(f"t{number}", number, "p0", 0, seed=number),
                settings=RolloutSettings(),
            )

    began = time.perf_counter()
    played = await asyncio.gather(*map(one, range(count)))
    failed = [episode.failure.message for episode in played if episode.failure is not None]
    return {
        "episodes": count,
        "failed": len(failed),
        "first_failure": failed[0] if failed else None,
        "mean_reward": statistics.fmean(episode.reward or 0.0 for episode in played),
        "seconds": round(time.perf_counter() - began, 1),
    }


def of_engine() -> dict[str, int]:
    """What the Docker engine has; a container that ended is removed a moment later."""
    from agentrl_sandbox.docker.engine import connect

    client = connect()
    try:
        for _ in range(100):
            if not (containers := client.containers.list(all=True, ignore_removed=True)):
                break
            time.sleep(0.2)
        return {
            "containers": len(containers),
            "networks": len(client.networks.list()),
            "volumes": len(client.volumes.list()),
        }
    finally:
        client.close()


def held(folder: Path) -> dict[str, int]:
    """What this process has: processes that it started, descriptors, files in its temporary folder, threads."""
    gc.collect()
    children = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            children += int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
    return {
        "processes": children,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "files": sum(1 for _ in folder.rglob("*")),
        "threads": threading.active_count(),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("calls", "episodes"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ways", default="", help="only those whose name holds this")
    parser.add_argument("--openenv", default="", help="an interpreter that has the package openenv")
    parser.add_argument("--image", default="", help="an image with bash and curl")
    options = parser.parse_args()
    whole = options.what == "episodes"  # an OpenEnv environment ends by itself, long before a thousand calls
    able = {OURS: whole, THEIRS: whole and bool(options.openenv), CONTAINED: whole and bool(options.image)}
    chosen = [way for way in WAYS if options.ways in way and able.get(way, True)]
    with tempfile.TemporaryDirectory() as made:
        tempfile.tempdir = made
        for way in chosen:
            with loaded(way, options.openenv, options.image) as (env_class, settings):
                row = measure(options.what, options.count, Path(made), env_class, settings)
            print(json.dumps({"way": way, **row, "load": round(os.getloadavg()[0], 1)}), flush=True)


def measure(
    what: str, count: int, folder: Path, env_class: type[Env], settings: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of one way."""
    if what == "calls":
        return asyncio.run(calls(env_class, settings, count))
    engine = of_engine if issubclass(env_class, ProgramEnv) else dict[str, int]
    try:
        # What is made once, whatever the number of episodes (threads of the grader), is made before.
        asyncio.run(episodes(env_class, settings, 32))
        end_hosts()
        before = {**held(folder), **engine()}
        measured = asyncio.run(episodes(env_class, settings, count))
        end_hosts()
        after = {**held(folder), **engine()}
        return {**measured, "left": {name: after[name] - before[name] for name in before}}
    finally:
        end_hosts()


if __name__ == "__main__":
    main()
