"""What the gateway costs: tokens a second beside the direct path, latency a request, and what compaction lets a run learn.

    python -m benchmarks.gateway speed          the embedded engine, 64 conversations in flight, both ways in turn
    python -m benchmarks.gateway served         an engine elsewhere, 64 conversations in flight, both ways in turn
    python -m benchmarks.gateway latency        an engine that answers at once, one conversation
    python -m benchmarks.gateway compaction     a task of three contexts, with and without

Each prints a JSON line. The client of the gateway runs in the same process, so its time is counted against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

import agentrl
from agentrl.config.loading import load_settings
from agentrl.config.settings import RolloutSettings
from agentrl.inference.policy import Policy
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.base import Renderer
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, tool

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

    def prompt(self, row: Any) -> str:
        """The problem."""
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        """Run Python."""
        return "5561"

    async def reward(self, row: Any, answer: str | None) -> bool:
        """Nothing is learned here."""
        return True


class Through(Env):
    """The same agent as a client of the gateway."""

    max_turns = 8

    async def play(self, row: Any) -> str | None:
        """A loop over requests."""
        messages: list[Any] = [{"role": "user", "content": row["problem"]}]
        async with self.speaker.serve() as access:
            head = {"Authorization": f"Bearer {access.key}"}
            async with aiohttp.ClientSession(access.url, headers=head) as http:
                for _ in range(self.max_turns):
                    body = {"model": "m", "messages": messages, "tools": [TOOL]}
                    began = time.perf_counter()
                    async with http.post("/v1/chat/completions", json=body) as answer:
                        if answer.status != 200:
                            return None
                        said = (await answer.json())["choices"][0]["message"]
                    LATENCIES.append(time.perf_counter() - began)
                    messages.append(said)
                    if not said.get("tool_calls"):
                        return said["content"]
                    messages += [
                        {"role": "tool", "tool_call_id": c["id"], "content": "5561"}
                        for c in said["tool_calls"]
                    ]
        return None

    async def reward(self, row: Any, answer: str | None) -> bool:
        """Nothing is learned here."""
        return True


LATENCIES: list[float] = []


async def episodes(
    env: type[Env], policy: Policy, renderer: Renderer, count: int, at_once: int
) -> tuple[int, float, float]:
    """Sampled tokens, seconds and CPU seconds of `count` episodes."""
    slots = asyncio.Semaphore(at_once)
    began, cpu = time.perf_counter(), time.process_time()

    async def one(number: int) -> int:
        async with slots:
            episode = await run_episode(
                env,
                policy,
                renderer,
                row={"problem": f"{number % 90 + 10}*{number % 80 + 11}+17"},
                dispatch=Dispatch(f"e{number}", number, "p", 0, seed=number),
                settings=RolloutSettings(max_tokens=64, truncated="mask"),
            )
        assert episode.failure is None, episode.failure
        return episode.num_sampled

    tokens = sum(await asyncio.gather(*(one(number) for number in range(count))))
    return tokens, time.perf_counter() - began, time.process_time() - cpu


async def speed(rounds: int, count: int) -> dict[str, Any]:
    """Both ways in turn, with the demo's model in the embedded engine."""
    from agentrl.inference.embedded.engine import TransformersPolicy
    from agentrl.learner.learner import Learner
    from agentrl.weights.model_files import load_tokenizer

    settings = load_settings(DEMO / "demo.toml", [f"--model.path={DEMO / 'model'}"])
    learner = Learner(settings.model, settings.learner, settings.loss, seed=0)
    tokenizer = load_tokenizer(settings.model.path)
    policy = TransformersPolicy(learner.model, tokenizer, slots=64, context_tokens=512)
    await policy.start()
    renderer = make_renderer(tokenizer, "code")
    ways: dict[str, list[tuple[float, float]]] = {"direct": [], "gateway": []}
    for _ in range(rounds):
        for name, env in (("direct", Direct), ("gateway", Through)):
            tokens, seconds, cpu = await episodes(env, policy, renderer, count, 64)
            ways[name].append((tokens / seconds, tokens / cpu))
    await policy.close()
    rate = {name: statistics.median(a for a, _ in values) for name, values in ways.items()}
    of_cpu = {name: statistics.median(b for _, b in values) for name, values in ways.items()}
    return {
        "what": "speed",
        "in_flight": 64,
        "tokens_per_s": rate,
        "tokens_per_cpu_s": of_cpu,
        "ratio": rate["gateway"] / rate["direct"],
        "ratio_cpu": of_cpu["gateway"] / of_cpu["direct"],
        "rounds": ways,
    }


async def served(rounds: int, count: int) -> dict[str, Any]:
    """Both ways in turn, with an engine elsewhere that takes 20 ms a token, as a server on a GPU does."""

    def script(request: Any) -> str:
        return "<code>\n1\n</code>" if request.turn % 3 < 2 else "5561<|end|>"

    policy = ScriptedPolicy(script, tokenizer=ByteTokenizer(), seconds=lambda _, tokens: 0.02 * tokens)
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    ways: dict[str, list[float]] = {"direct": [], "gateway": []}
    for _ in range(rounds):
        for name, env in (("direct", Direct), ("gateway", Through)):
            tokens, seconds, _ = await episodes(env, policy, renderer, count, 64)
            ways[name].append(tokens / seconds)
    rate = {name: statistics.median(values) for name, values in ways.items()}
    return {
        "what": "served",
        "in_flight": 64,
        "tokens_per_s": rate,
        "ratio": rate["gateway"] / rate["direct"],
    }


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
    await episodes(Through, policy, renderer, requests // 8, 1)
    added = [a - b for a, b in zip(LATENCIES, directly, strict=True)]
    cut = statistics.quantiles(added, n=100)
    cpu: dict[str, list[float]] = {"direct": [], "gateway": []}
    for _ in range(5):
        for name, env in (("direct", Direct), ("gateway", Through)):
            asked = len(directly)
            _, _, seconds = await episodes(env, policy, renderer, requests // 40, 1)
            cpu[name].append(1e3 * seconds / (len(directly) - asked))
    medians = {name: statistics.median(values) for name, values in cpu.items()}
    return {
        "what": "latency",
        "requests": len(added),
        "added_ms": {p: 1e3 * cut[p - 1] for p in (10, 50, 90, 99)},
        # Of client and server together, and of what an episode costs by itself.
        "cpu_ms_a_request": medians,
        "added_cpu_ms": medians["gateway"] - medians["direct"],
    }


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
    parser.add_argument("what", choices=("speed", "served", "latency", "compaction"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--context", type=int, default=128)
    options = parser.parse_args()
    if options.what == "speed":
        row = asyncio.run(speed(options.rounds, options.episodes))
    elif options.what == "served":
        row = asyncio.run(served(options.rounds, options.episodes))
    elif options.what == "latency":
        row = asyncio.run(latency(2000))
    else:
        row = compaction(options.steps, options.context)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
