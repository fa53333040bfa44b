"""New weights into a running server: exact versions, no older keys, no lost message, clear refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.settings import EngineSettings
from agentrl.errors import ParityError, WeightSyncError
from agentrl.inference.parity import ParityGate
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.weights.handle import WeightHandle
from tests.vllm.conftest import A, B, load
from tests.vllm.tiny_models import greedy, make_model, reference_logprobs

# The shared server lives in the loop of the session.
pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [10, 20, 30, 40, 50]


async def test_versions_are_exact_over_twenty_updates_in_flight(fresh: VLLMPolicy, folder: Path):
    """Even versions can only say A, odd ones only B: every token tells which weights sampled it."""
    first = await load(fresh, str(folder / ("b" if (fresh.version + 1) % 2 else "a")))
    messages: list[asyncio.Task[Any]] = []

    def send(count: int) -> None:
        for _ in range(count):
            name = f"x{len(messages)}"
            generation = fresh.generate(PROMPT, Sampling(700), session=name, start_version=fresh.version)
            messages.append(asyncio.create_task(generation))

    send(8)
    in_flight = []
    for _ in range(20):
        await asyncio.sleep(0.15)
        running = sum(not message.done() for message in messages)
        send(8 - running)
        in_flight.append(running)
        odd = (fresh.version + 1) % 2
        await load(fresh, str(folder / ("b" if odd else "a")))
    results = await asyncio.gather(*messages)
    assert fresh.version == first + 20
    spans = 0
    for result in results:
        assert len(result.token_ids) == 700
        # Labelling a chunk by the version at its arrival, instead of the server's spans, fails here.
        assert [(A, B)[version % 2] for version in result.policy_versions] == list(result.token_ids)
        assert list(result.policy_versions) == sorted(result.policy_versions)
        spans += len(set(result.policy_versions))
    # The updates did land in the middle of messages.
    assert spans > len(results) + 20
    assert max(in_flight) >= 4


async def test_a_new_episode_is_that_of_a_fresh_server(fresh: VLLMPolicy, folder: Path):
    """After an update, log-probabilities of a new episode are those of the new weights alone."""
    prompt = [(11 * index) % 250 + 5 for index in range(300)]
    sampling = Sampling(16, temperature=0.0)
    await fresh.generate(prompt, sampling, session="old", start_version=fresh.version)
    other = make_model(seed=3)
    version = await load(fresh, other)  # a live module, as the learner hands it over
    new = await fresh.generate(prompt, sampling, session="new", start_version=version)
    assert set(new.policy_versions) == {version}
    assert list(new.token_ids) == greedy(other, prompt, 16)
    expected = reference_logprobs(other, prompt, new.token_ids)
    assert list(new.logprobs) == pytest.approx(expected, abs=2e-3)
    # The old session meets its older keys, and so says something else: the salt is what keeps them apart.
    old = await fresh.generate(prompt, sampling, session="old", start_version=version - 1)
    difference = max(abs(a - b) for a, b in zip(old.logprobs, new.logprobs, strict=True))
    assert difference > 0.05


async def test_messages_waiting_for_their_first_token_start_over(fresh: VLLMPolicy, folder: Path):
    """Many more messages than slots: those that had not begun are sampled by the new weights alone."""
    await load(fresh, str(folder / ("b" if (fresh.version + 1) % 2 else "a")))
    messages = [
        asyncio.create_task(
            fresh.generate(PROMPT, Sampling(60), session=f"w{index}", start_version=fresh.version)
        )
        for index in range(96)
    ]
    await asyncio.sleep(0.1)
    await load(fresh, str(folder / ("b" if (fresh.version + 1) % 2 else "a")))
    for result in await asyncio.gather(*messages):
        assert len(result.token_ids) == 60
        assert [(A, B)[version % 2] for version in result.policy_versions] == list(result.token_ids)


async def test_keys_are_computed_again_when_asked(fresh: VLLMPolicy, folder: Path):
    """With keep_keys off, an old session too is scored by the new weights alone."""
    prompt = [(13 * index) % 250 + 5 for index in range(200)]
    sampling = Sampling(12, temperature=0.0)
    fresh._keep_keys = False
    try:
        await fresh.generate(prompt, sampling, session="k", start_version=fresh.version)
        other = make_model(seed=4)
        version = await load(fresh, other)
        result = await fresh.generate(prompt, sampling, session="k", start_version=version - 1)
    finally:
        fresh._keep_keys = True
    assert list(result.logprobs) == pytest.approx(
        reference_logprobs(other, prompt, result.token_ids), abs=2e-3
    )


@pytest.mark.parametrize("damage", ["missing", "cut off", "another model"])
async def test_weights_that_cannot_be_used_are_refused_before_any_server_is_touched(
    fresh: VLLMPolicy, folder: Path, tmp_path: Path, damage: str, reference: Any
):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    if damage == "cut off":
        path.write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif damage == "another model":
        tensors = {name: value.contiguous() for name, value in make_model(size=100).named_parameters()}
        save_file(tensors, str(path))
    version = fresh.version
    with pytest.raises(WeightSyncError, match=r"model.safetensors"):
        await fresh.load(WeightHandle(version + 1, 1, str(path)))
    assert fresh.version == version
    result = await fresh.generate(PROMPT, Sampling(8, temperature=0.0), session="ok", start_version=version)
    assert list(result.token_ids) == greedy(reference, PROMPT, 8)


class Learner:
    """Scores episodes with a live model, as the learner does."""

    def __init__(self, model: Any) -> None:
        self.model = model

    async def score(self, episodes: Any) -> list[list[Any]]:
        import numpy as np

        result = []
        for episode in episodes:
            segment = episode.segments[0]
            start = bytes(segment.loss_mask).index(1)
            tokens = list(segment.token_ids)
            scores = np.zeros(len(tokens))
            scores[start:] = reference_logprobs(
                self.model, tokens[:start], tokens[start:], episode.temperature
            )
            result.append([scores])
        return result


PROMPTS = [[5 + index, 80 - index, 33] for index in range(6)]


def gate(policy: VLLMPolicy, learner: Learner, temperature: float = 1.0) -> ParityGate:
    return ParityGate(policy, learner.score, PROMPTS, EngineSettings(), temperature=temperature, tokens=48)


async def test_engine_and_learner_agree(fresh: VLLMPolicy, reference: Any):
    for temperature in (1.0, 0.7):
        report = await gate(fresh, Learner(reference), temperature).check(fresh.version)
        assert report.tokens == 288
        assert report.mean < 1e-3
        assert report.share == 0.0


async def test_a_corrupted_weight_is_named(fresh: VLLMPolicy, reference: Any):
    import torch

    damaged = make_model(seed=0)
    with torch.no_grad():
        damaged.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    check = gate(fresh, Learner(reference))
    await check.check(fresh.version)
    version = await load(fresh, damaged)
    with pytest.raises(ParityError, match="probable cause: unlike weights"):
        await check.check(version)


async def test_a_missed_update_is_named(fresh: VLLMPolicy, folder: Path, reference: Any):
    learner = Learner(reference)
    check = gate(fresh, learner)
    await check.check(fresh.version)
    learner.model = make_model(seed=5)
    # The learner moved on, and the server got the weights of before once more.
    version = await load(fresh, str(folder / "model.safetensors"))
    with pytest.raises(ParityError, match="probable cause: stale weights"):
        await check.check(version)
    with pytest.raises(ParityError, match=rf"version \[{version}\] where the learner is at {version + 1}"):
        await check.check(version + 1)


async def test_a_wrong_temperature_is_named(fresh: VLLMPolicy, reference: Any):
    class Colder(Learner):
        async def score(self, episodes: Any) -> list[list[Any]]:
            from dataclasses import replace

            return await super().score([replace(e, temperature=e.temperature * 0.6) for e in episodes])

    with pytest.raises(ParityError, match="probable cause: temperature"):
        await gate(fresh, Colder(reference)).check(fresh.version)
