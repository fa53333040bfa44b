"""Servers that die in the middle, hang, or never start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import PolicyUnavailable, WeightSyncError
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.fleet import Replica
from agentrl.inference.vllm.server import ServerSpec
from agentrl.weights.handle import WeightHandle
from tests.vllm.conftest import A, load
from tests.vllm.tiny_models import greedy

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [10, 20, 30, 40, 50]


async def failure(spec: ServerSpec, folder: Path, limit_s: float = 280) -> str:
    """The error of a policy that cannot start."""
    policy = VLLMPolicy(spec, log_folder=folder, start_limit_s=limit_s)
    with pytest.raises(PolicyUnavailable) as caught:
        await policy.start()
    assert all(server.pid is None for server in policy.servers)
    return str(caught.value)


async def test_a_port_in_use(spec: ServerSpec, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = await failure(replace(spec, port=port), tmp_path)
    assert f"127.0.0.1:{port}: the port is in use" in text


async def test_a_python_that_does_not_exist(spec: ServerSpec, tmp_path: Path):
    assert "engine.python" in await failure(replace(spec, python="/nowhere/python"), tmp_path)


async def test_servers_that_cannot_start_say_why(spec: ServerSpec, tmp_path: Path):
    """Wrong model name and a context larger than the model's, both at once: each costs an import of vLLM."""
    wrong, large = await asyncio.gather(
        failure(replace(spec, model=str(tmp_path / "nothing-here")), tmp_path / "wrong"),
        failure(replace(spec, context_tokens=1_000_000), tmp_path / "large"),
    )
    assert "likely cause: there is no such model: check `model.path`" in wrong
    assert "likely cause: `engine.context_tokens` exceeds the model's context" in large
    # The end of the log is there to read.
    assert "vllm_0.log" in large
    assert len(large.splitlines()) > 5


async def test_a_server_that_never_becomes_healthy(spec: ServerSpec, tmp_path: Path):
    text = await failure(spec, tmp_path, limit_s=2.0)
    assert "was not healthy after 2 s (`engine.start_limit_s`)" in text


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (the limit is the test's own)
        await asyncio.sleep(0.02)


def tokens_in_flight(replica: Replica) -> list[int]:
    """Tokens received so far, per message in flight."""
    return [len(message.received.token_ids) for message in replica.messages]


async def test_kill_9_in_mid_episode(pair: VLLMPolicy, folder: Path, reference: Any):
    version = await load(pair, str(folder / "a"))
    first = pair._fleet.replicas[0]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                pair.generate(PROMPT, Sampling(900), session=f"k{index}", start_version=version)
            )
            for index in range(12)
        ]
        # Least loaded: both servers have half of them. The other server's may be slower, or done by now.
        await until(lambda: len(first.messages) == 6 and min(tokens_in_flight(first)) >= 40)
        victim = pair.servers[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
    results = [task.result() for task in tasks]
    for result in results:
        assert list(result.token_ids) == [A] * 900
        assert set(result.policy_versions) == {version}
    counted = pair.statistics()
    # Six messages lost their server and went on from their tokens; none became a failure.
    assert counted["resumed_messages"] == 6
    # Each of the six was sent again with its prompt and at least 40 tokens: a message that starts over
    # from its prompt sends 5.
    assert counted["prefilled_tokens"] >= 12 * 5 + 6 * 45
    # An update reaches the server that is left while the other one starts again.
    version = await load(pair, str(folder / "model.safetensors"))
    await until(lambda: pair.statistics()["replicas_live"] == 2)
    # The restarted server got the weights of now, not those it was started with.
    assert await pair._fleet.replicas[0].client.label() == f"1.{version}"
    sessions = [f"after{index}" for index in range(6)]
    after = await asyncio.gather(
        *(
            pair.generate(PROMPT, Sampling(12, temperature=0.0), session=s, start_version=version)
            for s in sessions
        )
    )
    assert {id(pair._sessions[name].replica) for name in sessions} == {
        id(replica) for replica in pair._fleet.replicas
    }
    for result in after:
        assert list(result.token_ids) == greedy(reference, PROMPT, 12)
        assert set(result.policy_versions) == {version}


async def test_servers_that_hang_in_an_update_are_named(pair: VLLMPolicy, folder: Path):
    pair._update_limit_s, version = 2.0, pair.version
    for server in pair.servers:
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGSTOP)
    with pytest.raises(WeightSyncError) as caught:
        await pair.load(WeightHandle(version + 1, 1, str(folder / "a")))
    text = str(caught.value)
    assert "vLLM server 0" in text
    assert "vLLM server 1" in text
    assert "did not answer within its limit while waiting for /pause" in text
    assert pair.version == version
