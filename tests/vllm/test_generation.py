"""A real vLLM server against transformers: tokens, log-probabilities, ends of messages, caches, aborts."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from agentrl.errors import ContextOverflow, PolicyUnavailable
from agentrl.inference.policy import FinishReason, Policy, Sampling
from agentrl.inference.vllm.client import ServerRefused, VLLMClient
from agentrl.inference.vllm.engine import VLLMPolicy
from tests.vllm.conftest import A, B, load
from tests.vllm.tiny_models import greedy, reference_logprobs

# The shared server lives in the loop of the session.
pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [10, 20, 30, 40, 50]


async def metric(policy: VLLMPolicy, name: str) -> float:
    """One of the server's own counters."""
    url, key = policy.endpoint()
    request = urllib.request.Request(
        url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {key}"}
    )

    def read() -> str:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode()

    text = await asyncio.to_thread(read)
    found = re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", text, re.M)
    assert found, f"the server has no counter {name}"
    return sum(map(float, found))


async def test_it_is_a_policy(policy: VLLMPolicy):
    assert isinstance(policy, Policy)
    assert policy.context_tokens == 1024


async def test_temperature_zero_equals_transformers(fresh: VLLMPolicy, reference: Any):
    sampling = Sampling(24, temperature=0.0)
    result = await fresh.generate(PROMPT, sampling, session="t0", start_version=fresh.version)
    assert list(result.token_ids) == greedy(reference, PROMPT, 24)
    assert result.finish_reason is FinishReason.LENGTH
    assert set(result.policy_versions) == {fresh.version}
    # Greedy log-probabilities are those of temperature 1.
    expected = reference_logprobs(reference, PROMPT, result.token_ids)
    assert list(result.logprobs) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.8, 10, 1.0), (1.3, 0, 0.7)]
)
async def test_logprobs_are_those_of_the_distribution_sampled_from(
    fresh: VLLMPolicy, reference: Any, temperature: float, top_k: int, top_p: float
):
    # With `--logprobs-mode raw_logprobs`, vLLM's default, every case but the first fails.
    sampling = Sampling(40, temperature=temperature, top_k=top_k, top_p=top_p)
    result = await fresh.generate(PROMPT, sampling, session="lp", start_version=fresh.version)
    expected = reference_logprobs(reference, PROMPT, result.token_ids, temperature, top_k=top_k, top_p=top_p)
    assert list(result.logprobs) == pytest.approx(expected, abs=5e-3)


async def test_the_likeliest_tokens_are_those_of_the_distribution_sampled_from(
    fresh: VLLMPolicy, reference: Any
):
    sampling = Sampling(40, temperature=0.7, top_logprobs=30)  # more than a server gives by default
    result = await fresh.generate(PROMPT, sampling, session="top", start_version=fresh.version)
    ids = torch.tensor([[*PROMPT, *result.token_ids]])
    with torch.no_grad():
        wanted = torch.log_softmax(reference(ids).logits[0, len(PROMPT) - 1 : -1].float() / 0.7, -1)
    found = torch.tensor(list(result.top_logprobs)).view(40, 30)
    torch.testing.assert_close(found, wanted.topk(30).values, atol=5e-3, rtol=0)
    at = torch.tensor(list(result.top_ids)).view(40, 30)
    torch.testing.assert_close(found, wanted.gather(1, at), atol=5e-3, rtol=0)


async def test_many_long_seeded_prompts_at_once(fresh: VLLMPolicy):
    # Read in pieces, the prompts killed a server on the CPU: its generators cannot go back by a draw.
    async def one(number: int) -> list[int]:
        prompt = [10 + (number * 31 + at * 7) % 200 for at in range(900)]
        sampling = Sampling(4, temperature=1.0, seed=number)
        result = await fresh.generate(prompt, sampling, session=f"long{number}", start_version=fresh.version)
        return list(result.token_ids)

    async with asyncio.timeout(300):
        results = await asyncio.gather(*(one(number) for number in range(16)))
    assert all(len(tokens) == 4 for tokens in results)
    assert fresh.statistics()["restarts"] == 0


async def test_a_stop_token_is_kept(fresh: VLLMPolicy, reference: Any):
    tokens = greedy(reference, PROMPT, 24)
    sampling = Sampling(24, temperature=0.0, stop_token_ids=(tokens[6],))
    result = await fresh.generate(PROMPT, sampling, session="st", start_version=fresh.version)
    assert list(result.token_ids) == tokens[: tokens.index(tokens[6]) + 1]
    assert result.finish_reason is FinishReason.STOP


async def test_a_stop_text_keeps_the_tokens_that_complete_it(fresh: VLLMPolicy, reference: Any, folder: Any):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # A prompt whose continuation is printable, so that the text of two neighbours is known.
    for first in range(60, 90):
        tokens = greedy(reference, [first], 24)
        text = [tokenizer.decode([token]) for token in tokens]
        at = next((i for i in range(2, 20) if text[i].isascii() and text[i + 1].isascii()), None)
        if at is not None and "".join(text[: at + 1]).find(text[at] + text[at + 1]) < 0:
            break
    else:
        pytest.skip("this random model says nothing printable")
    sampling = Sampling(24, temperature=0.0, stop=(text[at] + text[at + 1],))
    result = await fresh.generate([first], sampling, session="sx", start_version=fresh.version)
    assert list(result.token_ids) == tokens[: at + 2]
    assert result.finish_reason is FinishReason.STOP


