"""Adapters on a real server: merged or apart they say what the learner's model says, and versions are exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrl.config.settings import EngineSettings
from agentrl.inference.parity import ParityGate
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.client import ServerRefused
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.server import ServerSpec
from tests.vllm.conftest import load
from tests.vllm.test_updates import Learner
from tests.vllm.tiny_models import greedy, make_model, reference_logprobs

pytest.importorskip("peft", reason="adapters are made by peft")
pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [10, 20, 30, 40, 50]
RESIDENT = 3


def make_adapted(seed: int, folder: Path) -> Any:
    """The random model with an adapter of rank 4 that changes what it says."""
    import torch

    from agentrl.config.settings import AdapterSettings
    from agentrl.learner.adapter import add_adapter

    model = make_model(seed=0)
    model.config._name_or_path = str(folder)
    add_adapter(model, AdapterSettings(rank=4), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def apart(spec: ServerSpec, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VLLMPolicy]:
    """A server that applies adapters beside its weights."""
    made = VLLMPolicy(
        replace(spec, adapters=RESIDENT, adapter_rank=4),
        log_folder=tmp_path_factory.mktemp("apart"),
        start_limit_s=600,
        update_limit_s=60,
    )
    await made.start()
    yield made
    await made.close()


def agrees(model: Any, tokens: Sequence[int], logprobs: Sequence[float]) -> bool:
    return list(logprobs) == pytest.approx(reference_logprobs(model, PROMPT, tokens), abs=2e-3)


async def says_what_the_model_says(policy: VLLMPolicy, folder: Path) -> None:
    for seed in (1, 2):
        model = make_adapted(seed, folder)
        version = await load(policy, model)
        said = await policy.generate(
            PROMPT, Sampling(24, temperature=0.0), session=f"m{seed}", start_version=version
        )
        assert list(said.token_ids) == greedy(model, PROMPT, 24)
        assert agrees(model, said.token_ids, said.logprobs)
        assert set(said.policy_versions) == {version}


async def test_a_merged_adapter_says_what_the_learner_s_model_says(fresh: VLLMPolicy, folder: Path):
    await says_what_the_model_says(fresh, folder)


async def test_an_adapter_apart_says_what_the_learner_s_model_says(apart: VLLMPolicy, folder: Path):
    await says_what_the_model_says(apart, folder)


async def test_the_parity_gate_passes_with_an_adapter_apart(apart: VLLMPolicy, folder: Path):
    model = make_adapted(3, folder)
    version = await load(apart, model)
    prompts = [[5 + index, 80 - index, 33] for index in range(6)]
    gate = ParityGate(apart, Learner(model).score, prompts, EngineSettings(), temperature=1.0, tokens=48)
    report = await gate.check(version)
    assert report.tokens == 288
    assert report.mean < 1e-3


async def test_a_message_keeps_the_adapter_it_began_with(apart: VLLMPolicy, folder: Path):
    """More updates than adapters are held at once, in the middle of one message: one version says all of it."""
    models = [make_adapted(seed, folder) for seed in range(10, 10 + RESIDENT + 2)]
    first = await load(apart, models[0])
    long = asyncio.create_task(
        apart.generate(PROMPT, Sampling(700, temperature=0.0), session="long", start_version=first)
    )
    await asyncio.sleep(0.2)
    for model in models[1:]:
        version = await load(apart, model)
        short = await apart.generate(
            PROMPT, Sampling(4, temperature=0.0), session=f"s{version}", start_version=version
        )
        assert agrees(model, short.token_ids, short.logprobs)
        assert set(short.policy_versions) == {version}
    said = await long
    assert set(said.policy_versions) == {first}
    assert agrees(models[0], said.token_ids, said.logprobs)


async def test_a_stale_name_is_refused(apart: VLLMPolicy, folder: Path):
    versions = [await load(apart, make_adapted(20 + index, folder)) for index in range(RESIDENT + 1)]
    client = apart._fleet.live[0].client
    held = {one["id"] for one in (await client.get("/v1/models", limit_s=10))["data"]}
    assert held == {"policy", *(f"1.{version}" for version in versions[1:])}
    body = {
        "token_ids": PROMPT,
        "sampling_params": {"max_tokens": 2},
        "model": f"1.{versions[0]}",
    }
    with pytest.raises(ServerRefused, match="404"):
        await client.post("/inference/v1/generate", body, limit_s=30)
    # Their files are gone with them: those that the server holds are all there is in shared memory.
    assert len(list(apart._transfer._folder.iterdir())) == RESIDENT


async def test_a_server_started_again_holds_the_adapters_again(apart: VLLMPolicy, folder: Path):
    import os
    import signal

    model = make_adapted(30, folder)
    version = await load(apart, model)
    server = apart.servers[0]
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.wait_ended()
    said = await apart.generate(PROMPT, Sampling(8, temperature=0.0), session="after", start_version=version)
    assert agrees(model, said.token_ids, said.logprobs)
    assert set(said.policy_versions) == {version}
