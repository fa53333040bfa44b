"""The supervised warm start: its loss is a token mean however a batch is cut, and it learns."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from agentrl.episode import SegmentBuilder
from agentrl.errors import ConfigError, DataError
from agentrl.learner.logprobs import TokenScorer
from agentrl.learner.supervised import (
    SupervisedSettings,
    learning_rate_at,
    load_model,
    mean_loss,
    save_model,
    to_sequence,
    train_supervised,
)


def make_segment(prompt: list[int], said: list[int]):
    builder = SegmentBuilder()
    builder.append_given(prompt)
    builder.append_sampled(said, [0.0] * len(said), [0] * len(said))
    return builder.build()


def make_model(seed: int = 0):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
    )
    return Qwen3ForCausalLM(config)


SEGMENTS = [make_segment([1, 2], [3, 4]), make_segment([5], [6, 7, 8]), make_segment([9, 9, 9], [10])]


def test_the_loss_is_the_mean_over_all_learned_tokens_however_the_batch_is_cut():
    model = make_model()
    by_hand = []
    for segment in SEGMENTS:
        ids = torch.tensor([list(segment.token_ids)])
        logprobs = torch.log_softmax(model(ids).logits[0].detach(), -1)
        by_hand += [
            -float(logprobs[at - 1, segment.token_ids[at]])
            for at in range(len(segment))
            if segment.loss_mask[at]
        ]
    sequences = [to_sequence(segment) for segment in SEGMENTS]
    for tokens in (1, 7, 1000):
        # Fails when `_summed_losses` yields means in place of sums.
        loss = mean_loss(TokenScorer(model), sequences, SupervisedSettings(micro_batch_tokens=tokens))
        assert loss == pytest.approx(sum(by_hand) / 6, abs=1e-5)


def test_the_step_is_the_same_however_the_batch_is_cut():
    weights = []
    for tokens in (1, 1000):
        model = make_model()
        settings = SupervisedSettings(batch=3, micro_batch_tokens=tokens, learning_rate=1e-2, held_out=0)
        train_supervised(model, SEGMENTS, settings)
        weights.append(model.lm_head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_what_is_written_is_learned():
    settings = SupervisedSettings(epochs=60, batch=3, learning_rate=1e-2, held_out=0)
    model = make_model()
    outcome = train_supervised(model, SEGMENTS, settings)
    assert outcome["steps"] == 60
    assert outcome["history"][0]["loss"] > 2.0
    assert outcome["history"][-1]["loss"] < 0.2


def test_learning_rate_rises_and_falls():
    settings = SupervisedSettings(learning_rate=1.0, warmup_share=0.2, final_share=0.1)
    rates = [learning_rate_at(step, 10, settings) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)


def test_nothing_to_learn_is_an_error():
    builder = SegmentBuilder()
    builder.append_given([1, 2, 3])
    with pytest.raises(DataError, match="no token to learn"):
        train_supervised(make_model(), [builder.build()], SupervisedSettings())
    with pytest.raises(DataError, match="at least one token before"):
        to_sequence(make_segment([], [1, 2]))


def test_a_missing_model_and_wrong_settings_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no config.json: the folder is empty"):
        load_model(str(tmp_path), SupervisedSettings())
    with pytest.raises(ConfigError, match="batch = 0 must be at least 1"):
        SupervisedSettings(batch=0)


def test_weights_are_written_in_half_precision_and_stay_whole_in_memory(tmp_path: Path):
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    model = make_model()
    save_model(model, tokenizer, tmp_path)
    assert model.lm_head.weight.dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    before, after = model.lm_head.weight.detach(), again.lm_head.weight.detach()
    assert 0.0 < float((after - before).abs().max()) < 1e-3
