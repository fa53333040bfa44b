"""Sequences in one row: the same numbers as padded, and no token sees another sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.learner.batch import balance, build_sequences, pack
from agentrl.learner.flops import Flops
from benchmarks.tiny_config import tiny_config


def test_two_sequences_end_to_end(make_episode) -> None:
    sequences = build_sequences(
        [
            make_episode(0, prompt=2, turns=((3, 0),)),
            make_episode(1, prompt=1, turns=((2, 0),), temperature=0.5),
        ]
    )
    it = pack(sequences, [1, 0])
    # Inputs of the second (2 tokens), then those of the first (4): the last target is never an input.
    assert it.input_ids.tolist() == [[*sequences[1].token_ids, *sequences[0].token_ids]]
    assert it.lengths == (2, 4)
    assert it.rows.tolist() == [0] * 5
    # Targets at positions 1, 2 of the second and 2, 3, 4 of the first, which begins at column 2.
    assert it.columns.tolist() == [0, 1, 3, 4, 5]
    assert it.temperature.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert (it.sequences, it.counts) == ((1, 0), (2, 3))


def test_micro_batches_of_hand_made_lengths_are_even() -> None:
    # 20 tokens, 10 at most: two parts. Longest first: 8 | 6, then 4 to the 6, then 2 to the 8. Both hold 10.
    assert balance([8, 6, 4, 2], 10, ranks=1, even_at=1e9) == [[0, 3], [1, 2]]
    # Attention counts too: at even_at = 8 a sequence of 8 costs 16, one of 4 costs 6, so it stands alone.
    assert balance([8, 4, 4, 4], 12, ranks=1, even_at=8.0) == [[1, 2, 3], [0]]
    assert balance([30], 10, ranks=1, even_at=1e9) == [[0]]
    # There must be memory for 30 tokens: the other rank learns from as many, instead of 10, while it waits.
    assert balance([30, 8, 8, 8], 10, ranks=2, even_at=1e9) == [[0], [1, 2, 3]]
    assert balance([], 10, ranks=4, even_at=1e9) == []


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=60),
    st.integers(1, 120),
    st.integers(1, 5),
    st.floats(1.0, 1e6),
)
def test_balanced_parts_hold_everything_once_within_the_bound(lengths, bound, ranks, even_at) -> None:
    parts = balance(lengths, bound, ranks, even_at)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    bound = max(bound, *lengths)
    assert all(sum(lengths[index] for index in part) <= bound for part in parts)
    costs = [sum(lengths[i] * (1 + lengths[i] / even_at) for i in part) for part in parts]
    assert costs == sorted(costs, reverse=True)


def test_ranks_idle_less_than_a_twentieth_on_heavy_tailed_lengths() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.exponential(600, 256), 40, 4096).astype(int).tolist()
    parts = balance(lengths, 16384, ranks=4, even_at=8192.0)
    costs = [sum(lengths[i] * (1 + lengths[i] / 8192.0) for i in part) for part in parts]
    rounds = [costs[at : at + 4] for at in range(0, len(costs), 4)]
    spent = sum(4 * max(part) for part in rounds)
    assert 1 - sum(costs) / spent < 0.05


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_padded(make_model, make_learner, episodes, advantages, tmp_path, kind, checkpointing):
    folder = make_model(tmp_path, kind)
    shared = {"mini_batch": 3, "micro_batch_tokens": 40, "gradient_checkpointing": checkpointing}
    one, two = (make_learner(folder, packing=packing, **shared) for packing in ("off", "on"))
    for expected, found in zip(one.score(episodes), two.score(episodes), strict=True):
        np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    expected, found = (it.step(episodes, advantages, clock_tokens=20) for it in (one, two))
    assert found.padding_share == 0.0 < expected.padding_share
    for name in ("loss", "entropy", "drift"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5), name
    assert found.grad_norm == pytest.approx(expected.grad_norm, abs=1e-4)
    for (name, a), (_, b) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=2e-4, rtol=1e-3, msg=name)


def test_a_neighbour_in_the_row_changes_nothing(make_learner, make_episode) -> None:
    learner = make_learner(packing="on", micro_batch_tokens=1000)
    subject = make_episode(0, prompt=5, turns=((6, 2), (4, 0)))
    alone = learner.score([subject])[0][0]
    for neighbour in (make_episode(1, prompt=3), make_episode(2, prompt=40, turns=((30, 0),))):
        beside = learner.score([neighbour, subject])[1][0]
        np.testing.assert_allclose(beside, alone, atol=1e-6)


def test_a_model_that_looks_across_tokens_in_its_own_way_is_padded_or_refused(make_learner, tmp_path) -> None:
    config = tiny_config("mistral", sliding_window=4096, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"learner.packing = 'on' is not for the model .*do not all attend"):
        make_learner(tmp_path, packing="on")
    assert make_learner(tmp_path, packing="auto").step


def test_operations_counted_by_hand(model_folder: Path) -> None:
    flops = Flops.of(transformers.AutoConfig.from_pretrained(model_folder))
    assert flops is not None
    # A layer: attention 32 x 16 x (2 x 2 + 2 x 1) = 3,072; MLP 3 x 32 x 48 = 4,608; norms 2 x 32 + 2 x 16.
    assert flops.token == 2 * 2 * (3072 + 4608 + 96)
    assert flops.pair == 4 * 2 * 2 * 16
    assert flops.target == 2 * 61 * 32
    # 2 x 31,104 of matrices against 256 a pair, half of the pairs causal: even at 243 tokens.
    assert flops.even_at == 2 * 31104 / 256
