"""What the framework adds to a vLLM server: rollouts against a bare client, updates in flight against idle.

`python -m benchmarks.generation --model models/smollm2 --python .venv-vllm/bin/python` starts one server and
prints a JSON line. Both arms of a comparison run one after the other, many times, in one process; what is
reported is the ratio of the medians. The engine of one's own against `model.generate` is in
`benchmarks.generation_transformers`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from agentrl.config.settings import RolloutSettings
from agentrl.inference.policy import FinishReason, Sampling
from agentrl.inference.vllm.engine import VLLMPolicy, request_body
from agentrl.inference.vllm.server import ServerSpec
from agentrl.renderers.base import ParsedMessage
from agentrl.rollout.token_completer import Decoding, Dispatch, run_episode
from agentrl.weights.handle import WeightHandle
from agentrl_envs import Env, Message, ToolCall, ToolResult, ToolSpec, tool

TURNS = 3
TURN_TOKENS = 32
PROMPT_TOKENS = 96
TOOL_TOKENS = 16


class FreeTool(Env):
    """A tool that costs nothing, and a reward of nothing."""

    max_turns = TURNS

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Only a number; the renderer makes tokens of it."""
        return str(row["number"])

    @tool
    async def python(self, code: str) -> str:
        "Do nothing."
        return ""

    async def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """Always 0."""
        return 0.0