async def test_seeds(fresh: VLLMPolicy):
    async def run(seed: int) -> list[int]:
        sampling = Sampling(20, seed=seed)
        result = await fresh.generate(PROMPT, sampling, session=f"seed{seed}", start_version=fresh.version)
        return list(result.token_ids)

    first, again, other = await asyncio.gather(run(1), run(1), run(2))
    assert first == again
    assert first != other


async def test_out_of_context(fresh: VLLMPolicy):
    with pytest.raises(ContextOverflow) as caught:
        await fresh.generate([5] * 1024, Sampling(5), session="oc", start_version=0)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (1024, 1024)
    # What room there is is used.
    result = await fresh.generate([5] * 1020, Sampling(50), session="oc", start_version=0)
    assert len(result.token_ids) == 4
    assert result.finish_reason is FinishReason.LENGTH


async def test_a_session_meets_its_own_keys_and_nobody_elses(fresh: VLLMPolicy, folder: Any):
    prompt = [(7 * index) % 250 + 5 for index in range(400)]

    async def hits(session: str) -> float:
        before = await metric(fresh, "prefix_cache_hits_total")
        await fresh.generate(prompt, Sampling(2), session=session, start_version=fresh.version)
        return await metric(fresh, "prefix_cache_hits_total") - before

    assert await hits("s1") == 0
    assert await hits("s1") >= 256
    # Another session of the same version shares the prompt's keys.
    assert await hits("s2") >= 256
    from tests.vllm.conftest import load

    await load(fresh, str(folder / "model.safetensors"))
    # The session of before goes on with its keys; a new one must not meet them. Without the salt of the
    # version this is 256 or more.
    assert await hits("s1") >= 256
    assert await hits("s3") == 0


async def test_cancelling_aborts_the_request(fresh: VLLMPolicy):
    task = asyncio.create_task(fresh.generate(PROMPT, Sampling(1000), session="ca", start_version=0))
    for _ in range(100):
        if await metric(fresh, "num_requests_running") >= 1:
            break
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fresh.statistics()["running"] == 0
    for _ in range(100):
        if await metric(fresh, "num_requests_running") == 0:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the server went on sampling a message nobody waits for")


async def test_many_messages_at_once(fresh: VLLMPolicy):
    before = fresh.statistics()
    results = await asyncio.gather(
        *(
            fresh.generate([index + 5, 9], Sampling(5 + index), session=f"m{index}", start_version=0)
            for index in range(48)
        )
    )
    assert [len(result.token_ids) for result in results] == [5 + index for index in range(48)]
    after = fresh.statistics()
    assert after["sampled_tokens"] - before["sampled_tokens"] == sum(5 + index for index in range(48))
    assert after["requests"] - before["requests"] == 48


@pytest.mark.parametrize(
    "path", ["/pause", "/collective_rpc", "/update_weights", "/v1/completions", "/metrics"]
)
async def test_every_route_wants_the_key(policy: VLLMPolicy, path: str):
    url = policy.endpoint()[0].removesuffix("/v1")
    assert url.startswith("http://127.0.0.1:")
    for headers in ({}, {"Authorization": "Bearer guess"}):
        request = urllib.request.Request(url + path, data=b"{}", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(urllib.request.urlopen, request, timeout=10)
        assert caught.value.code == 401
        caught.value.close()


async def test_attaching_to_a_running_server(
    fresh: VLLMPolicy, spec: Any, tmp_path: Any, reference: Any, folder: Path
):
    url, key = fresh.endpoint()
    other = VLLMPolicy(spec, urls=[url.removesuffix("/v1")], key=key, log_folder=tmp_path)
    try:
        await other.start()
        # It held weights of a version this policy did not put there: it was given the model's again.
        assert other.version == 0
        result = await other.generate(PROMPT, Sampling(8, temperature=0.0), session="at", start_version=0)
        assert list(result.token_ids) == greedy(reference, PROMPT, 8)
        assert set(result.policy_versions) == {0}
    finally:
        await other.close()
    wrong = VLLMPolicy(spec, urls=["http://127.0.0.1:9"], key="x", log_folder=tmp_path)
    with pytest.raises(PolicyUnavailable, match="does not answer"):
        await wrong.start()
    # Give the server back to its owner under its own label.
    await load(fresh, str(folder / "model.safetensors"))
    guess = VLLMClient(url.removesuffix("/v1"), "guess", name="server")
    with pytest.raises(ServerRefused, match="refuses the key"):
        await guess.model()
    await guess.close()


async def test_each_who_attaches_gets_its_own_weights(
    fresh: VLLMPolicy, spec: Any, tmp_path: Any, folder: Path
):
    # Fails when the label of version 0 does not say whose: the second would sample from the weights, and
    # meet the keys and values, of the first.
    url, key = fresh.endpoint()
    url = url.removesuffix("/v1")

    async def says(model: str) -> set[int]:
        one = VLLMPolicy(replace(spec, model=model), urls=[url], key=key, log_folder=tmp_path)
        try:
            await one.start()
            result = await one.generate(PROMPT, Sampling(8, temperature=0.0), session="at", start_version=0)
            return set(result.token_ids)
        finally:
            await one.close()

    try:
        assert await says(str(folder / "a")) == {A}
        assert await says(str(folder / "b")) == {B}
        client = VLLMClient(url, key, name="server")
        # Its last user was killed in the middle of an update: paused, and under a label that proves nothing.
        await client.post("/pause", query={"mode": "keep"}, limit_s=30)
        assert await says(str(folder / "b")) == {B}
        assert not await client.paused()
        await client.close()
        with pytest.raises(PolicyUnavailable, match="start it again with that model"):
            await says("somebody/something")
    finally:
        await load(fresh, str(folder / "model.safetensors"))
