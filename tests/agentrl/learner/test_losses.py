"""Losses of the package: one batch of four sequences of two tokens, worked by hand, and what each promises."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import registry
from agentrl.episode import Episode
from agentrl.errors import DataError
from agentrl.learner.learner import Learner
from agentrl.learner.losses.clipped import LossInputs, k2, k3, with_divergence
from agentrl.learner.losses.rows import minimum_before, sum_from

RATIOS = (1.0, 2.0, 0.5, 1.0, 2.0, 0.5, 1.0, 1.2)
"""current / behaviour of the eight tokens."""
ADVANTAGES = (1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -2.0, -2.0)
SEQUENCE = (0, 0, 1, 1, 2, 2, 3, 3)
SCORES = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
POLICY, OTHER = torch.tensor([0.3, -0.4, 1.1]), torch.tensor([-0.2, 0.5, 0.1])
"""Logits of three tokens."""
# Behaviour and proximal have log-probability -1, so current is -1 + log ratio:
# -1, -.306853, -1.693147, -1, -.306853, -1.693147, -1, -.817678.


def four_rows(ratios: tuple[float, ...] = RATIOS, **more: Any) -> LossInputs:
    """The batch; `current` is a leaf."""
    old = torch.full((len(ratios),), -1.0)
    places = torch.arange(len(ratios))
    fields: dict[str, Any] = {
        "current": (old + torch.tensor(ratios).log()).requires_grad_(),
        "proximal": old,
        "behaviour": old,
        "advantage": torch.tensor(ADVANTAGES[: len(ratios)]),
        "entropy": torch.zeros(len(ratios)),
        "logsumexp": torch.zeros(len(ratios)),
        "segment": torch.zeros_like(places),
        "score": torch.tensor(SCORES[: len(ratios)]),
        "group": torch.zeros(len(ratios), dtype=torch.int64),
        "sequence": torch.tensor(SEQUENCE[: len(ratios)]),
        "position": places,
        "turn": places,
    }
    return LossInputs(**fields | more)


def run(kind: str, inputs: LossInputs, **own: Any) -> tuple[list[float], list[float], dict[str, list[Any]]]:
    """Loss, its gradient by `current`, and what was logged, of a loss named as settings name it."""
    loss, metrics = registry.make("loss", kind, own)(inputs)
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.current)
    return loss.tolist(), gradient.tolist(), {name: values.tolist() for name, values in metrics.items()}


def near(values: list[float]) -> Any:
    return pytest.approx(values, abs=2e-6)


def test_sums_and_minima_along_sequences() -> None:
    values, sequence = torch.tensor([3.0, 1.0, 2.0, 5.0, -1.0]), torch.tensor([0, 0, 0, 1, 2])
    assert minimum_before(values, sequence).tolist() == [0.0, 3.0, 1.0, 0.0, 0.0]
    assert sum_from(values, sequence).tolist() == [6.0, 3.0, 2.0, 5.0, -1.0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("token", [0.2, 0.4, -0.6]), ("sequence", [0.3, 0.3, -0.6]), ("product", [0.6, 0.6, -0.6])],
)
def test_levels_of_the_importance_weight(level: Any, expected: list[float]) -> None:
    ones = torch.zeros(3)
    it = four_rows(
        (1.0, 1.0, 1.0),
        proximal=torch.tensor([0.2, 0.4, -0.6]),
        behaviour=ones,
        sequence=torch.tensor([0, 0, 1]),
    )
    assert it.log_importance(level).tolist() == near(expected)
    # The clipped loss multiplies by it: -A w with A = 1 and the ratio current/proximal at 1.
    it = dataclasses.replace(it, current=it.proximal.clone().requires_grad_(), advantage=torch.ones(3))
    loss, _, _ = run("clipped", it, importance="bound", importance_level=level, importance_min=0.7)
    assert loss == near([-max(math.exp(value), 0.7) for value in expected])


def test_cispo() -> None:
    loss, gradient, metrics = run("cispo", four_rows(), clip_high=0.28)
    # -min(ratio, 1.28) A current.
    assert loss == near([1.0, 0.392772, 0.846574, 1.0, -0.392772, -0.846574, -2.0, -1.962427])
    # -min(ratio, 1.28) A: the trap is a gradient through the weight, or none beyond the bound.
    assert gradient == near([-1.0, -1.28, -0.5, -1.0, 1.28, 0.5, 2.0, 2.4])
    assert metrics["weight_clipped"] == [False, True, False, False, True, False, False, False]
    bounded = run("cispo", four_rows(), clip_low=0.2, clip_high=0.28)[1]
    assert bounded == near([-1.0, -1.28, -0.8, -1.0, 1.28, 0.8, 2.0, 2.4])


def test_minpro() -> None:
    _, gradient, metrics = run("minpro", four_rows())
    # Prefix minimum 1 for a first token, its ratio for the second; times the token's ratio; clipped to [.8, 1.28].
    # 1, 2 | .5, .5 | 2, 1 | 1, 1.2
    assert metrics["prefix_minimum"] == near([1.0, 1.0, 1.0, 0.5, 1.0, 2.0, 1.0, 1.0])
    assert gradient == near([-1.0, -1.28, -0.8, -0.8, 1.28, 1.0, 2.0, 2.4])
    safe = run("minpro", four_rows(), bound_prefix=True)[2]
    assert safe["prefix_minimum"] == near([1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0])


def test_minpro_takes_the_minimum_and_not_the_product() -> None:
    it = four_rows((0.5, 0.25, 2.0, 1.0), advantage=torch.ones(4), sequence=torch.zeros(4, dtype=torch.int64))
    _, gradient, metrics = run("minpro", it, clip_low=1.0, clip_high=9.0)
    assert metrics["prefix_minimum"] == near([1.0, 0.5, 0.25, 0.25])  # products: 1, .5, .125, .25
    assert gradient == near([-0.5, -0.125, -0.5, -0.25])
    # Tool output between tokens moves their places, and nothing else: it is not among the N.
    apart = dataclasses.replace(it, position=torch.tensor([5, 40, 41, 90]), turn=torch.tensor([0, 1, 1, 2]))
    assert run("minpro", apart, clip_low=1.0, clip_high=9.0)[1] == gradient


def test_gspo() -> None:
    loss, gradient, metrics = run("gspo", four_rows(), clip_low=0.2, clip_high=0.28)
    # Geometric means sqrt 2 (clipped at 1.28), sqrt .5, 1 and sqrt 1.2.
    assert loss == near([-1.28] * 2 + [-0.707107] * 2 + [1.0] * 2 + [2.190890] * 2)
    # Of each token the whole ratio, not its share of the mean: `sequences` divides by the length.
    assert gradient == near([0.0] * 2 + [-0.707107] * 2 + [1.0] * 2 + [2.190890] * 2)
    assert metrics["clip_high"] == [True, True] + [False] * 6


@given(st.lists(st.floats(0.5, 2.0), min_size=8, max_size=8))
def test_gspo_clips_whole_sequences(ratios: list[float]) -> None:
    metrics = run("gspo", four_rows(tuple(ratios)))[2]
    for name in ("clip_low", "clip_high"):
        assert all(metrics[name][at] == metrics[name][at + 1] for at in range(0, 8, 2))


def test_bpo() -> None:
    loss, gradient, metrics = run("bpo", four_rows())
    # |A| |ratio - (1 + .2 sign A)|: the aim is 1.2 for the first two sequences, .8 for the others.
    assert loss == near([0.2, 0.8, 0.7, 0.2, 1.2, 0.3, 0.4, 0.8])
    # Beyond the aim PPO's gradient is zero; here the ratio is pulled back.
    assert gradient == near([-1.0, 2.0, -0.5, -1.0, 2.0, -0.5, 2.0, 2.4])
    assert metrics["pulled_back"] == [False, True, False, False, False, True, False, False]


@given(st.floats(0.81, 1.19), st.floats(-3, 3))
def test_bpo_has_the_slope_of_ppo_inside_of_the_width(ratio: float, advantage: float) -> None:
    def slope(kind: str, **own: Any) -> list[float]:
        return run(kind, four_rows((ratio,), advantage=torch.tensor([advantage])), **own)[1]

    assert slope("bpo") == pytest.approx(slope("clipped", dual_clip=0.0), abs=1e-5)


def test_real_by_itself() -> None:
    loss, gradient, metrics = run("real", four_rows())
    # Mean log-ratios .346574, -.346574, 0, .091161; over tau = .5: log 2, -log 2, 0, log 1.2.
    # softplus(-y s / tau): log 1.5, log 3, log 2, log 2.2.
    assert loss == near([0.405465] * 2 + [1.098612] * 2 + [0.693147] * 2 + [0.788457] * 2)
    assert metrics["log_ratio"] == near([0.346574] * 2 + [-0.346574] * 2 + [0.0] * 2 + [0.091161] * 2)
    # Right ones are pushed up, wrong ones down, whatever the advantage says.
    other = run("real", four_rows(advantage=-torch.tensor(ADVANTAGES)))[1]
    assert other == gradient
    assert [value < 0 for value in gradient] == [True] * 4 + [False] * 4


def test_real_is_anchored_at_the_sampler() -> None:
    # The learner recomputed another proximal policy: the loss must not see it.
    moved = four_rows(proximal=torch.full((8,), -3.0))
    assert run("real", moved)[0] == near(run("real", four_rows())[0])
    with pytest.raises(DataError, match="needs the score"):
        run("real", four_rows(score=None))


@given(st.lists(st.floats(-15, 15), min_size=8, max_size=8))
def test_the_weight_of_real_is_bounded(log_ratios: list[float]) -> None:
    it = four_rows()
    it = dataclasses.replace(it, current=(it.behaviour + torch.tensor(log_ratios)).requires_grad_())
    # Two tokens, each half of a mean, in the loss of two tokens: 1 / tau = 2 at most.
    assert max(abs(value) for value in run("real", it)[1]) <= 2.0 + 1e-5


def test_real_of_groups() -> None:
    it = four_rows()
    it = dataclasses.replace(it, proximal=it.current.detach())  # the first step of a batch
    part = registry.make("loss", "real", {"compare": "groups"})
    statistics = part.statistics(dataclasses.replace(it, current=it.proximal))
    # exp(-s / tau) of the right ones .5 and 2; exp(s / tau) of the wrong ones 1 and 1.2.
    assert statistics["sums"].tolist() == [near([2.2, 2.5])]
    loss, metrics = part(dataclasses.replace(it, statistics=statistics))
    # Four sequences in one group that is compared: log 3.5 and log 3.2, times 4.
    assert loss.tolist() == near([4 * 1.252763] * 4 + [4 * 1.163151] * 4)
    assert metrics["compared"].tolist() == [True] * 8
    # With the weights of `sequences`, 1 / (4 * 2), the gradient is that of the published loss of the group.
    (gradient,) = torch.autograd.grad(loss.sum() / 8, it.current)
    mean = (it.current - it.behaviour).view(4, 2).mean(dim=1) / 0.5
    published = torch.log(1 + (-mean[:2]).exp().sum()) + torch.log(1 + mean[2:].exp().sum())
    (expected,) = torch.autograd.grad(published, it.current)
    assert gradient.tolist() == near([-0.142857] * 2 + [-0.571429] * 2 + [0.3125] * 2 + [0.375] * 2)
    assert gradient.tolist() == near(expected.tolist())


def test_real_compares_only_groups_of_both_classes() -> None:
    it = four_rows(group=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    part = registry.make("loss", "real", {"compare": "groups"})
    loss, _ = part(dataclasses.replace(it, statistics=part.statistics(it)))
    assert loss.tolist() == [0.0] * 8


def test_gtpo() -> None:
    entropy = torch.tensor([0.5, 0.5, 0.6, 1.0, 0.0, 0.0, 0.2, 0.6])
    loss, gradient, metrics = run("gtpo", four_rows(entropy=entropy))
    # Mean entropies .5, .8 (dropped), 0 and .4: advantages .95, 0, -1, -2.04; clip at .8 and 1.2.
    assert loss == near([-0.95, -1.14, 0.0, 0.0, 2.0, 0.8, 2.04, 2.448])
    assert gradient == near([-0.95, 0.0, 0.0, 0.0, 2.0, 0.0, 2.04, 2.448])
    assert metrics["entropy_dropped"] == [False, False, True, True, False, False, False, False]
    # The penalty is an advantage, not a term whose gradient lowers entropy.
    leaf = entropy.clone().requires_grad_()
    loss_of = registry.make("loss", "gtpo", {})(four_rows(entropy=leaf))[0]
    assert torch.autograd.grad(loss_of.sum(), leaf, allow_unused=True)[0] is None


def of_batch(kind: str, inputs: LossInputs, **own: Any) -> tuple[Any, LossInputs]:
    """A loss, and its inputs with what it computes of the batch, before its first step."""
    part = registry.make("loss", kind, own)
    return part, dataclasses.replace(inputs, statistics=part.statistics(inputs))


HEIGHTS = torch.tensor([0.125, 0.25, 0.5, 1.0])
"""Entropies; their logs are -3, -2, -1 and 0 log 2, the quantile of .8 is -.6 log 2: h is -1, -1.4 / 2.4, -.4 / 2.4, 1."""


def test_hapo() -> None:
    part, it = of_batch("hapo", four_rows((1.0,) * 4, entropy=HEIGHTS))
    assert part.heights(it).tolist() == near([-1.0, -0.583333, -0.166667, 1.0])
    # Lower widths .4, .316667, .233333, .2; upper .2, .2, .2, .4.
    down = dataclasses.replace(four_rows((0.5,) * 4, entropy=HEIGHTS), statistics=it.statistics)
    down = dataclasses.replace(down, advantage=-torch.ones(4))
    assert part(down)[0].tolist() == near([0.6, 0.683333, 0.766667, 0.8])
    up = dataclasses.replace(four_rows((1.5,) * 4, entropy=HEIGHTS), statistics=it.statistics)
    loss, metrics = part(dataclasses.replace(up, advantage=torch.ones(4)))
    # The trap of the released code: low entropies would be mapped to +[0, 1] and get 1.4 here.
    assert loss.tolist() == near([-1.2, -1.2, -1.2, -1.4])
    assert metrics["clip_high"].tolist() == [True] * 4


def test_hapo_without_differences_is_the_plain_clip() -> None:
    part, it = of_batch("hapo", four_rows(entropy=torch.full((8,), 0.5)))
    plain = run("clipped", four_rows(), clip_high=0.2)[0]
    assert part(it)[0].tolist() == near(plain)


def test_d3s_tokens() -> None:
    entropy = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.3, 0.6, 0.4, 0.05])
    # |A| H: .1, .9, .5, .2, .3, .6, .8, .1: the larger half is tokens 1, 2, 5 and 6; their losses are doubled.
    part, it = of_batch("d3s_tokens", four_rows(entropy=entropy))
    loss, metrics = part(it)
    assert metrics["tokens_kept"].tolist() == [False, True, True, False, False, True, True, False]
    assert loss.tolist() == near([0.0, -2.56, -1.0, 0.0, 0.0, 1.6, 4.0, 0.0])
    everything, it = of_batch("d3s_tokens", four_rows(entropy=entropy), share=1.0)
    assert everything(it)[0].tolist() == near(run("clipped", four_rows(), dual_clip=0.0)[0])


def test_tbrm() -> None:
    normaliser = torch.full((8,), 2.0, requires_grad=True)
    it = four_rows(logsumexp=normaliser, reference=torch.full((8,), -1.0))
    loss, metrics = registry.make("loss", "tbrm", {})(it)
    # Sums of log ratios log 2, -log 2, 0, log 1.2; the first token's normaliser 2; less the score.
    assert metrics["residual"].tolist() == near([1.693147] * 2 + [0.306853] * 2 + [2.0] * 2 + [2.182322] * 2)
    assert loss.tolist() == near([2.866747] * 2 + [0.094159] * 2 + [4.0] * 2 + [4.762529] * 2)
    to_current, to_normaliser = torch.autograd.grad(loss.sum(), (it.current, normaliser))
    expected = [6.772589] * 2 + [1.227411] * 2 + [8.0] * 2 + [8.729286] * 2
    assert to_current.tolist() == pytest.approx(expected, abs=1e-5)
    # The raw logit of the first token alone: no normaliser of a later one.
    assert to_normaliser.tolist() == pytest.approx([6.772589, 0, 1.227411, 0, 8, 0, 8.729286, 0], abs=1e-5)
    assert run("tbrm", dataclasses.replace(it, advantage=torch.zeros(8)))[0] == loss.tolist()


def test_the_residual_of_tbrm_is_zero_at_the_best_policy() -> None:
    # One token of three: logits log reference + reward / beta are the optimum of reward less beta times divergence.
    score = torch.tensor([1.0, 0.0, 0.25])
    logits = OTHER.log_softmax(0) + score / 0.5
    it = four_rows((1.0, 1.0, 1.0), score=score, sequence=torch.arange(3), reference=OTHER.log_softmax(0))
    it = dataclasses.replace(it, current=logits.log_softmax(0), logsumexp=logits.logsumexp(0).expand(3))
    loss, _ = registry.make("loss", "tbrm", {"beta": 0.5})(it)
    assert loss.tolist() == near([0.0, 0.0, 0.0])


def test_distillation() -> None:
    ahead = torch.tensor([0.5, -0.5, 0.2, 0.0, 1.0, -1.0, 9.0, 0.1])
    it = four_rows(teacher=-1.0 + ahead)
    loss, _, metrics = run("distillation", it)
    # Advantages are those, the 9 held at 5; ratios clipped at .8 and 1.28.
    assert loss == near([-0.5, 1.0, -0.1, 0.0, -1.28, 0.8, -5.0, -0.12])
    assert metrics["teacher_divergence"] == near((-ahead).tolist())
    both = run("distillation", it, reward=1.0)[0]
    assert both[3] == pytest.approx(-1.0), "where the teacher agrees, the reward's advantage is left"
    with pytest.raises(DataError, match="needs the log-probabilities of a teacher"):
        run("distillation", four_rows())


def test_distillation_has_the_gradient_of_the_divergence_from_the_teacher() -> None:
    logits = POLICY.clone().requires_grad_()
    current, teacher = logits.log_softmax(0), OTHER.log_softmax(0)
    old = current.detach()
    it = four_rows((1.0,) * 3, current=current, proximal=old, behaviour=old, teacher=teacher)
    loss, _ = registry.make("loss", "distillation", {})(it)
    (gradient,) = torch.autograd.grad((old.exp() * loss).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((current.exp() * (current - teacher)).sum(), logits)
    assert gradient.tolist() == near(expected.tolist())


def test_k2_and_k3_have_the_gradients_that_they_are_named_for() -> None:
    logits = POLICY.clone().requires_grad_()
    current, other = logits.log_softmax(0), OTHER.log_softmax(0)
    chance = current.exp().detach()  # the expectation over tokens that `current` samples, exactly

    def gradient(values: Any) -> list[float]:
        return torch.autograd.grad(values, logits, retain_graph=True)[0].tolist()

    reverse = (current.exp() * (current - other)).sum()
    forward = (other.exp() * (other - current)).sum()
    assert gradient((chance * k2(current, other)).sum()) == near(gradient(reverse))
    assert gradient((chance * k3(current, other)).sum()) == near(gradient(forward))
    assert gradient((chance * (current - other)).sum()) == near([0.0, 0.0, 0.0]), (
        "k1 in the loss does nothing"
    )
    assert gradient(reverse) != near(gradient(forward))


def test_k1_in_the_reward_has_the_gradient_of_the_divergence_of_sequences() -> None:
    # Two tokens of two values each; the second depends on the first. All four sequences, exactly.
    logits = torch.tensor([[0.4, -0.3], [0.9, 0.1], [-0.6, 0.2]], requires_grad=True)
    table, other = logits.log_softmax(1), torch.tensor([[0.0, 0.3], [-0.5, 0.5], [0.2, 0.2]]).log_softmax(1)
    cases = [(a, b) for a in (0, 1) for b in (0, 1)]

    def of(policy: Any) -> Any:
        return torch.stack([policy[row, value] for a, b in cases for row, value in ((0, a), (1 + a, b))])

    current = of(table)
    old = current.detach()
    it = four_rows(
        current=current, proximal=old, behaviour=old, reference=of(other), advantage=torch.zeros(8)
    )
    chance = old.view(4, 2).sum(1).exp().repeat_interleave(2)
    taken = with_divergence(it, 1.0).advantage
    (gradient,) = torch.autograd.grad((-chance * taken * current).sum(), logits, retain_graph=True)
    whole = current.view(4, 2).sum(1)
    divergence = (whole.exp() * (whole - of(other).view(4, 2).sum(1))).sum()
    (expected,) = torch.autograd.grad(divergence, logits)
    assert gradient.flatten().tolist() == near(expected.flatten().tolist())


OWN: dict[str, dict[str, Any]] = {
    "gtpo": {"limit": 9.0},
    "distillation": {"reward": 1.0},  # a teacher of the same weights has nothing to teach
    "score_centering": {"behaviour_top_k": 3},
}


@pytest.mark.parametrize("kind", registry.kinds("loss"))
@pytest.mark.parametrize("mini_batch", [64, 2])
def test_a_learner_learns_with_every_loss(
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    model_folder: Path,
    kind: str,
    mini_batch: int,
) -> None:
    grouped = [
        dataclasses.replace(one, group=at // 2, reward=float(at % 2)) for at, one in enumerate(episodes)
    ]
    own = OWN.get(kind, {})
    if kind == "real" and mini_batch == 2:
        own = {"compare": "groups"}
    learner = make_learner(kind=kind, own=own, mini_batch=mini_batch, teacher=str(model_folder))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    metrics = learner.step(grouped, advantages)
    assert math.isfinite(metrics.loss)
    moved = [not torch.equal(old, new) for old, new in zip(before, learner.model.parameters(), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("kind", [kind for kind in registry.kinds("loss") if kind != "cross_entropy"])
def test_every_loss_tells_right_from_wrong(
    make_learner: Callable[..., Learner], episodes: list[Episode], model_folder: Path, kind: str
) -> None:
    """On the policy's own likelihoods right answers gain on wrong ones, whatever a loss makes of them.

    Cross entropy is left out: it has no advantages, and makes everything likelier.
    """
    own = OWN.get(kind, {})
    learner = make_learner(kind=kind, own=own, teacher=str(model_folder), learning_rate=1e-3)
    rewarded = [dataclasses.replace(one, reward=float(at % 2)) for at, one in enumerate(episodes)]
    batch = [on_policy(one, of) for one, of in zip(rewarded, learner.score(rewarded), strict=True)]

    def lead() -> float:
        likely = [
            sum(float(part.sum()) for part in of) / one.num_sampled
            for one, of in zip(batch, learner.score(batch), strict=True)
        ]
        return sum(likely[1::2]) / len(likely[1::2]) - sum(likely[::2]) / len(likely[::2])

    before = lead()
    for _ in range(3):
        learner.step(batch, [2.0 * one.score - 1.0 for one in batch])
    assert lead() > before + 1e-3


def on_policy(episode: Episode, logprobs: list[Any]) -> Episode:
    """The episode as the learner itself would have sampled it."""
    segments = [
        dataclasses.replace(segment, logprobs=array("f", values.clip(max=0.0).tolist()))
        for segment, values in zip(episode.segments, logprobs, strict=True)
    ]
    return dataclasses.replace(episode, segments=tuple(segments))