class FixedRenderer:
    """Every message calls the tool; prompts and tool output have fixed lengths."""

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """A prompt whose first third is shared, as instructions are."""
        number = int(messages[-1]["content"])
        shared = [100 + index for index in range(PROMPT_TOKENS // 3)]
        own = range(PROMPT_TOKENS - len(shared))
        return shared + [(7919 * number + 31 * index) % 40000 + 200 for index in own]

    def parse(self, token_ids: Sequence[int], tools: Sequence[Any] = ()) -> ParsedMessage:
        """A call of the tool, whatever was said."""
        call = ToolCall("call", "python", {"code": ""})
        return ParsedMessage("", (call,), {"role": "assistant", "content": ""})

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Tool output of a fixed length."""
        return [300 + index for index in range(TOOL_TOKENS)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Nothing is read here."""
        return ""


async def rollouts(
    policy: VLLMPolicy, count: int, round_: int, turn_tokens: int
) -> tuple[float, list[list[list[int]]]]:
    """Tokens per second of our rollouts, and the prompts they sent: per episode, per turn."""
    # A turn ends by its budget here, which would end the episode: the message is split into turns instead.
    settings = RolloutSettings(max_tokens=TURNS * turn_tokens, max_turns=TURNS)
    prompts: list[list[list[int]]] = [[] for _ in range(count)]
    sampled = 0

    class Counting:
        """The policy, with the length of every message fixed."""

        version, context_tokens = policy.version, policy.context_tokens

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, **options: Any) -> Any:
            nonlocal sampled
            number = int(options["session"].rpartition("-")[2])
            prompts[number].append(list(prompt_ids))
            result = await policy.generate(
                prompt_ids, Sampling(turn_tokens, temperature=sampling.temperature), **options
            )
            sampled += len(result.token_ids)
            # As if a stop token had ended it.
            return type(result)(result.token_ids, result.logprobs, result.policy_versions, FinishReason.STOP)

        async def release(self, session: str) -> None:
            await policy.release(session)

    engine: Any = Counting()
    started = time.perf_counter()
    episodes = await asyncio.gather(
        *(
            run_episode(
                FreeTool,
                engine,
                FixedRenderer(),
                row={"number": number + 1000 * round_},
                dispatch=Dispatch(f"r{round_}-{number}", number, "p", policy.version),
                settings=settings,
                decoding=Decoding(temperature=0.0),
            )
            for number in range(count)
        )
    )
    seconds = time.perf_counter() - started
    failures = [episode.failure for episode in episodes if episode.failure is not None]
    if failures:
        raise RuntimeError(f"{len(failures)} episodes failed: {failures[0]}")
    return sampled / seconds, prompts


async def bare(policy: VLLMPolicy, prompts: list[list[list[int]]], salt: str, turn_tokens: int) -> float:
    """Tokens per second of a client that sends the same prompts in the same order, and does nothing else."""
    url, key = policy.endpoint()
    sampled = 0

    async def episode(session: aiohttp.ClientSession, turns: list[list[int]]) -> None:
        nonlocal sampled
        for prompt in turns:
            body = request_body(prompt, Sampling(turn_tokens, temperature=0.0), seed=None, salt=salt)
            body["stream"] = False
            async with session.post("/inference/v1/generate", json=body) as response:
                answer = await response.json()
            sampled += len(answer["choices"][0]["token_ids"])

    headers = {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    started = time.perf_counter()
    async with aiohttp.ClientSession(
        url.removesuffix("/v1"), headers=headers, connector=connector
    ) as session:
        await asyncio.gather(*(episode(session, turns) for turns in prompts))
    return sampled / (time.perf_counter() - started)


async def compare_rollouts(
    policy: VLLMPolicy, repeats: int, in_flight: int, turn_tokens: int
) -> dict[str, Any]:
    """Our rollouts and the bare client in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    await rollouts(policy, in_flight, 0, turn_tokens)
    for repeat in range(1, repeats + 1):
        # Prompts of their own each time, and a salt of its own for the bare client: nobody meets the
        # other's keys.
        speed, prompts = await rollouts(policy, in_flight, repeat, turn_tokens)
        ours.append(speed)
        theirs.append(await bare(policy, prompts, f"bare-{repeat}", turn_tokens))
    return {
        "rollouts_tokens_per_s": [round(value, 1) for value in ours],
        "bare_tokens_per_s": [round(value, 1) for value in theirs],
        "rollouts_over_bare": round(statistics.median(ours) / statistics.median(theirs), 3),
    }


async def bare_update(policy: VLLMPolicy, path: str) -> float:
    """Seconds of the update alone: the routes, one after the other, on an idle server."""
    client = policy._fleet.replicas[0].client
    started = time.perf_counter()
    await client.post("/pause", query={"mode": "keep", "clear_cache": "false"}, limit_s=60)
    await client.post("/start_weight_update", limit_s=60)
    await client.post("/update_weights", {"update_info": {"path": path}}, limit_s=60)
    await client.post("/finish_weight_update", {"weight_version": f"0.{policy.version}"}, limit_s=60)
    await client.post("/resume", limit_s=60)
    return time.perf_counter() - started


async def compare_updates(policy: VLLMPolicy, repeats: int, path: str) -> dict[str, Any]:
    """Updates of an idle server and with 8 messages in flight, in turns."""
    idle: list[float] = []
    busy: list[float] = []
    lost = 0
    for repeat in range(repeats):
        idle.append(await bare_update(policy, path))
        version = policy.version
        messages = [
            asyncio.create_task(
                policy.generate([200 + i] * 32, Sampling(64), session=f"u{repeat}-{i}", start_version=version)
            )
            for i in range(8)
        ]
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        await policy.load(WeightHandle(policy.version + 1, 0, path))
        busy.append(time.perf_counter() - started)
        for message in await asyncio.gather(*messages, return_exceptions=True):
            lost += isinstance(message, BaseException) or len(message.token_ids) != 64
    return {
        "update_idle_s": [round(value, 3) for value in idle],
        "update_in_flight_s": [round(value, 3) for value in busy],
        "update_extra_s": round(statistics.median(busy) - statistics.median(idle), 3),
        "requests_lost": lost,
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start a server and run both comparisons."""
    spec = ServerSpec(
        options.model,
        python=options.python,
        dtype="bfloat16",
        context_tokens=1024,
        slots=64,
        args=("--enforce-eager",),
    )
    with tempfile.TemporaryDirectory() as logs:
        policy = VLLMPolicy(
            spec,
            log_folder=Path(logs),
            urls=[options.url] if options.url else [],
            key=os.environ.get("VLLM_API_KEY", ""),
            start_limit_s=400,
        )
        await policy.start()
        try:
            result = await compare_updates(policy, options.repeats, f"{spec.model}/model.safetensors")
            print(json.dumps(result), file=sys.stderr, flush=True)
            result |= await compare_rollouts(policy, options.repeats, options.in_flight, options.turn_tokens)
        finally:
            await policy.close()
    return {"benchmark": "generation", "in_flight": options.in_flight, **result}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--url", default="", help="a running server instead (its key in VLLM_API_KEY)")
    parser.add_argument("--turn-tokens", type=int, default=TURN_TOKENS)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
