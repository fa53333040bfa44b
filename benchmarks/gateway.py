"""What the gateway costs: tokens a second beside the direct path, latency a request, and what compaction lets a run learn.

    python -m benchmarks.gateway speed          the embedded engine, 64 conversations in flight, both ways in turn;
                                                the demo's model, or with --model FOLDER a real one
    python -m benchmarks.gateway served         an engine elsewhere, 64 conversations in flight, both ways in turn
    python -m benchmarks.gateway latency        an engine that answers at once, one conversation
    python -m benchmarks.gateway compaction     a task of three contexts, with and without

Each prints a JSON line. The agents run in a process of their own, as programs do: processor time is that of the
process that has the engine and the gateway, and what the agents take is said beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import aiohttp

import agentrl
from agentrl.config.loading import load_settings
from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.policy import Policy
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.base import Renderer
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, tool
from agentrl_envs.model import Access

DEMO = Path(agentrl.__file__).parent / "demo"
TOOL = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


class Direct(Env):
    """Turns of an environment."""

    max_turns = 8
    follow_ups: int = 0

    def prompt(self, row: Any) -> str:
        """The problem."""
        self.left = self.follow_ups
        return row["problem"]

    def reply(self, message: str) -> str | None:
        """Another question, while there are any left."""
        self.left -= 1
        return FOLLOW_UP if self.left >= 0 else None

    @tool
    async def python(self, code: str) -> str:
        """Run Python."""
        return "5561"

    async def reward(self, row: Any, answer: str | None) -> bool:
        """Nothing is learned here."""
        return True


class Through(Env):
    """The same agent as a client of the gateway, in the process of the agents."""

    max_turns = 8
    follow_ups: int = 0
    agents: ClassVar[Agents]

    async def play(self, row: Any) -> str | None:
        """A loop over requests."""
        async with self.speaker.serve() as access:
            answer, seconds = await self.agents.play(access, row["problem"], self.follow_ups)
        LATENCIES.extend(seconds)
        return answer

    async def reward(self, row: Any, answer: str | None) -> bool:
        """Nothing is learned here."""
        return True


FOLLOW_UP = "Are you sure? Work it out again, step by step."


@dataclass(frozen=True, slots=True)
class Setting:
    """Who is asked, and for how much."""

    policy: Policy
    renderer: Renderer
    max_tokens: int = 64
    """Of an episode."""
    follow_ups: int = 0
    """Questions after an answer."""


LATENCIES: list[float] = []
"""Seconds of each request, as its agent sees them."""


class Agents:
    """The process of the agents; a line of JSON for each episode, and one back."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: list[asyncio.Future[Any]] = []
        self._lines: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> AsyncIterator[Agents]:
        """The process, while the context is open."""
        pipe, command = asyncio.subprocess.PIPE, (sys.executable, "-m", "benchmarks.gateway", "agents")
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        agents = cls(process)
        try:
            yield agents
        finally:
            process.stdin.close()
            await process.wait()
            await agents._reading

    async def _read(self) -> None:
        async for line in self._process.stdout:
            number, *result = json.loads(line)
            self._waiting[number].set_result(result)
        for one in self._waiting:
            if not one.done():
                one.set_exception(RuntimeError("the process of the agents ended before its episodes"))

    async def _ask(self, *given: Any) -> Any:
        loop = asyncio.get_running_loop()
        self._waiting.append(answer := loop.create_future())
        if not self._lines:  # what is asked in one turn of the loop is one write
            loop.call_soon(self._write)
        self._lines.append(json.dumps([len(self._waiting) - 1, *given]) + "\n")
        return await answer

    def _write(self) -> None:
        self._process.stdin.write("".join(self._lines).encode())
        self._lines.clear()

    async def play(self, access: Access, problem: str, follow_ups: int) -> tuple[str | None, list[float]]:
        """Play one episode: its answer, and the seconds of each request."""
        answer, seconds = await self._ask(access.url, access.key, problem, follow_ups)
        return answer, seconds

    async def cpu_seconds(self) -> float:
        """What the process has used."""
        (seconds,) = await self._ask()
        return seconds


