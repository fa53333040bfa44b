"""What it costs to keep an environment elsewhere: a call, and what a thousand episodes leave behind.

    python -m benchmarks.adapters calls       medians of 1,000 calls of one tool, each way
    python -m benchmarks.adapters episodes    1,000 episodes of three calls, each way; what is left over

Ways: in this process, in a process of its own, an MCP server over pipes and over HTTP (package `mcp`), one in plain
Python started for each episode. Each way prints a JSON line, with the load of the machine beside it.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentrl.config.settings import RolloutSettings
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, ToolCall, load_env, tool
from agentrl_envs.isolation import end_hosts, isolated

SERVERS = Path(__file__).parents[1] / "tests" / "agents" / "servers"
PLAIN = shlex.join([sys.executable, "-S", str(SERVERS / "plain.py")])
PACKAGE = [sys.executable, str(SERVERS / "python_server.py")]
ROW = {"problem": "Say it.", "answer": "42"}
CALL = ToolCall("1", "python", {"code": "4 + 38"})


class Echo(Env):
    """Says it again."""

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
def over_http() -> Iterator[str]:
    """The URL of a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([*PACKAGE, str(port)], stdout=nowhere, stderr=nowhere)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the server at port {port} did not listen within a minute")
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def ways(url: str) -> dict[str, Callable[[], tuple[type[Env], dict[str, Any]]]]:
    """Each way by name: the class, and the settings of its objects."""
    python = {"variables": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    package = {**python, "shared": True}

    def served(where: str, settings: dict[str, Any]) -> tuple[type[Env], dict[str, Any]]:
        return load_env(f"mcp:{where}", settings), settings

    return {
        "in process": lambda: (Echo, {}),
        "process": lambda: (isolated(f"{__file__}:Echo"), {}),
        "mcp, pipes, package, shared": lambda: served(shlex.join(PACKAGE), package),
        "mcp, http, package, a session each": lambda: served(url, {}),
        "mcp, pipes, plain, a server each": lambda: served(PLAIN, {}),
    }


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
    script = ["<code>\n4 + 38\n</code>"] * 3 + ["\\boxed{42}<|end|>"]
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, over_http() as url:
        tempfile.tempdir = made
        for name, load in ways(url).items():
            if options.ways not in name:
                continue
            env_class, settings = load()
            measured: dict[str, Any] = {"way": name}
            if options.what == "calls":
                measured |= asyncio.run(calls(env_class, settings, options.count))
            else:
                # What is made once, whatever the number of episodes (threads of the grader), is made before.
                asyncio.run(episodes(env_class, settings, 32))
                end_hosts()
                before = held(Path(made))
                measured |= asyncio.run(episodes(env_class, settings, options.count))
                end_hosts()
                after = held(Path(made))
                measured["left"] = {what: after[what] - before[what] for what in before}
            end_hosts()
            print(json.dumps({**measured, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    main()
