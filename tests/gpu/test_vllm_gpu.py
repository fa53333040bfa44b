"""vLLM on NVIDIA GPUs: weights by NCCL and by CUDA IPC, sleep and wake.

Needs vLLM in this Python. One GPU runs the tests of CUDA IPC, of the file and of sleeping; NCCL wants two.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.server import ServerSpec
from agentrl.learner.process import LearnerProcesses
from agentrl.training.learner_thread import LearnerThread
from agentrl.weights.handle import WeightHandle
from tests.vllm.tiny_models import make_model, reference_logprobs, save_random

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROMPT = [10, 20, 30, 40, 50]


def devices(transfer: str) -> tuple[int, ...]:
    """The server's GPU: its own for NCCL, the learner's for CUDA IPC and the file."""
    if transfer == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL between learner and server needs two GPUs")
    return (1,) if transfer == "nccl" else (0,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    save_random(root)
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["file", "ipc", "nccl"])
async def policy(request: Any, folder: Path, tmp_path_factory: Any) -> AsyncIterator[VLLMPolicy]:
    spec = ServerSpec(
        str(folder),
        dtype="float32",
        context_tokens=1024,
        slots=16,
        memory_share=0.2,
        args=("--enforce-eager",),
    )
    spec = replace(
        spec, transfer=request.param, gpus=devices(request.param), sleep_mode=request.param == "ipc"
    )
    made = VLLMPolicy(spec, log_folder=tmp_path_factory.mktemp("logs"), start_limit_s=600, update_limit_s=120)
    await made.start()
    yield made
    await made.close()


async def test_updates_from_a_live_module(policy: VLLMPolicy):
    for seed in (3, 4):
        module = make_model(seed=seed).to("cuda:0")
        version = policy.version + 1
        await policy.load(WeightHandle(version, 1, module))
        result = await policy.generate(
            PROMPT, Sampling(16, temperature=0.0), session=f"s{seed}", start_version=version
        )
        assert set(result.policy_versions) == {version}
        expected = reference_logprobs(module.cpu(), PROMPT, result.token_ids)
        assert list(result.logprobs) == pytest.approx(expected, abs=5e-2)


async def test_updates_from_a_learner_in_processes(policy: VLLMPolicy, tmp_path: Path):
    transfer = policy.servers[0].spec.transfer
    module = save_random(tmp_path / "other", seed=7)
    settings = ModelSettings(path=str(tmp_path / "other"), device="cuda:0")
    learner = LearnerThread(
        LearnerProcesses(settings, LearnerSettings(place="process")), live=transfer != "file"
    )
    try:
        version = policy.version + 1
        await policy.load(await learner.handle(version, 1))
        result = await policy.generate(
            PROMPT, Sampling(16, temperature=0.0), session="p", start_version=version
        )
    finally:
        await learner.close()
    assert set(result.policy_versions) == {version}
    assert list(result.logprobs) == pytest.approx(
        reference_logprobs(module, PROMPT, result.token_ids), abs=5e-2
    )


async def test_sleep_and_wake(policy: VLLMPolicy):
    if not policy.servers[0].spec.sleep_mode:
        pytest.skip("this server cannot sleep")
    sampling = Sampling(8, temperature=0.0)
    before = await policy.generate(PROMPT, sampling, session="before", start_version=policy.version)
    free, _ = torch.cuda.mem_get_info(0)
    await policy.sleep()
    asleep, _ = torch.cuda.mem_get_info(0)
    assert asleep > free
    await policy.wake()
    after = await policy.generate(PROMPT, sampling, session="after", start_version=policy.version)
    assert list(after.token_ids) == list(before.token_ids)
