"""Ranks that share each sequence (gloo) against one learner in this process: scores, losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from agentrl.config.ranges import check_ranges
from agentrl.config.settings import AdapterSettings, LearnerSettings, LossSettings, ModelSettings
from agentrl.episode import Episode
from agentrl.errors import ConfigError
from agentrl.learner.batch import build_sequences, pack
from agentrl.learner.learner import Learner
from agentrl.learner.process import LearnerProcesses
from agentrl.learner.sequence_split import SequenceSplit
from benchmarks.tiny_config import tiny_config

FIRST_BETA = 0.9


def start(folder: Path, ranks: int, together: int, loss: LossSettings, **settings: Any) -> LearnerProcesses:
    return LearnerProcesses(
        ModelSettings(path=str(folder), device="cpu", threads=1),
        LearnerSettings(**settings, place="process", ranks=ranks, sequence_parallel=together),
        loss,
        limit_s=200.0,
    )


def gradients(folder: Path) -> dict[str, Any]:
    """Those of the first step, which AdamW's first moments are a tenth of; from the parts of all ranks."""
    from agentrl.learner.checkpoint import Saved

    saved = Saved.open(folder)
    moments = {
        name: torch.zeros(shape) for name, shape in saved.shapes.items() if name.startswith("exp_avg:")
    }
    saved.read_into(moments)
    return {name.removeprefix("exp_avg:"): moment / (1 - FIRST_BETA) for name, moment in moments.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads and two of keys, so that four ranks have to repeat keys and two have not."""
    path = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = tiny_config(heads=4, key_heads=2, head=8, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("ranks", "together", "more", "loss"),
    [
        # Two groups, recomputed activations, a loss over whole sequences and an entropy term.
        (
            4,
            2,
            {"gradient_checkpointing": True},
            LossSettings(kind="gspo", entropy_coefficient=0.01, own={}),
        ),
        # Each rank has one head, and keys are repeated; an adapter.
        (4, 4, {"adapter": AdapterSettings(rank=2)}, LossSettings()),
    ],
    ids=["two-of-four", "four"],
)
def test_ranks_that_share_sequences_learn_what_one_learns(
    ranks: int,
    together: int,
    more: dict[str, Any],
    loss: LossSettings,
    folder: Path,
    episodes: list[Episode],
    advantages: list[float],
    tmp_path: Path,
) -> None:
    # Micro-batches of one and of several sequences, some of an odd number of tokens, and more groups than batches.
    shared = {"learning_rate": 1e-3, "micro_batch_tokens": 24, "max_grad_norm": 0.0, **more}
    one = Learner(ModelSettings(path=str(folder), device="cpu"), LearnerSettings(**shared), loss)
    with start(folder, ranks, together, loss, **shared) as several:
        for expected, found in zip(one.score(episodes), several.score(episodes), strict=True):
            assert found[0].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)
        expected = one.step(episodes, advantages, clock_tokens=20)
        found = several.step(episodes, advantages, clock_tokens=20)
        for name in ("loss", "entropy", "drift", "effective_share", "kl_proximal"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5), name
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert (found.tokens_learned, found.tokens_read) == (expected.tokens_learned, expected.tokens_read)
        one.save(tmp_path / "one")
        several.save(tmp_path / "several")
        # Another step from there: the weights were stepped alike.
        again, once = several.step(episodes, advantages), one.step(episodes, advantages)
        assert again.loss == pytest.approx(once.loss, abs=1e-4)
    wanted, got = gradients(tmp_path / "one"), gradients(tmp_path / "several")
    assert set(got) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    assert (
        max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-2
    )  # there is something to compare


def test_heads_that_cannot_be_shared_out() -> None:
    split: Any = SequenceSplit(0, 3, group=cast("Any", None))
    split.check(6, "model")
    with pytest.raises(
        ConfigError, match="sequence_parallel = 3 does not divide the 8 attention heads .*: 2, 4, 8$"
    ):
        split.check(8, "model")


def test_a_part_of_a_row_by_hand(make_episode: Callable[..., Episode]) -> None:
    # Inputs of 4 and 2 tokens in one row, and a sequence of one to fill it up; targets after inputs 1 to 3, 4 and 5.
    rows = build_sequences(
        [make_episode(0, prompt=2, turns=((3, 0),)), make_episode(1, prompt=1, turns=((2, 0),))]
    )
    micro = pack(rows, [0, 1])
    parts = [SequenceSplit(rank, 7, group=cast("Any", None)).part(micro) for rank in range(7)]
    assert [part.input_ids.tolist() for part, _ in parts] == [
        *([[it]] for it in micro.input_ids[0].tolist()),
        [[0]],
    ]
    assert {part.lengths for part, _ in parts} == {(4, 2, 1)}
    assert [sizes for _, sizes in parts] == [(0, 1, 1, 1, 1, 1, 0)] * 7
    parts = [SequenceSplit(rank, 2, group=cast("Any", None)).part(micro)[0] for rank in range(2)]
    assert [part.columns.tolist() for part in parts] == [[1, 2], [0, 1, 2]]
    assert [*parts[0].targets, *parts[1].targets] == micro.targets.tolist()
    assert parts[0].lengths == (4, 2)


def test_settings_that_do_not_go_together() -> None:
    for wrong, text in (
        ({"ranks": 3, "sequence_parallel": 2}, "does not divide learner.ranks = 3"),
        ({"ranks": 2, "sequence_parallel": 2, "compile": True}, "compile = true does not go with"),
        ({"ranks": 2, "sequence_parallel": 2, "packing": "off"}, "packing = 'off' does not go with"),
    ):
        with pytest.raises(ConfigError, match=text):
            check_ranges(LearnerSettings(place="process", **wrong), "learner")