async def be_agents() -> None:
    """Play what is asked on standard input, until it ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(loop=loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def one(number: int, *given: Any) -> None:
        result = await agent(http, *given) if given else (time.process_time(),)
        print(json.dumps([number, *result]), flush=True)

    # A real model may take minutes for a message where the machine has other work.
    patient = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patient) as http,
        asyncio.TaskGroup() as playing,  # an episode that breaks ends the process, and the measurement
    ):
        async for line in lines:
            playing.create_task(one(*json.loads(line)))


async def agent(
    http: aiohttp.ClientSession, url: str, key: str, problem: str, follow_ups: int
) -> tuple[str | None, list[float]]:
    """A loop over requests: the answer, and the seconds of each."""
    messages: list[Any] = [{"role": "user", "content": problem}]
    head = {"Authorization": f"Bearer {key}"}
    seconds = []
    for _ in range(Through.max_turns):
        body = {"model": "m", "messages": messages, "tools": [TOOL]}
        began = time.perf_counter()
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=head) as answer:
            if answer.status != 200:
                return None, seconds
            said = (await answer.json())["choices"][0]["message"]
        seconds.append(time.perf_counter() - began)
        messages.append(said)
        if not said.get("tool_calls"):
            follow_ups -= 1
            if follow_ups < 0:
                return said["content"], seconds
            messages.append({"role": "user", "content": FOLLOW_UP})
            continue
        messages += [{"role": "tool", "tool_call_id": c["id"], "content": "5561"} for c in said["tool_calls"]]
    return None, seconds


@dataclass(frozen=True, slots=True)
class Played:
    """What some episodes took."""

    tokens: int
    """Sampled."""
    messages: int
    """Sampled."""
    seconds: float
    cpu_s: float
    """Of this process."""

    def __add__(self, other: Played) -> Played:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Played(*(one + more for one, more in pairs))


async def episodes(env: Callable[[], Env], setting: Setting, count: int, at_once: int) -> Played:
    """Play `count` episodes."""
    slots = asyncio.Semaphore(at_once)
    began, cpu = time.perf_counter(), time.process_time()

    async def one(number: int) -> Episode:
        async with slots:
            episode = await run_episode(
                env,
                setting.policy,
                setting.renderer,
                row={"problem": f"{number % 90 + 10}*{number % 80 + 11}+17"},
                dispatch=Dispatch(f"e{number}", number, "p", 0, seed=number),
                settings=RolloutSettings(max_tokens=setting.max_tokens, truncated="mask"),
            )
        assert episode.failure is None, episode.failure
        return episode

    played = await asyncio.gather(*(one(number) for number in range(count)))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return Played(sum(e.num_sampled for e in played), sum(len(e.turns) for e in played), seconds, cpu_s)


async def speed(rounds: int, count: int, model: str, tokens: int) -> dict[str, Any]:
    """Both ways in turn, in the embedded engine."""
    import torch

    from agentrl.inference.embedded.engine import TransformersPolicy
    from agentrl.weights.model_files import load_tokenizer

    torch.set_num_threads(1)
    folder = model or str(DEMO / "model")
    tokenizer = load_tokenizer(folder)
    policy = TransformersPolicy(folder, tokenizer, slots=64, context_tokens=512, dtype="float32")
    await policy.start()
    # A model that was not trained to call tools is told of none, and asked again: its conversations go on too.
    renderer = make_renderer(tokenizer, "code", **({"instructions": ""} if model else {}))
    setting = Setting(policy, renderer, tokens, follow_ups=3 if model else 0)
    try:
        named = {"what": "speed", "model": Path(model).name or "demo"}
        return named | await both_ways(setting, rounds, count)
    finally:
        await policy.close()


async def both_ways(setting: Setting, rounds: int, count: int) -> dict[str, Any]:
    """Tokens a second, 64 conversations in flight: both ways in turn, so that other work weighs on both alike.

    A round plays each way twice, there and back: what follows the same way finds its prompts in the engine's keys.
    """
    ways = {"Direct": Direct, "Through": Through}
    played: list[dict[str, Played]] = []
    shares: list[float] = []
    async with Agents.started() as Through.agents:
        for _ in range(-1, rounds):  # the first is warming up
            played.append({name: Played(0, 0, 0.0, 0.0) for name in ways})
            for name in (*ways, *reversed(ways)):
                before = await Through.agents.cpu_seconds()
                env = partial(ways[name], follow_ups=setting.follow_ups)
                done = await episodes(env, setting, count, 64)
                played[-1][name] += done
                if name == "Through":
                    shares.append((await Through.agents.cpu_seconds() - before) / done.cpu_s)
    del played[0], shares[:2]
    wall = [{name: one[name].tokens / one[name].seconds for name in ways} for one in played]
    cpu = [{name: one[name].tokens / one[name].cpu_s for name in ways} for one in played]
    directs = [one["Direct"] for one in played]
    return {
        "in_flight": 64,
        "rounds": rounds,
        "tokens_per_message": sum(one.tokens for one in directs) / sum(one.messages for one in directs),
        "messages_per_episode": sum(one.messages for one in directs) / (2 * rounds * count),
        "tokens_per_s": {name: statistics.median(row[name] for row in wall) for name in ways},
        "tokens_per_cpu_s": {name: statistics.median(row[name] for row in cpu) for name in ways},
        "ratio": statistics.median(row["Through"] / row["Direct"] for row in wall),
        "ratio_cpu": statistics.median(row["Through"] / row["Direct"] for row in cpu),
        "ratios": [round(row["Through"] / row["Direct"], 3) for row in wall],
        "ratios_cpu": [round(row["Through"] / row["Direct"], 3) for row in cpu],
        # Processor time of the agents for one second of the engine and the gateway.
        "agents_share": statistics.median(shares),
        "load": os.getloadavg()[0],
    }


async def served(rounds: int, count: int) -> dict[str, Any]:
    """Both ways in turn, with an engine elsewhere that takes 20 ms a token, as a server on a GPU does."""

    def script(request: Any) -> str:
        return "<code>\n1\n</code>" if request.turn % 3 < 2 else "5561<|end|>"

    policy = ScriptedPolicy(script, tokenizer=ByteTokenizer(), seconds=lambda _, tokens: 0.02 * tokens)
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    return {"what": "served", **await both_ways(Setting(policy, renderer), rounds, count)}


async def latency(requests: int) -> dict[str, Any]:
    """What a request takes beyond the same message asked for directly; the engine answers at once."""
    call = "<code>\n1\n</code>"

    def script(request: Any) -> str:
        return call if request.turn % 8 < 7 else "5561<|end|>"

    policy = ScriptedPolicy(script, tokenizer=ByteTokenizer())
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    LATENCIES.clear()
    directly: list[float] = []
    generate = policy.generate

    async def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = await generate(*given, **named)
        directly.append(time.perf_counter() - began)
        return result

    policy.generate = timed  # type: ignore[method-assign]
    setting = Setting(policy, renderer)
    async with Agents.started() as Through.agents:
        await episodes(Through, setting, requests // 8, 1)
        added = [a - b for a, b in zip(LATENCIES, directly, strict=True)]
        medians = await cpu_a_message(setting, requests // 40)
    cut = statistics.quantiles(added, n=100)
    return {
        "what": "latency",
        "requests": len(added),
        "added_ms": {p: 1e3 * cut[p - 1] for p in (10, 50, 90, 99)},
        # Of the engine and the gateway, and of what an episode costs by itself.
        "cpu_ms_a_message": medians,
        "added_cpu_ms": medians["Through"] - medians["Direct"],
        "load": os.getloadavg()[0],
    }


async def cpu_a_message(setting: Setting, count: int) -> dict[str, float]:
    """Milliseconds of the processor for one message."""
    cpu: dict[str, list[float]] = {"Direct": [], "Through": []}
    for _ in range(5):
        for env in (Direct, Through):
            played = await episodes(env, setting, count, 1)
            cpu[env.__name__].append(1e3 * played.cpu_s / played.messages)
    return {name: statistics.median(values) for name, values in cpu.items()}


SERIES = '''
from agentrl_envs import Arithmetic, arithmetic_rows


class Series(Arithmetic):
    """Several problems one after another: their history is three times the context."""

    max_turns = 24
    compacts: bool = True
    problems: int = 5

    async def reply(self, message):
        self.right += await self.grade(message, self.rows[0]["answer"])
        self.rows.pop(0)
        return self.rows[0]["problem"] if self.rows else None

    def prompt(self, row):
        self.right, self.number = 0, self.problems
        self.rows = [row, *arithmetic_rows(self.problems - 1, split="train", seed=self.rng.randrange(10**6))]
        return row["problem"]

    def compact(self, context):
        if self.compacts:  # what was solved before is of no use
            at = max(n for n, message in enumerate(context.messages) if message["role"] == "user")
            context.messages[:] = context.messages[at:]

    def reward(self, row, answer):
        return self.right / self.number
'''


def compaction(steps: int, context: int) -> dict[str, Any]:
    """Train with and without compaction, everything else alike."""
    from agentrl.storage.metrics import read_metrics
    from agentrl.training.train import train

    result: dict[str, Any] = {"what": "compaction", "context_tokens": context}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "series.py").write_text(SERIES)
        text = (DEMO / "demo.toml").read_text().replace('name = "arithmetic"', f'name = "{folder}/series.py"')
        for name, settings in (("with", "true"), ("without", "false")):
            (folder / "run.toml").write_text(
                text.replace("[model]", f"settings.compacts = {settings}\n\n[model]")
            )
            flags = [
                f"--model.path={DEMO / 'model'}",
                f"--run.directory={folder}",
                f"--run.name={name}",
                f"--run.steps={steps}",
                "--stream.batch=32",
                "--stream.in_flight=48",
                "--learner.mini_batch=16",
                "--rollout.max_tokens=600",
                "--rollout.max_turn_tokens=48",
                f"--engine.context_tokens={context}",
                "--rollout.compact_at=0.5",
                "--eval.data=",
            ]
            train(load_settings(folder / "run.toml", flags))
            rows = [row for row in read_metrics(folder / name / "metrics.jsonl") if row["kind"] == "step"]
            rewards = [round(row["reward_mean"], 3) for row in rows]
            last = rows[-1]
            result[name] = {
                "first": statistics.mean(rewards[:4]),
                "last": statistics.mean(rewards[-4:]),
                "rewards": rewards,
                "segments_mean": last["segments_mean"],
                "truncated_share": last["truncated_share"],
                "sampled_tokens_mean": last["sampled_tokens_mean"],
            }
    return result


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "served", "latency", "compaction", "agents"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--model", default="", help="a folder with weights, in place of the demo's")
    parser.add_argument("--tokens", type=int, default=64, help="of an episode")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--context", type=int, default=128)
    options = parser.parse_args()
    if options.what == "agents":
        return asyncio.run(be_agents())
    if options.what == "speed":
        row = asyncio.run(speed(options.rounds, options.episodes, options.model, options.tokens))
    elif options.what == "served":
        row = asyncio.run(served(options.rounds, options.episodes))
    elif options.what == "latency":
        row = asyncio.run(latency(2000))
    else:
        row = compaction(options.steps, options.context)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
