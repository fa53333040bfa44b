"""The embedded engine on an NVIDIA GPU."""

import asyncio
import random

import pytest

from agentrl.inference.policy import Sampling
from agentrl.weights.handle import WeightHandle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agentrl.inference.embedded.engine import TransformersPolicy
from benchmarks.tiny_config import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.timeout(300),
]
VOCABULARY = 1000


def make_model(seed=0):
    torch.manual_seed(seed)
    config = tiny_config(
        vocabulary=VOCABULARY, hidden=128, inner=256, layers=3, heads=8, key_heads=2, head=32
    )
    model = transformers.Qwen3ForCausalLM(config).eval().cuda()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


async def play_all(model, order, **options):
    policy = TransformersPolicy(model, slots=8, **options)
    await policy.start()
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60))] for _ in range(16)]

    async def play(i):
        sampling = Sampling(max_new_tokens=10 + 5 * i, seed=i)
        said = await policy.generate(prompts[i], sampling, session=str(i), start_version=0)
        await policy.release(str(i))
        return i, (prompts[i], list(said.token_ids), list(said.logprobs))

    try:
        return dict(await asyncio.gather(*(play(i) for i in order)))
    finally:
        await policy.close()


def worst_difference(model, played):
    worst = 0.0
    for prompt, tokens, logprobs in played.values():
        ids = torch.tensor([[*prompt, *tokens]], device="cuda")
        with torch.no_grad():
            wanted = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1].float(), -1)
        wanted = wanted.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        worst = max(worst, (wanted - torch.tensor(logprobs)).abs().max().item())
    return worst


async def test_logprobs_in_float32_are_those_of_a_full_forward_pass():
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make_model()
    assert worst_difference(model, await play_all(model, range(16))) < 1e-4


async def test_bfloat16_stays_close_to_a_full_pass_in_bfloat16():
    model = make_model()
    played = await play_all(model, range(16), dtype="bfloat16")
    assert worst_difference(model.to(torch.bfloat16), played) < 1.0


async def test_deterministic_results_do_not_depend_on_the_batch_bit_for_bit():
    model = make_model()
    one = await play_all(model, range(16), deterministic=True)
    assert one == await play_all(model, reversed(range(16)), deterministic=True)


async def test_weights_come_from_a_live_model_on_the_gpu():
    old, new = make_model(0), make_model(1)
    policy = TransformersPolicy(old, slots=2)
    await policy.start()
    try:
        await policy.load(WeightHandle(1, 0, new))
        said = await policy.generate([1, 2, 3], Sampling(max_new_tokens=20), session="a", start_version=1)
    finally:
        await policy.close()
    played = {0: ([1, 2, 3], list(said.token_ids), list(said.logprobs))}
    assert worst_difference(new, played) < 1e-4
    assert set(said.policy_versions) == {1}
