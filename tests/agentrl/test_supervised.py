"""The supervised warm start: its loss is a token mean however a batch is cut, and it learns."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import agentrl
from agentrl.config.loading import load
from agentrl.config.settings import LossSettings, ModelSettings
from agentrl.episode import SegmentBuilder
from agentrl.errors import ConfigError, DataError
from agentrl.learner.learner import Learner
from agentrl.training.sft import (
    SftSettings,
    WarmLearnerSettings,
    WarmStartSettings,
    _episode,
    fine_tune,
    learn,
    learning_rate_share,
    mean_loss,
)
from benchmarks.tiny_config import tiny_config


def make_segment(prompt: list[int], said: list[int]):
    builder = SegmentBuilder()
    builder.append_given(prompt)
    builder.append_sampled(said, [0.0] * len(said), [0] * len(said))
    return builder.build()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    config = tiny_config(vocabulary=16, hidden=16, inner=32, layers=1, key_heads=2, head=8, context=32)
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def make_learner(model: Path, **settings) -> Learner:
    chosen = WarmLearnerSettings(**settings)
    return Learner(ModelSettings(str(model), threads=1), chosen, LossSettings("cross_entropy"))


SEGMENTS = [make_segment([1, 2], [3, 4]), make_segment([5], [6, 7, 8]), make_segment([9, 9, 9], [10])]


def test_the_loss_is_the_mean_over_all_learned_tokens_however_the_batch_is_cut(model: Path):
    by_hand = []
    network = make_learner(model).model
    for segment in SEGMENTS:
        ids = torch.tensor([list(segment.token_ids)])
        logprobs = torch.log_softmax(network(ids).logits[0].detach(), -1)
        by_hand += [
            -float(logprobs[at - 1, segment.token_ids[at]])
            for at in range(len(segment))
            if segment.loss_mask[at]
        ]
    episodes = [_episode(at, segment) for at, segment in enumerate(SEGMENTS)]
    for tokens in (1, 7, 1000):
        learner = make_learner(model, micro_batch_tokens=tokens, learning_rate=0.0)
        assert mean_loss(learner, episodes) == pytest.approx(sum(by_hand) / 6, abs=1e-5)
        # The loss of a step is the same mean, whatever an episode is worth.
        assert learner.step(episodes, [1.0, 0.0, -1.0]).loss == pytest.approx(sum(by_hand) / 6, abs=1e-5)


def test_the_step_is_the_same_however_the_batch_is_cut(model: Path):
    weights = []
    for tokens in (1, 1000):
        learner = make_learner(model, micro_batch_tokens=tokens)
        learn(learner, SEGMENTS, WarmStartSettings(batch=3, held_out=0), 1e-2)
        weights.append(learner.model.lm_head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_what_is_written_is_learned(model: Path):
    learner = make_learner(model)
    told = []
    settings = WarmStartSettings(epochs=60, batch=3, held_out=0)
    outcome = learn(learner, SEGMENTS, settings, 1e-2, lambda *args: told.append(args[:2]))
    assert outcome["steps"] == 60
    assert (told[0], told[-1]) == ((1, 60), (60, 60))
    assert outcome["history"][0]["loss"] > 2.0
    assert outcome["history"][-1]["loss"] < 0.2
    rates = [row["learning_rate"] for row in outcome["history"]]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 1.1e-3 < rates[30]


def test_learning_rate_rises_and_falls():
    settings = WarmStartSettings(warmup_share=0.2, final_share=0.1)
    shares = [learning_rate_share(step, 10, settings) for step in range(11)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.55)
    assert shares[10] == pytest.approx(0.1)


def test_nothing_to_learn_is_an_error(model: Path):
    builder = SegmentBuilder()
    builder.append_given([1, 2, 3])
    learner = make_learner(model)
    with pytest.raises(DataError, match="no token to learn"):
        learn(learner, [builder.build()], WarmStartSettings(), 1e-2)
    with pytest.raises(DataError, match="begin the prompt with at least one token"):
        learn(learner, [make_segment([], [1, 2])], WarmStartSettings(held_out=0), 1e-2)


def write_traces(path: Path, count: int = 4) -> Path:
    trace = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
    path.write_text((json.dumps(trace) + "\n") * count)
    return path


def test_a_missing_model_and_wrong_settings_are_told(tmp_path: Path):
    flags = [f"--sft.traces={write_traces(tmp_path / 't.jsonl')}", "--sft.out=out"]
    with pytest.raises(ConfigError, match="holds no config.json"):
        fine_tune(load(SftSettings, None, [f"--model.path={tmp_path}", *flags]))
    with pytest.raises(ConfigError) as caught:
        load(SftSettings, None, ["--sft.batch=0", "--learner.ranks=2", "--sft.epoch=2"])
    expected = (
        "sft.batch = 0 must be at least 1",
        "did you mean 'sft.epochs'",
        "--learner.ranks: a warm start takes one optimizer step a batch",
        "name the traces",
        "name the out",
    )
    assert [text for text in expected if text not in str(caught.value)] == []


def test_weights_are_written_in_half_precision(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    demo = Path(agentrl.__file__).parent / "demo" / "model"
    (tmp_path / "sft.toml").write_text(
        f"[model]\npath = '{demo}'\nthreads = 1\n[sft]\ntraces = '{write_traces(tmp_path / 't.jsonl', 8)}'\n"
        f"out = '{tmp_path / 'out'}'\nbatch = 4\n[learner]\nlearning_rate = 1e-3\n"
    )
    settings = load(SftSettings, tmp_path / "sft.toml", ["--sft.epochs=2"])
    result = fine_tune(settings)
    assert (result.steps, result.traces) == (4, 8)
    assert result.loss_last < result.loss_first
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").lm_head.weight.dtype == torch.bfloat16
    assert (tmp_path / "out/tokenizer.json").is_file()
    with pytest.raises(ConfigError, match="holds a model already"):
        fine_tune(settings)
