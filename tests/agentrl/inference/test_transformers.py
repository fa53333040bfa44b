"""The embedded engine with tiny random models: what it samples, and what it says about that."""

import asyncio
import copy
import random
import threading
from array import array

import pytest

from agentrl.errors import ConfigError, ContextOverflow, PolicyError, PolicyUnavailable, WeightSyncError
from agentrl.inference.policy import FinishReason, Policy, PromptFeatures, Sampling
from agentrl.weights.handle import WeightHandle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agentrl.inference.embedded.batch_decoder import BatchDecoder
from agentrl.inference.embedded.engine import TransformersPolicy

VOCABULARY, CONTEXT = 300, 128
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


def make_model(kind="Llama", seed=0, **changes):
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    extra = {"head_dim": 16} if kind == "Qwen3" else {}
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **extra, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def always(model, token):
    """The model with weights that make it say one token."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 50.0
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[token, 0] = 10.0
    return model


def full_logprobs(model, prompt, sampled, temperature=1.0):
    """Log-probabilities of `sampled` by one forward pass over everything, in nats."""
    ids = torch.tensor([[*prompt, *sampled]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(list(sampled))[:, None])[:, 0]


def difference(model, prompt, generation, temperature=1.0):
    wanted = full_logprobs(model, prompt, list(generation.token_ids), temperature)
    return (wanted - torch.tensor(list(generation.logprobs))).abs().max().item()


async def speak(policy, prompt, session="s", **sampling):
    sampling.setdefault("max_new_tokens", 8)
    return await policy.generate(prompt, Sampling(**sampling), session=session, start_version=0)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the decode thread raises no event
        await asyncio.sleep(0.001)


@pytest.fixture
async def engine():
    """Makes started engines and closes them."""
    made = []

    async def make(model, tokenizer=None, **options):
        policy = TransformersPolicy(model, tokenizer, **options)
        made.append(policy)
        await policy.start()
        return policy

    yield make
    for policy in made:
        await policy.close()


# ---------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
async def test_logprobs_are_those_of_a_full_forward_pass(engine, kind, temperature):
    # Fails when a padded query, another row's keys or a wrong position gets into a sum.
    model = make_model(kind)
    policy = await engine(model, slots=8)
    assert isinstance(policy, Policy)
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 40))] for _ in range(12)]
    generations = await asyncio.gather(
        *(
            speak(policy, prompt, f"s{i}", temperature=temperature, seed=i, max_new_tokens=5 + 3 * i)
            for i, prompt in enumerate(prompts)
        )
    )
    for prompt, generation in zip(prompts, generations, strict=True):
        assert difference(model, prompt, generation, temperature) < 2e-5


async def test_the_likeliest_tokens_are_those_of_a_full_forward_pass(engine):
    model = make_model("Qwen3")
    policy = await engine(model, slots=4)
    asked = [0, 3, VOCABULARY]
    generations = await asyncio.gather(
        *(
            speak(policy, [1, 2, top % 7], f"s{top}", temperature=0.7, seed=top, top_logprobs=top)
            for top in asked
        )
    )
    assert not generations[0].top_ids
    for top, generation in zip(asked[1:], generations[1:], strict=True):
        ids = torch.tensor(list(generation.top_ids)).view(8, top)
        full = torch.tensor([[1, 2, top % 7, *generation.token_ids]])
        with torch.no_grad():
            wanted = torch.log_softmax(model(full).logits[0, 2:-1] / 0.7, -1)
        assert ids.tolist() == wanted.topk(top).indices.tolist()
        found = torch.tensor(list(generation.top_logprobs)).view(8, top)
        torch.testing.assert_close(found, wanted.gather(1, ids), atol=2e-5, rtol=0)
    with pytest.raises(PolicyError, match=f"the model has {VOCABULARY} tokens"):
        await speak(policy, [1], "more", top_logprobs=VOCABULARY + 1)


@pytest.mark.parametrize("fixed", [False, True])
async def test_features_of_a_prompt_are_the_mean_hidden_state_of_its_last_tokens(engine, monkeypatch, fixed):
    # Fails when padding is averaged, when a pass's share is lost, or when keys of before stand in for states.
    monkeypatch.setattr("agentrl.inference.embedded.batch_decoder.PREFILL_TOKENS", 16)
    model, rng = make_model("Qwen3"), random.Random(0)
    policy = await engine(model, slots=8, deterministic=fixed)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (3, 7, 9, 53, 53)]
    # Of 53 tokens in passes of 16 the last ten are in two; the second time all but one have keys.
    names, layers = ["a", "b", "c", "d", "d"], [-1, 0, 1, 2, 2]
    prompts[4] = prompts[3]

    async def ask(at):
        asked = PromptFeatures(10, layers[at])
        return await speak(policy, prompts[at], names[at], prompt_features=asked, seed=at, max_new_tokens=3)

    generations = [*await asyncio.gather(*map(ask, range(4))), await ask(4)]
    for prompt, layer, generation in zip(prompts, layers, generations, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[layer][0]
        found = torch.tensor(list(generation.prompt_features))
        torch.testing.assert_close(found, states[-10:].mean(0), atol=2e-5, rtol=1e-5)
        assert difference(model, prompt, generation) < 2e-5
    assert policy.statistics()["reused_tokens"] == 53 - 10
    assert not (await speak(policy, prompts[0])).prompt_features
    with pytest.raises(PolicyError, match="the model has 2 layers, .* layer 3 are .* from -3 to 2"):
        await speak(policy, [1], "more", prompt_features=PromptFeatures(layer=3))


async def test_a_turn_goes_on_without_computing_its_prefix_again(engine):
    # Fails when `RowTable.deactivate` forgets the length, or `shared_prefix` returns 0.
    model = make_model("Qwen3")
    policy = await engine(model, slots=4)
    prompts = {name: [i + 1, 2, 3] for i, name in enumerate("abc")}

    async def play(name):
        for _ in range(4):
            generation = await speak(policy, prompts[name], name, max_new_tokens=5)
            assert difference(model, prompts[name], generation) < 2e-5
            prompts[name] = [*prompts[name], *generation.token_ids, 9, 8, 7]
            await asyncio.sleep(0)

    await asyncio.gather(*(play(name) for name in "abc"))
    counted = policy.statistics()
    assert counted["sampled_tokens"] == 3 * 4 * 5
    # Per session: the prompt of 3, then three times the last sampled token and the 3 that follow.
    assert counted["prefilled_tokens"] == 3 * (3 + 3 * 4)
    assert counted["reused_tokens"] == 3 * (7 + 15 + 23)


async def test_a_changed_prefix_is_computed_again_from_the_change(engine):
    model = make_model()
    policy = await engine(model, slots=2)
    first = await speak(policy, [1, 2, 3, 4, 5], seed=1)
    prompt = [1, 2, 3, 77, 5, *first.token_ids]
    generation = await speak(policy, prompt)
    assert difference(model, prompt, generation) < 2e-5
    assert policy.statistics()["reused_tokens"] == 3


async def test_more_sessions_than_slots_are_evicted_and_computed_again(engine):
    model = make_model()
    policy = await engine(model, slots=2)
    prompts = {i: [i + 1, i + 2] for i in range(5)}
    for _ in range(3):
        for i in range(5):
            generation = await speak(policy, prompts[i], str(i), max_new_tokens=4)
            assert difference(model, prompts[i], generation) < 2e-5
            prompts[i] = [*prompts[i], *generation.token_ids, 5]
    assert policy.statistics()["evictions"] == 3 * 5 - 2


async def test_long_prompts_take_several_passes(engine, monkeypatch):
    monkeypatch.setattr("agentrl.inference.embedded.batch_decoder.PREFILL_TOKENS", 16)
    model = make_model()
    policy = await engine(model, slots=4)
    prompts = [[(i * j) % VOCABULARY for j in range(50 + i)] for i in range(1, 4)]
    generations = await asyncio.gather(*(speak(policy, p, str(len(p)), max_new_tokens=20) for p in prompts))
    for prompt, generation in zip(prompts, generations, strict=True):
        assert difference(model, prompt, generation) < 2e-5


async def test_bfloat16_stays_close_to_the_same_weights_in_float32(engine):
    model = make_model()
    policy = await engine(model, slots=2, dtype="bfloat16")
    generation = await speak(policy, [1, 2, 3], max_new_tokens=20)
    assert difference(model.to(torch.bfloat16).float(), [1, 2, 3], generation) < 0.5


# ---------------------------------------------------------------- sampling


async def test_greedy_takes_the_most_likely_token_and_its_probability_at_temperature_one(engine):
    model = make_model()
    policy = await engine(model)
    generation = await speak(policy, [1, 2, 3], temperature=0.0, max_new_tokens=6)
    tokens = [1, 2, 3]
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert list(generation.token_ids) == tokens[3:]
    assert difference(model, [1, 2, 3], generation) < 2e-5


async def test_the_same_seed_gives_the_same_message_whoever_is_beside_it(engine):
    policy = await engine(make_model(), slots=8)
    alone = await speak(policy, [1, 2, 3], "a", seed=7, max_new_tokens=30)
    beside = await asyncio.gather(
        speak(policy, [1, 2, 3], "b", seed=7, max_new_tokens=30),
        *(speak(policy, [4, 5, i], str(i), max_new_tokens=20) for i in range(10)),
    )
    assert beside[0].token_ids == alone.token_ids
    other = await speak(policy, [1, 2, 3], "c", seed=8, max_new_tokens=30)
    assert other.token_ids != alone.token_ids
    assert (await speak(policy, [1, 2, 3], "d", max_new_tokens=30)).token_ids != alone.token_ids


async def play_all(engine, model, order, pause):
    policy = await engine(model, slots=4, deterministic=True)
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 30))] for _ in range(8)]

    async def play(i):
        prompt, said = list(prompts[i]), []
        for turn in range(2):
            generation = await speak(policy, prompt, str(i), seed=10 * i + turn, max_new_tokens=3 + 2 * i)
            said.append((generation.token_ids, generation.logprobs))
            prompt += [*generation.token_ids, 7]
            await asyncio.sleep(pause * (i % 3))
        await policy.release(str(i))
        return i, said

    return dict(await asyncio.gather(*(play(i) for i in order)))


async def test_deterministic_results_do_not_depend_on_the_batch_bit_for_bit(engine):
    # Fails without fixed shapes: `fixed=False` in `_make_decoder` (a test below shows that it does).
    model = make_model("Qwen3", hidden_size=128, intermediate_size=256)
    one = await play_all(engine, model, range(8), 0.0)
    other = await play_all(engine, model, reversed(range(8)), 0.003)
    assert one == other


async def test_deterministic_sessions_wait_for_a_slot(engine):
    policy = await engine(make_model(), slots=1, deterministic=True)
    await speak(policy, [1, 2], "a")
    waiting = asyncio.create_task(speak(policy, [3, 4], "b"))
    await until(lambda: policy.statistics()["waiting"] == 1)
    await speak(policy, [1, 2, 3], "a")
    assert not waiting.done()
    await policy.release("a")
    assert len((await waiting).token_ids) == 8
    assert policy.statistics()["evictions"] == 0


# ---------------------------------------------------------------- stopping


class Pairs:
    """Every token is two letters."""

    def encode(self, text, add_special_tokens=False):
        return [ord(a) - 97 + 17 * (ord(b) - 97) for a, b in zip(text[::2], text[1::2], strict=False)]

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(chr(97 + i % 17) + chr(97 + i // 17) for i in token_ids)


@pytest.mark.parametrize(("start", "length"), [(40, 2), (41, 2), (41, 5), (40, 1)])
async def test_a_stop_text_ends_the_message_with_the_token_that_completes_it(engine, start, length):
    # Fails when only whole tokens are compared with the stop text.
    tokenizer = Pairs()
    policy = await engine(make_model(), tokenizer, slots=2)
    free = await speak(policy, [1, 2], "free", seed=3, max_new_tokens=60)
    stop = tokenizer.decode(free.token_ids)[start : start + length]
    stopped = await speak(policy, [1, 2], "stopped", seed=3, max_new_tokens=60, stop=("absent", stop))
    end = next(n for n in range(61) if stop in tokenizer.decode(free.token_ids[:n]))
    assert stopped.token_ids == free.token_ids[:end]
    assert stopped.finish_reason is FinishReason.STOP


async def test_stop_tokens_are_kept_and_limits_hold(engine):
    policy = await engine(make_model(), slots=2)
    free = await speak(policy, [1, 2], "a", seed=3, max_new_tokens=40)
    assert (len(free.token_ids), free.finish_reason) == (40, FinishReason.LENGTH)
    token = free.token_ids[25]
    end = list(free.token_ids).index(token) + 1
    stopped = await speak(policy, [1, 2], "b", seed=3, max_new_tokens=40, stop_token_ids=(token,))
    assert stopped.token_ids == free.token_ids[:end]
    assert stopped.finish_reason is FinishReason.STOP
    brim = await speak(policy, [5] * (CONTEXT - 3), "c", max_new_tokens=40)
    assert (len(brim.token_ids), brim.finish_reason) == (3, FinishReason.LENGTH)


# ---------------------------------------------------------------- weights


async def test_every_token_says_which_version_sampled_it(engine):
    # Fails when the version changes before the weights do, or after the next step.
    base = make_model()
    versions = {version: always(base, 100 + version) for version in range(6)}
    policy = await engine(versions[0], slots=4)
    running = [asyncio.create_task(speak(policy, [i], str(i), max_new_tokens=100)) for i in range(4)]
    for version in range(1, 6):
        before = policy.statistics()["sampled_tokens"]
        await until(lambda before=before: policy.statistics()["sampled_tokens"] >= before + 8)
        await policy.load(WeightHandle(version, 2, versions[version]))
        assert (policy.version, policy.attempt) == (version, 2)
    seen = set()
    for generation in await asyncio.gather(*running):
        assert [t - 100 for t in generation.token_ids] == list(generation.policy_versions)
        assert max(abs(x) for x in generation.logprobs) < 1e-3
        seen |= set(generation.policy_versions)
    assert seen == set(range(6))


@pytest.mark.parametrize("keep_keys", [True, False])
async def test_keys_of_older_weights_are_kept_or_computed_again(engine, keep_keys):
    old, new = make_model(seed=0), make_model(seed=1)
    policy = await engine(old, slots=4, keep_keys=keep_keys)
    first = await speak(policy, [1, 2, 3, 4], "idle", max_new_tokens=5)
    running = asyncio.create_task(speak(policy, [5, 6, 7], "running", max_new_tokens=100))
    await until(lambda: policy.statistics()["sampled_tokens"] >= 10)
    await policy.load(WeightHandle(1, 0, new))
    generation = await running
    switch = list(generation.policy_versions).index(1)
    later = full_logprobs(new, [5, 6, 7], list(generation.token_ids))[switch:]
    worst = (later - torch.tensor(list(generation.logprobs))[switch:]).abs().max().item()
    prompt = [1, 2, 3, 4, *first.token_ids, 9]
    second = await speak(policy, prompt, "idle", max_new_tokens=20)
    exact = max(worst, difference(new, prompt, second)) < 5e-5
    assert exact is (not keep_keys)
    fresh = await speak(policy, [1, 2, 3], "fresh")
    assert difference(new, [1, 2, 3], fresh) < 2e-5, "a new session never meets older keys"


async def test_weights_that_do_not_fit_leave_the_old_ones(engine, tmp_path):
    model = make_model()
    policy = await engine(model, slots=2)
    narrow = make_model(hidden_size=16)
    bad = [
        (narrow, r"parameter '.*' has shape"),
        ({}, "have no parameter"),
        (tmp_path, "no safetensors in"),
        (17, "not from int"),
    ]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nonsense")
    bad.append((tmp_path / "broken", "cannot read"))
    for source, reason in bad:
        with pytest.raises(WeightSyncError, match=reason):
            await policy.load(WeightHandle(5, 1, source))
    assert (policy.version, policy.attempt) == (0, 0)
    assert difference(model, [1, 2], await speak(policy, [1, 2])) < 2e-5


@pytest.mark.parametrize("tied", [False, True])
async def test_weights_come_from_a_folder_of_safetensors(engine, tmp_path, tied):
    old, new = (make_model("Qwen3", seed=seed, tie_word_embeddings=tied) for seed in (0, 1))
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new", max_shard_size="20KB")
    policy = await engine(tmp_path / "old", slots=2)
    assert difference(old, [1, 2], await speak(policy, [1, 2], "a")) < 2e-5
    await policy.load(WeightHandle(1, 0, tmp_path / "new"))
    assert difference(new, [1, 2], await speak(policy, [1, 2], "b")) < 2e-5


async def test_the_engine_keeps_its_own_copy(engine):
    model = make_model()
    before = copy.deepcopy(model)
    policy = await engine(model, slots=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert difference(before, [1, 2], await speak(policy, [1, 2])) < 2e-5
    assert model.config._attn_implementation == "sdpa"


# ---------------------------------------------------------------- the ends of things


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_comes_and_goes_what_is_sampled_stays_exact(engine, seed):
    model = make_model("Qwen3")
    policy = await engine(model, slots=3)
    rng = random.Random(seed)
    patient = checked = 0

    async def play(name):
        nonlocal patient, checked
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 20))]
        for _ in range(4):
            limit = rng.choice([0.002, 0.01, 100.0])
            patient += limit > 1.0
            try:
                speaking = speak(policy, prompt, name, max_new_tokens=rng.randrange(1, 20))
                generation = await asyncio.wait_for(speaking, limit)
            except TimeoutError:
                continue
            assert difference(model, prompt, generation) < 5e-5
            checked += 1
            prompt = [*prompt, *generation.token_ids, rng.randrange(VOCABULARY)]
            if len(prompt) > CONTEXT - 25:
                prompt = prompt[:5]
            await asyncio.sleep(rng.choice([0, 0, 0.005]))
        await policy.release(name)

    await asyncio.gather(*(play(str(i)) for i in range(12)))
    assert checked >= patient > 5
    await until(lambda: policy.statistics()["running"] + policy.statistics()["sessions"] == 0)


async def test_a_cancelled_message_frees_its_row(engine):
    policy = await engine(make_model(), slots=1)
    running = asyncio.create_task(speak(policy, [1, 2], "a", max_new_tokens=100))
    waiting = asyncio.create_task(speak(policy, [3, 4], "b", max_new_tokens=100))
    await until(lambda: policy.statistics()["running"] >= 1)
    running.cancel()
    waiting.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert running.cancelled()
    assert waiting.cancelled()
    generation = await speak(policy, [1, 2], "a", max_new_tokens=3)
    assert len(generation.token_ids) == 3
    assert policy.statistics()["cancelled"] <= 2
    assert policy.statistics()["waiting"] == 0


async def test_a_message_cancelled_beside_others_after_the_keys_have_grown(engine, monkeypatch):
    monkeypatch.setattr("agentrl.inference.embedded.kv_cache._FIRST_CAPACITY", 32)
    # Fails when keys that grew during a step are a tensor that only a step may write to.
    policy = await engine(make_model(), slots=3)
    messages = [
        asyncio.create_task(speak(policy, [1 + row] * 90, str(row), max_new_tokens=30)) for row in range(3)
    ]
    await until(lambda: policy.statistics()["running"] == 3)
    messages[0].cancel()
    first, *others = await asyncio.gather(*messages, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert [len(other.token_ids) for other in others] == [30, 30]


async def test_a_session_speaks_one_message_at_a_time_and_may_be_released_in_the_middle(engine):
    policy = await engine(make_model(), slots=2)
    running = asyncio.create_task(speak(policy, [1, 2], "a", max_new_tokens=120))
    await until(lambda: policy.statistics()["running"] >= 1)
    with pytest.raises(PolicyError, match="already has a message"):
        await speak(policy, [1, 2], "a")
    await policy.release("a")
    await policy.release("unknown")
    with pytest.raises(PolicyError, match="was released"):
        await running
    assert len((await speak(policy, [1, 2], "a")).token_ids) == 8


async def test_what_cannot_be_generated_is_refused(engine):
    policy = await engine(make_model(), slots=2)
    with pytest.raises(ContextOverflow, match="the prompt has 128 tokens"):
        await speak(policy, [1] * CONTEXT)
    with pytest.raises(PolicyError, match="token 300 at position 2 is outside .* 300"):
        await speak(policy, [1, 2, 300])
    with pytest.raises(PolicyError, match="token -1 at position 0"):
        await speak(policy, [-1])
    with pytest.raises(PolicyError, match="empty prompt"):
        await speak(policy, [])
    with pytest.raises(ConfigError, match="need an engine with a tokenizer"):
        await speak(policy, [1], stop=("x",))
    assert len((await speak(policy, [1])).token_ids) == 8


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_broken_decode_thread_fails_everybody(engine, monkeypatch, caplog):
    # Fails (hangs) when `_run` does not fail those who wait.
    policy = await engine(make_model(), slots=2)
    running = [asyncio.create_task(speak(policy, [i], str(i), max_new_tokens=120)) for i in range(4)]
    await until(lambda: policy.statistics()["running"] >= 2)

    def broken(self):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(BatchDecoder, "step", broken)
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(outcome, PolicyUnavailable)
        assert "device-side assert" in str(outcome)
    with pytest.raises(PolicyUnavailable, match="device-side assert"):
        await speak(policy, [1])
    with pytest.raises(PolicyUnavailable, match="device-side assert"):
        await policy.load(WeightHandle(1, 0, make_model()))
    await policy.release("0")
    assert "the decode thread broke" in caplog.text


async def test_closing_fails_messages_in_flight(engine):
    policy = await engine(make_model(), slots=2)
    running = asyncio.create_task(speak(policy, [1], max_new_tokens=120))
    await until(lambda: policy.statistics()["running"] >= 1)
    await policy.close()
    await policy.close()
    with pytest.raises(PolicyUnavailable, match="closed"):
        await running
    with pytest.raises(PolicyUnavailable, match="closed"):
        await speak(policy, [1])
    assert not [t for t in threading.enumerate() if t.name == "agentrl-decode"]


async def test_weights_that_are_not_finite_fail_the_message_and_nothing_else(engine):
    model = make_model()
    nan = copy.deepcopy(model)
    with torch.no_grad():
        nan.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    policy = await engine(model, slots=1)
    await policy.load(WeightHandle(1, 0, nan))
    with pytest.raises(PolicyError, match="version 1 are not finite"):
        await speak(policy, [1, 2], "a")
    await policy.load(WeightHandle(2, 0, model))
    assert difference(model, [1, 2, 3], await speak(policy, [1, 2, 3], "b")) < 2e-5


async def test_the_event_loop_is_free_while_tokens_are_sampled(engine):
    policy = await engine(make_model(), slots=4)
    running = [asyncio.create_task(speak(policy, [i], str(i), max_new_tokens=100)) for i in range(4)]
    turns = 0
    while not all(task.done() for task in running):
        turns += 1
        await asyncio.sleep(0)
    assert turns > 100


async def test_an_engine_that_was_not_started_says_so():
    policy = TransformersPolicy(make_model())
    with pytest.raises(PolicyUnavailable, match="not started"):
        await speak(policy, [1])
    await policy.release("a")
    await policy.close()
    assert policy.statistics() == {}


def test_models_that_cannot_be_decoded_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no Hugging Face model in"):
        TransformersPolicy(tmp_path / "missing")
    with pytest.raises(ConfigError, match="the model holds 1 to 128"):
        TransformersPolicy(make_model(), context_tokens=129)
    with pytest.raises(ConfigError, match="slots must be at least 1"):
        TransformersPolicy(make_model(), slots=0)
    windowed = make_model("Qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    with pytest.raises(ConfigError, match="sliding_attention"):
        TransformersPolicy(windowed)


async def test_an_architecture_that_decodes_wrongly_is_refused(monkeypatch):
    policy = TransformersPolicy(make_model())

    def shifted(self, longest):
        return longest - 1

    monkeypatch.setattr("agentrl.inference.embedded.kv_cache.RowCache.attended", shifted)
    with pytest.raises(PolicyUnavailable, match="log-probabilities are off by"):
        await policy.start()


def test_prompts_are_copied_and_not_changed():
    policy = TransformersPolicy(make_model())
    prompt = array("i", [1, 2])
    request = policy._request(prompt, Sampling(max_new_tokens=1), "a")
    request.token_ids.append(3)
    assert list(prompt) == [1, 2]
