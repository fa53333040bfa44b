from __future__ import annotations

import dataclasses
import math
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.episode import Episode, Failure, Segment, SegmentBuilder, StopReason
from agentrl.errors import CheckpointError, ConfigError, DataError, LearnerError
from agentrl.learner import checkpoint
from agentrl.learner.checkpoint import file_of
from agentrl.learner.learner import Learner
from benchmarks.tiny_config import tiny_config

MakeLearner = Callable[..., Learner]


def weights(of: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in of.model.named_parameters()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def with_scored_logprobs(learner: Learner, episodes: list[Episode]) -> list[Episode]:
    """The episodes as the learner's own policy would have recorded them."""
    result = []
    for episode, scores in zip(episodes, learner.score(episodes), strict=True):
        segments = tuple(
            dataclasses.replace(segment, logprobs=array("f", values.tolist()))
            for segment, values in zip(episode.segments, scores, strict=True)
        )
        result.append(dataclasses.replace(episode, segments=segments))
    return result


def gradient(learner: Learner, episodes: list[Episode], advantages: list[float]) -> dict[str, torch.Tensor]:
    """The gradient of one mini-batch, caught just before the optimizer would use it."""
    caught: dict[str, torch.Tensor] = {}

    def catch() -> float:
        for name, parameter in learner.model.named_parameters():
            caught[name] = parameter.grad.detach().clone()
            parameter.grad = None
        return 0.0

    learner._optimizer.step = catch  # type: ignore[method-assign]
    learner.step(episodes, advantages)
    return caught


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name in one:
        scale = float(one[name].abs().max())
        torch.testing.assert_close(two[name], one[name], atol=2e-5 * scale + 1e-8, rtol=1e-4, msg=name)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_scores_equal_those_of_a_plain_forward_pass(
    make_learner: MakeLearner, make_episodes: Callable[..., list[Episode]], temperature: float
) -> None:
    learner = make_learner(micro_batch_tokens=40)
    episodes = make_episodes(temperature=temperature)
    for episode, (scores,) in zip(episodes, learner.score(episodes), strict=True):
        (segment,) = episode.segments
        ids = torch.tensor([list(segment.token_ids)])
        with torch.no_grad():
            logits = learner.model(input_ids=ids).logits[0] / temperature
        logp = torch.log_softmax(logits, -1)
        for at, sampled in enumerate(segment.loss_mask):
            expected = float(logp[at - 1, segment.token_ids[at]]) if sampled else 0.0
            assert scores[at] == pytest.approx(expected, abs=2e-5)


def test_the_gradient_is_that_of_the_formula(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    """A loop over tokens, written from the equations: ratio 1, truncated weight, token mean."""
    found = gradient(make_learner(), episodes, advantages)
    model = make_learner().model
    loss, tokens = torch.zeros(()), 0
    for episode, advantage in zip(episodes, advantages, strict=True):
        (segment,) = episode.segments
        logp = torch.log_softmax(model(input_ids=torch.tensor([list(segment.token_ids)])).logits[0], -1)
        for at, sampled in enumerate(segment.loss_mask):
            if not sampled:
                continue
            current = logp[at - 1, segment.token_ids[at]]
            weight = min(math.exp(float(current.detach()) - segment.logprobs[at]), 2.0)
            loss = loss - weight * torch.exp(current - current.detach()) * advantage
            tokens += 1
    (loss / tokens).backward()
    assert_close({name: p.grad for name, p in model.named_parameters()}, found)


@pytest.mark.parametrize("micro_batch_tokens", [1, 30, 64, 100_000])
def test_the_gradient_is_the_same_however_the_mini_batch_is_cut(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float], micro_batch_tokens: int
) -> None:
    whole = gradient(make_learner(micro_batch_tokens=100_000), episodes, advantages)
    # Fails if a micro-batch divides by its own number of tokens instead of the mini-batch's.
    cut = gradient(make_learner(micro_batch_tokens=micro_batch_tokens), episodes, advantages)
    assert_close(whole, cut)


def test_long_episodes_weigh_by_their_tokens(
    make_learner: MakeLearner, make_episode: Callable[..., Episode]
) -> None:
    """One episode split in two of the same advantage gives the gradient of their tokens together."""
    learner = make_learner(importance="off")
    short, long = make_episode(0, turns=((2, 0),)), make_episode(1, turns=((14, 0),))
    both = gradient(learner, [short, long], [1.0, -1.0])
    one = gradient(make_learner(importance="off"), [short], [1.0])
    two = gradient(make_learner(importance="off"), [long], [-1.0])
    assert_close(both, {name: (2 * one[name] + 14 * two[name]) / 16 for name in one})


def test_tool_tokens_are_not_learned_from(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    """Marking one tool token as sampled changes the gradient, so its mask matters.

    Fails if `_build` takes all positions instead of those of the mask: both gradients would be equal.
    """
    reference = gradient(make_learner(), episodes, advantages)
    segment = episodes[0].segments[0]
    tool = next(
        at for at in range(1, len(segment)) if segment.loss_mask[at - 1] and not segment.loss_mask[at]
    )
    mask, versions = bytearray(segment.loss_mask), array("i", segment.policy_versions)
    mask[tool], versions[tool] = 1, 0
    no_tops = {
        "top_ids": array("i"),
        "top_logprobs": array("f"),
    }  # one more token is sampled than there are of them
    changed = dataclasses.replace(segment, loss_mask=bytes(mask), policy_versions=versions, **no_tops)
    other = [dataclasses.replace(episodes[0], segments=(changed,)), *episodes[1:]]
    found = gradient(make_learner(), other, advantages)
    assert max(float((found[n] - reference[n]).abs().max()) for n in found) > 1e-3


def test_a_tool_token_changes_what_follows_but_has_no_loss_of_its_own(
    make_learner: MakeLearner, make_episode: Callable[..., Episode]
) -> None:
    learner = make_learner()
    episode = make_episode(0, turns=((4, 3),))  # the tool's answer ends the episode
    segment = episode.segments[0]
    ids = array("i", segment.token_ids)
    ids[-1] = (ids[-1] + 1) % 61
    other = dataclasses.replace(episode, segments=(dataclasses.replace(segment, token_ids=ids),))
    one, two = gradient(learner, [episode], [1.0]), gradient(make_learner(), [other], [1.0])
    assert same(one, two)


def test_same_episodes_same_weights_bit_for_bit(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    results = []
    for _ in range(2):
        learner = make_learner(mini_batch=2, micro_batch_tokens=64, epochs=2)
        for _ in range(3):
            learner.step(episodes, advantages, clock_tokens=16)
        results.append(weights(learner))
    assert same(*results)


def test_saved_and_loaded_it_goes_on_bit_for_bit(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float], tmp_path: Path
) -> None:
    settings = {"mini_batch": 3, "warmup_steps": 5}
    learner = make_learner(**settings)
    learner.step(episodes, advantages)
    learner.save(tmp_path)
    expected = learner.step(episodes, advantages, clock_tokens=20)
    other = make_learner(**settings)
    other.load(tmp_path)
    found = other.step(episodes, advantages, clock_tokens=20)
    assert same(weights(learner), weights(other))
    assert (found.loss, found.drift, found.learning_rate) == (
        expected.loss,
        expected.drift,
        expected.learning_rate,
    )
    assert (other.batches, other.optimizer_steps) == (2, 6)


def test_bfloat16_keeps_float32_masters(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float], tmp_path: Path
) -> None:
    # A step of 1e-6 is far below the spacing of bfloat16: without masters nothing would ever change.
    learner = make_learner(dtype="bfloat16", learning_rate=1e-6, weight_decay=0.0)
    before = weights(learner)
    masters = {n: t.clone() for n, t in learner._optimizer.tensors().items() if n.startswith("master")}
    learner.step(episodes, advantages)
    moved = {n: t for n, t in learner._optimizer.tensors().items() if n.startswith("master")}
    name = "model.layers.0.mlp.up_proj.weight"
    assert before[name].dtype == torch.bfloat16
    step = (moved[f"master:{name}"] - masters[f"master:{name}"]).abs()
    assert float(step.max()) == pytest.approx(1e-6, rel=0.5)
    learner.save(tmp_path)
    other = make_learner(dtype="bfloat16", learning_rate=1e-6, weight_decay=0.0)
    other.load(tmp_path)
    learner.step(episodes, advantages)
    other.step(episodes, advantages)
    again, found = learner._optimizer.tensors(), other._optimizer.tensors()
    assert same(again, found)


def test_bfloat16_gradient_is_near_that_of_float32(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    lengths = []
    for dtype in ("float32", "bfloat16"):
        metrics = make_learner(dtype=dtype, micro_batch_tokens=40).step(episodes, advantages)
        lengths.append(metrics.grad_norm)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


def test_a_positive_advantage_makes_an_episode_more_likely(
    make_learner: MakeLearner, make_episode: Callable[..., Episode]
) -> None:
    learner = make_learner(importance="off", learning_rate=3e-3)
    good, bad = make_episode(0), make_episode(1)
    before = [float(scores[0].sum()) for scores in learner.score([good, bad])]
    for _ in range(5):
        learner.step([good, bad], [1.0, -1.0])
    after = [float(scores[0].sum()) for scores in learner.score([good, bad])]
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_an_episode_of_two_segments_learns(
    make_learner: MakeLearner, make_episode: Callable[..., Episode]
) -> None:
    learner = make_learner(importance="off")
    one, two = make_episode(0), make_episode(1)
    joined = dataclasses.replace(one, segments=(one.segments[0], two.segments[0]))
    metrics = learner.step([joined], [1.0])
    assert metrics.tokens_learned == one.num_sampled + two.num_sampled
    # The same tokens as two episodes of the same advantage give the same step.
    other = make_learner(importance="off")
    other.step([one, two], [1.0, 1.0])
    assert_close(weights(other), weights(learner))


def test_metrics_of_an_on_policy_batch(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    learner = make_learner()
    metrics = learner.step(with_scored_logprobs(learner, episodes), advantages)
    tokens = [episode.num_trainable for episode in episodes]
    assert metrics.tokens_learned == sum(tokens)
    assert metrics.loss == pytest.approx(-np.average(advantages, weights=tokens), abs=1e-4)
    assert metrics.of_loss == {"clip_low": 0.0, "clip_high": 0.0, "clip_dual": 0.0, "importance_outside": 0.0}
    assert metrics.ratio_mean == pytest.approx(1.0)
    assert metrics.importance_mean == pytest.approx(1.0, abs=1e-4)
    assert metrics.effective_share == pytest.approx(1.0, abs=1e-4)
    assert metrics.behaviour_gap == pytest.approx(0.0, abs=1e-4)
    assert 0.0 < metrics.entropy < math.log(61)
    assert metrics.optimizer_steps == 1
    assert metrics.proximal_s == 0.0
    assert metrics.as_dict()["tokens_learned"] == metrics.tokens_learned


def test_importance_weights_reach_the_gradient(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    gradients = {
        mode: gradient(make_learner(importance=mode), episodes, advantages)
        for mode in ("truncate", "metrics", "off")
    }
    assert same(gradients["metrics"], gradients["off"])
    name = "lm_head.weight"
    assert not torch.allclose(gradients["truncate"][name], gradients["off"][name])
    measured = make_learner(importance="metrics").step(episodes, advantages)
    assert 0.0 < measured.effective_share < 1.0
    assert measured.of_loss["importance_outside"] > 0.0


def test_proximal_policy_is_the_one_before_the_batch(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    """With several mini-batches the later ones see a ratio away from 1, and clip.

    Fails if proximal log-probabilities are taken from the current forward pass there too.
    """
    learner = make_learner(mini_batch=2, learning_rate=0.1)
    metrics = learner.step(with_scored_logprobs(learner, episodes), advantages)
    assert metrics.optimizer_steps == 4
    assert metrics.kl_proximal > 1e-3
    assert metrics.of_loss["clip_low"] + metrics.of_loss["clip_high"] > 0.0
    assert metrics.importance_mean == pytest.approx(1.0, abs=1e-3)


def test_the_clock_stands_still_at_learning_rate_zero(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    for settings in ({}, {"mini_batch": 2}):
        metrics = make_learner(learning_rate=0.0, **settings).step(episodes, advantages, clock_tokens=16)
        # Exactly: both scorings use the same padding, so that rounding cancels too.
        assert metrics.drift == 0.0
        assert metrics.drift_tokens >= 16


def test_the_clock_advances_with_one_mini_batch(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    learner = make_learner()
    before = learner.score(episodes)
    metrics = learner.step(episodes, advantages, clock_tokens=10_000)
    after = learner.score(episodes)
    mask = np.concatenate([np.frombuffer(e.segments[0].loss_mask, np.uint8) for e in episodes]) == 1
    moved = np.abs(np.concatenate([x[0] for x in after]) - np.concatenate([x[0] for x in before]))[mask]
    assert metrics.drift == pytest.approx(moved.mean(), rel=1e-3)
    assert metrics.drift_tokens == mask.sum()
    assert make_learner().step(episodes, advantages).drift_tokens == 0


def test_divergence_from_a_reference_is_zero_at_first_and_pulls_back(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    learner = make_learner(kl_coefficient=0.1)
    first = learner.step(episodes, advantages)
    second = learner.step(episodes, advantages)
    assert first.kl_reference == pytest.approx(0.0, abs=1e-9)
    assert second.kl_reference > 1e-4
    pulled = make_learner(kl_coefficient=50.0)
    pulled.step(episodes, advantages)
    distances = [pulled.step(episodes, [0.0] * 7).kl_reference for _ in range(8)]
    assert distances[-1] < distances[0]


def test_an_entropy_bonus_raises_entropy(make_learner: MakeLearner, episodes: list[Episode]) -> None:
    learner = make_learner(entropy_coefficient=1.0, learning_rate=3e-3)
    entropies = [learner.step(episodes, [0.0] * 7).entropy for _ in range(5)]
    assert entropies[-1] > entropies[0]


def test_gradient_checkpointing_changes_nothing(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]
) -> None:
    plain = gradient(make_learner(), episodes, advantages)
    assert_close(plain, gradient(make_learner(gradient_checkpointing=True), episodes, advantages))


def test_the_warm_up_raises_the_learning_rate(make_learner: MakeLearner, episodes: list[Episode]) -> None:
    learner = make_learner(warmup_steps=4, learning_rate=1e-3)
    rates = [learner.step(episodes, [1.0] * 7).learning_rate for _ in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_weights_load_as_they_are(
    kind: str, tied: bool, tmp_path: Path, make_model: Any, make_learner: MakeLearner, episodes: list[Episode]
) -> None:
    learner = make_learner(make_model(tmp_path / "start", kind, tied=tied))
    (tmp_path / "start" / "tokenizer_config.json").write_text("{}")
    learner.step(episodes, [1.0, -1.0] * 3 + [0.5])
    learner.save_weights(tmp_path / "end")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "end")
    assert same(weights(learner), dict(loaded.named_parameters()))
    assert (tmp_path / "end" / "tokenizer_config.json").read_text() == "{}"
    assert list((tmp_path / "end").glob("*.safetensors"))


def poisoned(learner: Learner, token: int) -> None:
    """Makes every sequence that holds `token` score as nan."""
    with torch.no_grad():
        learner.model.get_input_embeddings().weight[token] = math.nan


def test_a_loss_that_is_not_finite_names_the_episode(
    make_learner: MakeLearner, make_episode: Callable[..., Episode]
) -> None:
    episodes = [make_episode(i) for i in range(4)]
    used = [set(e.segments[0].token_ids[:-1]) for e in episodes]
    token = min(used[2] - used[0] - used[1] - used[3])
    learner = make_learner()
    poisoned(learner, token)
    before = weights(learner)
    with pytest.raises(LearnerError, match=r"not finite for episodes e2$"):
        learner.step(episodes, [1.0, -1.0, 1.0, -1.0])
    after = weights(learner)
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    learner = make_learner(mini_batch=1)
    poisoned(learner, token)
    with pytest.raises(LearnerError, match="not finite for episode e2"):
        learner.step(episodes, [1.0, -1.0, 1.0, -1.0])


def test_a_gradient_that_is_not_finite_names_the_episode(
    make_learner: MakeLearner, episodes: list[Episode]
) -> None:
    # The loss of e3 is finite, 1e36; its gradient is multiplied by 1 / temperature = 1e4 and is not.
    episodes = [dataclasses.replace(e, temperature=1e-4 if e.episode_id == "e3" else 1.0) for e in episodes]
    learner = make_learner(importance="off")
    before = weights(learner)
    with pytest.raises(LearnerError, match=r"gradient is not finite for episodes e3$"):
        learner.step(episodes, [1.0, 1.0, 1.0, 1e36, 1.0, 1.0, 1.0])
    assert same(before, weights(learner))
    assert learner.optimizer_steps == 0
    learner.step(episodes, [1.0] * 7)  # it can go on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_failed_step_leaves_no_trace_of_the_steps_before_it(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float], dtype: str
) -> None:
    learner = make_learner(mini_batch=1, dtype=dtype)
    learner.step(episodes, advantages)
    before, state = weights(learner), {n: t.clone() for n, t in learner._optimizer.tensors().items()}
    order = [int(part[0]) for part in learner._plan(7)]
    broken = [1.0] * 7
    broken[order[3]] = 3e38
    # Fails without the snapshot: three optimizer steps come before the fourth, which fails.
    with pytest.raises(LearnerError, match=f"for episodes e{order[3]}$"):
        learner.step(episodes, broken)
    assert same(before, weights(learner))
    assert same(state, learner._optimizer.tensors())
    assert learner.optimizer_steps == 7


def test_bad_input(make_learner: MakeLearner, episodes: list[Episode], advantages: list[float]) -> None:
    learner = make_learner()
    before = weights(learner)
    with pytest.raises(DataError, match="7 episodes came with 1 advantages"):
        learner.step(episodes, [1.0])
    with pytest.raises(LearnerError, match="episode e1 has the advantage nan"):
        learner.step(episodes, [0.0, math.nan, *advantages[2:]])
    failed = dataclasses.replace(
        episodes[0], reward=None, stop_reason=StopReason.FAILED, failure=Failure("env", "Boom", "")
    )
    with pytest.raises(DataError, match="failed episodes cannot be learned from: e0"):
        learner.step([failed], [1.0])
    builder = SegmentBuilder()
    builder.append_given([1, 2])
    silent = dataclasses.replace(episodes[0], segments=(builder.build(),))
    with pytest.raises(LearnerError, match="batch of 2 episodes has no trainable token"):
        learner.step([silent, silent], [1.0, 1.0])
    assert same(before, weights(learner))
    # Silent episodes among others are no problem, also as a whole mini-batch.
    metrics = make_learner(mini_batch=1).step([silent, episodes[0]], [1.0, 1.0])
    assert metrics.optimizer_steps == 1
    assert learner.score([silent])[0][0].tolist() == [0.0, 0.0]
    assert learner.score([dataclasses.replace(silent, segments=())]) == [[]]


def test_frozen_segments_are_scored_but_not_learned_from(
    make_learner: MakeLearner, episodes: list[Episode]
) -> None:
    segment: Segment = dataclasses.replace(episodes[0].segments[0], trainable=False)
    frozen = dataclasses.replace(episodes[0], segments=(segment,))
    learner = make_learner()
    assert np.array_equal(learner.score([frozen])[0][0], learner.score([episodes[0]])[0][0])
    with pytest.raises(LearnerError, match="no trainable token"):
        learner.step([frozen], [1.0])


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    for path, text in (("", "path is empty"), (str(tmp_path), "holds no config.json")):
        with pytest.raises(ConfigError, match=text):
            Learner(ModelSettings(path=path, device="cpu"), LearnerSettings())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Learner(ModelSettings(path=str(tmp_path), device="cpu"), LearnerSettings())
    with pytest.raises(ConfigError, match=r"model\.device = 'tpu9'"):
        Learner(ModelSettings(path=str(tmp_path), device="tpu9"), LearnerSettings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mini_batch", -1),
        ("micro_batch_tokens", 0),
        ("epochs", 0),
        ("dual_clip", 0.5),
        ("learning_rate", float("nan")),
        ("betas", (0.9, 2.0)),
        ("importance_max", 1.0),
    ],
)
def test_impossible_settings(make_learner: MakeLearner, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"(learner|loss).{name} = "):
        make_learner(**{name: value})


def test_checkpoints_that_cannot_be_read(make_learner: MakeLearner, make_model: Any, tmp_path: Path) -> None:
    learner = make_learner()
    with pytest.raises(CheckpointError, match="cannot be read"):
        learner.load(tmp_path)
    learner.save(tmp_path)
    with pytest.raises(CheckpointError, match="do not have the names and shapes of the model"):
        make_learner(make_model(tmp_path / "other", "llama")).load(tmp_path)
    file_of(tmp_path, 0, 1).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        learner.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        learner.save(tmp_path / "file" / "below")
    with pytest.raises(CheckpointError, match="cannot be written"):
        learner.save_weights(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "bfloat16"}, {"optimizer": "sto_sign"}, {"offload": True}]
)
def test_steps_during_a_slow_write_stay_out_of_what_was_saved(
    make_learner: MakeLearner,
    episodes: list[Episode],
    advantages: list[float],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, write = threading.Event(), checkpoint.save_file

    def write_slowly(*arguments: Any) -> None:
        assert go_on.wait(30.0)
        write(*arguments)

    learner, other = (make_learner(learning_rate=1e-2, **settings) for _ in range(2))
    learner.step(episodes, advantages)
    learner.save(tmp_path / "before")
    monkeypatch.setattr(checkpoint, "save_file", write_slowly)
    learner.save(tmp_path / "during", wait=False)
    following = [learner.step(episodes, advantages).loss for _ in range(2)]
    assert not learner.saved()
    with pytest.raises(CheckpointError, match="second has to wait: the state saved before is still being"):
        learner.save(tmp_path / "second")
    go_on.set()
    assert eventually(learner.saved)
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "during").iterdir())
    for name in names:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "during" / name).read_bytes()
    other.load(tmp_path / "during")
    assert [other.step(episodes, advantages).loss for _ in range(2)] == following
    assert learner.saved()  # there is nothing to wait for


def test_a_write_that_fails_is_told_once_and_the_learner_goes_on(
    make_learner: MakeLearner, episodes: list[Episode], advantages: list[float], tmp_path: Path
) -> None:
    learner = make_learner()
    file_of(tmp_path / "state", 0, 1).mkdir(parents=True)  # where the file has to be
    learner.save(tmp_path / "state", wait=False)
    with pytest.raises(CheckpointError, match=f"state cannot be written to {tmp_path / 'state'}: "):
        eventually(learner.saved)
    learner.save(tmp_path / "again", wait=False)
    assert eventually(learner.saved)
    learner.load(tmp_path / "again")


def eventually(true: Callable[[], bool], limit_s: float = 30.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + limit_s
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_a_mixture_of_experts_is_refused_in_one_sentence(make_learner, tmp_path: Path) -> None:
    config = tiny_config("qwen3_moe", layers=1, moe_intermediate_size=16, num_experts=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a mixture of 4 experts, which the learner refuses"):
        make_learner(tmp_path)
