import asyncio
import math

import pytest

from agentrl.errors import ContextOverflow, PolicyUnavailable
from agentrl.inference.policy import FinishReason, Policy, Sampling
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.weights.handle import WeightHandle


async def speak(policy, text="hi", session="s", **sampling):
    sampling.setdefault("max_new_tokens", 100)
    return await policy.generate(list(text.encode()), Sampling(**sampling), session=session, start_version=0)


def said(generation):
    return bytes(list(generation.token_ids))


async def test_replies_are_given_in_order():
    policy = ScriptedPolicy(["one", "two"])
    assert isinstance(policy, Policy)
    await policy.start()
    replies = [said(await speak(policy)) for _ in range(3)]
    assert replies == [b"one", b"two", b"one"]
    assert policy.statistics()["sampled_tokens"] == 9


async def test_a_script_sees_prompt_session_turn_and_version():
    policy = ScriptedPolicy(lambda r: f"{r.prompt}/{r.session}/{r.turn}/{r.version}", version=3)
    await speak(policy, "p", "a")
    assert said(await speak(policy, "q", "a")) == b"q/a/1/3"
    await policy.release("a")
    assert said(await speak(policy, "q", "a")) == b"q/a/0/3"


async def test_log_probabilities_of_a_distribution_are_exact_token_by_token():
    # "ax" 1/2, "ay" 1/4, "b" 1/4: a has 3/4; after it x has 2/3 and y 1/3.
    replies = {"ax": 0.5, "ay": 0.25, "b": 0.25}
    wanted = {"ax": [3 / 4, 2 / 3], "ay": [3 / 4, 1 / 3], "b": [1 / 4]}
    policy = ScriptedPolicy(lambda r: replies)
    seen = {}
    for seed in range(60):
        generation = await speak(policy, seed=seed)
        seen[said(generation).decode()] = [round(math.exp(x), 6) for x in generation.logprobs]
    assert seen == {text: [round(p, 6) for p in shares] for text, shares in wanted.items()}
    again = [(await speak(policy, seed=s)).token_ids for s in range(10)]
    assert again == [(await speak(policy, seed=s)).token_ids for s in range(10)]


async def test_stops_and_limits():
    policy = ScriptedPolicy(["<code>1</code> more"], context_tokens=20)
    stopped = await speak(policy, "x", stop=("</code>",))
    assert (said(stopped), stopped.finish_reason) == (b"<code>1</code>", FinishReason.STOP)
    token = await speak(policy, "x", stop_token_ids=(ord("1"),))
    assert (said(token), token.finish_reason) == (b"<code>1", FinishReason.STOP)
    short = await speak(policy, "x", max_new_tokens=3)
    assert (said(short), short.finish_reason) == (b"<co", FinishReason.LENGTH)
    assert len((await speak(policy, "x" * 15)).token_ids) == 5
    with pytest.raises(ContextOverflow):
        await speak(policy, "x" * 20)


async def test_an_update_during_the_wait_lands_in_the_middle():
    gate = asyncio.Event()
    policy = ScriptedPolicy(["abcde"], sleep=lambda seconds: gate.wait())
    task = asyncio.create_task(speak(policy))
    await asyncio.sleep(0)
    await policy.load(WeightHandle(4, 2, None))
    gate.set()
    assert list((await task).policy_versions) == [0, 0, 0, 4, 4]
    assert (policy.version, policy.attempt) == (4, 2)


async def test_a_call_lasts_as_long_as_the_injected_clock_says():
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    policy = ScriptedPolicy(["abc"], seconds=lambda request, tokens: 10.0 * tokens, sleep=sleep)
    await speak(policy)
    assert waited == [30.0]


async def test_cancelling_and_closing():
    policy = ScriptedPolicy(["abc"], seconds=1000.0)
    cancelled, closed = (asyncio.create_task(speak(policy)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert policy.statistics()["cancelled"] == 1
    await policy.close()
    with pytest.raises(PolicyUnavailable):
        await closed
    with pytest.raises(PolicyUnavailable):
        await speak(policy)
    assert policy.statistics()["running"] == 0


def test_the_byte_tokenizer_gives_text_back():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é<|end|>x")
    assert ids == [0xC3, 0xA9, 256, ord("x")]
    assert tokenizer.decode(ids) == "é<|end|>x"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "éx"
