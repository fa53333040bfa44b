"""Score centering: the expected gradient under the sampler is zero, and where its numbers come from."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import registry
from agentrl.episode import Episode, Segment, SegmentBuilder, StopReason
from agentrl.errors import DataError
from agentrl.learner.batch import build_sequences
from agentrl.learner.losses.centering import centering
from agentrl.learner.losses.clipped import LossInputs

MODES = ("off", "truncate", "bound", "mask", "both")
Q, P = (0.7, 0.2, 0.06, 0.04), (0.4, 0.3, 0.2, 0.1)


def inputs(logits: Any, q: Any, sampled: int, top: list[int]) -> LossInputs:
    """One token of one sequence, sampled from q; the learner has the logits."""
    log_p = torch.log_softmax(logits, -1)
    current = log_p[sampled][None]
    zeros = torch.zeros(1)
    nothing = {name: zeros.long() for name in ("sequence", "position", "segment", "turn")}
    return LossInputs(
        current=current,
        proximal=current.detach(),
        behaviour=q.log()[sampled][None],
        advantage=torch.ones(1),
        entropy=zeros,
        logsumexp=zeros,
        behaviour_top_ids=torch.tensor([top]),
        behaviour_top=q.log()[top][None],
        current_at_top=log_p[top][None],
        **nothing,
    )


def expected_gradient(kind: str, p: Any, q: Any, top: list[int], **own: Any) -> Any:
    """[V] of the logits, over tokens sampled from q, all of advantage 1."""
    loss, total = registry.make("loss", kind, own), torch.zeros(len(p))
    for sampled, share in enumerate(q):
        logits = p.log().clone().requires_grad_()
        value, _ = loss(inputs(logits, q, sampled, top))
        total += share * torch.autograd.grad(value.sum(), logits)[0]
    return total


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_advantage_moves_nothing_over_the_full_vocabulary(mode: str) -> None:
    p, q, everything = torch.tensor(P), torch.tensor(Q), [0, 1, 2, 3]
    moved = expected_gradient("score_centering", p, q, everything, importance=mode)
    assert moved.abs().max() < 2e-6
    # Without the term it moves: by p - q where nothing is weighted.
    drift = expected_gradient("clipped", p, q, everything, importance=mode)
    assert drift.abs().max() > 0.01
    if mode == "off":
        assert drift.tolist() == pytest.approx([-0.3, 0.1, 0.14, 0.06], abs=1e-6)


@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.sampled_from(MODES),
)
def test_the_expectation_is_zero_for_any_two_policies(one: list[float], two: list[float], mode: str) -> None:
    p, q = torch.softmax(torch.tensor(one), 0), torch.softmax(torch.tensor(two), 0)
    assert expected_gradient("score_centering", p, q, list(range(6)), importance=mode).abs().max() < 1e-5


def test_a_tail_like_the_learners_needs_no_more_than_the_head() -> None:
    # Outside of {0, 1} q is half of p everywhere: what the term takes q to be is what it is.
    p, q = torch.tensor([0.3, 0.3, 0.2, 0.2]), torch.tensor([0.5, 0.3, 0.1, 0.1])
    assert expected_gradient("score_centering", p, q, [0, 1], importance="off").abs().max() < 1e-6
    assert expected_gradient("score_centering", p, q, [0, 1], importance="truncate").abs().max() < 1e-6


def test_coefficients_by_hand() -> None:
    # H = {0}: q = .7, p = .4, so rho = .3 / .6 = .5.
    log_p, log_q = torch.tensor([[math.log(0.4)]], requires_grad=True), torch.tensor([[math.log(0.7)]])

    def coefficient(mode: Any, low: float = 0.0, high: float = 1e9) -> float:
        value = centering(log_p, log_q, mode, low=low, high=high)
        return float(torch.autograd.grad(value.sum(), log_p)[0])

    assert coefficient("off") == pytest.approx(0.7 - 0.5 * 0.4)  # unweighted: m = q, alpha = rho
    assert coefficient("truncate") == pytest.approx(0.0, abs=1e-6)  # a weight without bounds centres itself
    # w = clamp(p / q = .571, .8, 1.2) = .8: m = .56; in the tail 1 / rho = 2 is bounded at 1.2: alpha = .6.
    assert coefficient("bound", 0.8, 1.2) == pytest.approx(0.56 - 0.6 * 0.4)
    assert coefficient("mask", 0.8, 1.2) == 0.0  # both are outside
    assert coefficient("both", 0.5, 1.2) == pytest.approx(0.4)  # the head keeps p, the tail is dropped


def test_the_sampled_token_counts_only_among_the_likeliest() -> None:
    p, q = torch.tensor(P), torch.tensor(Q)
    loss = registry.make("loss", "score_centering", {"importance": "off"})
    found = [float(loss(inputs(p.log(), q, sampled, [0, 1]))[1]["centre"]) for sampled in range(4)]
    # rho = .1 / .3; (.7 - .4 rho) log .4 + (.2 - .3 rho) log .3, whichever token was sampled.
    assert found == pytest.approx([0.566667 * math.log(0.4) + 0.1 * math.log(0.3)] * 4, abs=1e-5)


def segment(top: int, *messages: int) -> Segment:
    """Messages of so many tokens; the likeliest tokens at each place are numbered on."""
    builder, count = SegmentBuilder(), 0
    for length in messages:
        builder.append_given([1, 2])
        ids = list(range(count * top, (count + length) * top))
        builder.append_sampled([3] * length, [-1.0] * length, [0] * length, ids, [-float(i) for i in ids])
        count += length
    return builder.build()


def episode(*segments: Segment) -> Episode:
    return Episode("e", 0, "p", segments, (), 1.0, StopReason.ANSWERED, 0, 1.0)


def test_the_likeliest_tokens_reach_the_sequences_and_survive_the_disk() -> None:
    one = episode(segment(2, 2, 1))
    again = Episode.from_json(one.to_json())
    assert again == one
    assert again.segments[0].top_k == 2
    (it,) = build_sequences([again], top=2)
    assert it.top_ids.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert it.top_logprobs.tolist() == [[0.0, -1.0], [-2.0, -3.0], [-4.0, -5.0]]
    assert build_sequences([one], top=1)[0].top_ids.tolist() == [[0], [2], [4]]
    assert build_sequences([one])[0].top_ids.shape == (3, 0)
    assert "top_ids" not in episode(segment(0, 2)).to_json()["segments"][0]  # as it was before


def test_tokens_shared_by_segments_take_their_likeliest_along() -> None:
    first, longer = segment(1, 2), segment(1, 2, 2)
    _, rest = build_sequences([episode(first, longer)], top=1)
    assert rest.top_ids.tolist() == [[2], [3]]


def test_missing_likeliest_tokens_are_refused() -> None:
    with pytest.raises(DataError, match=r"the 3 likeliest tokens of the sampler.*and 2 were recorded"):
        build_sequences([episode(segment(2, 2))], top=3)
    with pytest.raises(DataError, match="3 likeliest tokens came with 4"):
        Segment([1, 2], b"\x00\x01", [0, -1], [-1, 0], top_ids=[1, 2, 3], top_logprobs=[-1.0] * 4)  # type: ignore[arg-type]
    builder = SegmentBuilder()
    builder.append_given([1])
    builder.append_sampled([2, 3], [-1.0] * 2, [0] * 2, [5, 6, 7, 8], [-1.0] * 4)
    builder.append_sampled([2], [-1.0], [0])
    with pytest.raises(DataError, match="each of those needs the same number"):
        builder.build()


def test_only_a_loss_that_declares_it_asks_for_them(tmp_path: Any) -> None:
    assert registry.behaviour_top_k("clipped", {}) == 0
    assert registry.behaviour_top_k("score_centering", {}) == 20
    assert registry.behaviour_top_k("score_centering", {"behaviour_top_k": 4}) == 4
    own = tmp_path / "own.py"
    own.write_text("class Own:\n    requires = ('behaviour_top',)\n")
    assert registry.behaviour_top_k(f"{own}:Own", {}) == 20


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_learner_reads_them_at_the_temperature_of_the_episode(make_learner: Any, packing: str) -> None:
    learner = make_learner(
        kind="score_centering", own={"behaviour_top_k": 61, "importance": "off"}, packing=packing
    )
    seen: list[LossInputs] = []
    loss = learner._objective._loss
    learner._objective._loss = lambda given: seen.append(given) or loss(given)
    everything = np.arange(61, dtype=np.int32)
    flat = array("f", [math.log(1 / 61)] * 61)
    built = []
    for number, temperature in enumerate((1.0, 0.5)):
        builder = SegmentBuilder()
        builder.append_given([5, 6 + number])
        for token in (7, 8):
            builder.append_sampled([token], [math.log(1 / 61)], [0], everything.tolist(), flat)
            builder.append_given([9])
        built.append(
            Episode(
                f"e{number}", number, "p", (builder.build(),), (), 1.0, StopReason.ANSWERED, 0, temperature
            )
        )
    metrics = learner.step(built, [1.0, -1.0])
    assert metrics.of_loss["top_mass"] == pytest.approx(1.0, abs=1e-5)
    for shown in seen:
        assert shown.current_at_top is not None
        # Over the whole vocabulary, after temperature: they add up to 1, and hold the sampled token's own.
        torch.testing.assert_close(shown.current_at_top.exp().sum(-1), torch.ones(len(shown.current)))
        sampled = torch.tensor([[7], [8]] * (len(shown.current) // 2))
        torch.testing.assert_close(shown.current_at_top.gather(1, sampled)[:, 0], shown.current)
