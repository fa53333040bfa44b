import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agentrl.inference.embedded.token_sampling import SamplingRows, sample_tokens, stream_key, uniforms


def rows(*settings):
    """Rows of (temperature, top_k, top_p)."""
    temperatures, top_k, top_p = zip(*settings, strict=True)
    return SamplingRows.make(
        np.array(temperatures, dtype=np.float32),
        np.array(top_k, dtype=np.int64),
        np.array(top_p, dtype=np.float32),
        torch.device("cpu"),
    )


def sample(probabilities, settings, randoms):
    logits = torch.tensor(probabilities, dtype=torch.float64).log().float()
    tokens, logprobs, *_ = sample_tokens(logits, rows(*settings), np.array(randoms))
    return tokens, [round(math.exp(x), 5) for x in logprobs]


def test_a_uniform_number_picks_the_token_whose_share_of_the_line_holds_it():
    p = [[0.5, 0.25, 0.25]] * 4
    tokens, shares = sample(p, [(1.0, 0, 1.0)] * 4, [0.0, 0.499, 0.501, 0.999])
    assert tokens == [0, 0, 1, 2]
    assert shares == [0.5, 0.5, 0.25, 0.25]


def test_temperature_is_applied_before_the_probability_is_told():
    # Squared and normalised at temperature 1/2: 0.25 and 0.0625 twice, so 2/3 and 1/6 twice.
    _, shares = sample([[0.5, 0.25, 0.25]], [(0.5, 0, 1.0)], [0.1])
    assert shares == [0.66667]


def test_top_k_keeps_k_and_shares_their_mass():
    p = [[0.1, 0.4, 0.2, 0.3]] * 3
    tokens, shares = sample(p, [(1.0, 2, 1.0)] * 3, [0.0, 0.56, 0.58])
    assert tokens == [1, 1, 3]
    assert shares == [0.57143, 0.57143, 0.42857]


def test_top_p_keeps_the_fewest_tokens_that_reach_it_and_never_none():
    p = [[0.1, 0.4, 0.2, 0.3]] * 3
    tokens, shares = sample(p, [(1.0, 0, 0.65), (1.0, 0, 0.75), (1.0, 0, 1e-9)], [0.999] * 3)
    assert tokens == [3, 3, 1]
    assert shares == [0.42857, 0.33333, 1.0]


def test_top_p_acts_on_what_top_k_left():
    # Of 4/7 and 3/7 the first already reaches 0.5; without top-k 0.4 would not.
    tokens, shares = sample([[0.1, 0.4, 0.2, 0.3]], [(1.0, 2, 0.5)], [0.99])
    assert (tokens, shares) == ([1], [1.0])


def test_greedy_rows_stand_beside_sampled_ones():
    p = [[0.1, 0.6, 0.3]] * 2
    tokens, shares = sample(p, [(0.0, 1, 0.1), (1.0, 0, 1.0)], [0.01, 0.01])
    assert tokens == [1, 0]
    assert shares == [0.6, 0.1]


@pytest.mark.parametrize("vocabulary", [50, 4500])
def test_sampled_shares_are_those_of_the_distribution(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(vocabulary, generator=generator) * 3
    draws = 4000
    keys = np.full(draws, stream_key(1), dtype=np.uint64)
    randoms = uniforms(keys, np.arange(draws, dtype=np.uint64))
    counts = np.zeros(vocabulary)
    for chunk in np.split(randoms, 20):
        batch = logits.expand(len(chunk), -1).clone()
        tokens, logprobs, *_ = sample_tokens(batch, rows(*[(1.0, 0, 1.0)] * len(chunk)), chunk)
        np.add.at(counts, tokens, 1)
        assert all(math.isfinite(x) for x in logprobs)
    wanted = torch.softmax(logits.double(), 0).numpy()
    top = np.argsort(wanted)[::-1][:8]
    errors = np.abs(counts[top] / draws - wanted[top]) / np.sqrt(wanted[top] / draws)
    assert errors.max() < 4.0


@pytest.mark.parametrize("vocabulary", [300, 5000])
def test_impossible_tokens_are_never_sampled(vocabulary):
    logits = torch.full((6, vocabulary), float("-inf"))
    logits[:, 257] = 0.0
    logits[:, 259] = 0.0
    tokens, logprobs, *_ = sample_tokens(
        logits, rows(*[(1.0, 0, 1.0)] * 6), np.array([0.0, 0.4999, 0.5, 0.5001, 0.9, 1 - 2**-52])
    )
    assert tokens == [257, 257, 259, 259, 259, 259]
    assert logprobs == pytest.approx([-math.log(2)] * 6)


def test_rows_that_are_not_finite_are_told_by_their_log_probability():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 0.0]])
    tokens, logprobs, *_ = sample_tokens(logits, rows(*[(1.0, 0, 1.0)] * 2), np.array([0.3, 0.3]))
    assert not math.isfinite(logprobs[0])
    assert logprobs[1] == pytest.approx(-math.log(2))
    assert all(0 <= token < 2 for token in tokens)


def test_streams_are_pure_functions_of_seed_and_place():
    keys = np.array([stream_key(s) for s in (0, 1, 2**63, 0)], dtype=np.uint64)
    places = np.array([5, 5, 5, 5], dtype=np.uint64)
    one = uniforms(keys, places)
    assert one[0] == one[3]
    assert len(set(one)) == 3
    assert ((one >= 0) & (one < 1)).all()
    many = uniforms(np.full(100_000, keys[0]), np.arange(100_000, dtype=np.uint64))
    assert abs(many.mean() - 0.5) < 0.004
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.015


def test_the_likeliest_tokens_are_those_of_the_distribution_sampled_from():
    logits = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]).log()
    found = sample_tokens(logits, rows((1.0, 0, 1.0), (0.5, 0, 1.0)), np.array([0.0, 0.99]), 2)
    assert found.tokens == [0, 2]  # the first is none of the two likeliest of its row
    assert found.top_ids.tolist() == [[1, 2], [0, 2]]
    # At temperature one half probabilities are squared: .25, .04, .09, over .38.
    np.testing.assert_allclose(
        np.exp(found.top_logprobs), [[0.6, 0.3], [0.25 / 0.38, 0.09 / 0.38]], rtol=1e-5
    )
