"""The learner on a GPU: the numbers of the CPU, bfloat16, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.learner.learner import Learner
from agentrl.learner.process import LearnerProcesses
from benchmarks.tiny_config import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

VOCABULARY = 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden": 128, "inner": 256, "layers": 4, "heads": 4, "key_heads": 2, "head": 32}
    config = tiny_config(vocabulary=VOCABULARY, context=4096, initializer_range=0.1, **sizes)
    path = tmp_path_factory.mktemp("model")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    random = np.random.default_rng(0)
    result = []
    for number in range(12):
        builder = SegmentBuilder()
        for given, sampled in ((20, 30 + 15 * number), (40, 25)):
            builder.append_given(random.integers(0, VOCABULARY, given).tolist())
            ids = random.integers(0, VOCABULARY, sampled).tolist()
            builder.append_sampled(ids, [-6.0] * sampled, [0] * sampled)
        reason = StopReason.ANSWERED
        result.append(
            Episode(f"e{number}", number, f"p{number}", (builder.build(),), (), 1.0, reason, 0, 1.0)
        )
    return result


ADVANTAGES = np.random.default_rng(1).normal(size=12)


def make(folder: Path, device: str, dtype: str = "float32", **settings: Any) -> Learner:
    defaults: dict[str, Any] = {"learning_rate": 1e-4, "mini_batch": 6, "micro_batch_tokens": 1024}
    model = ModelSettings(path=str(folder), device=device, dtype=dtype)  # type: ignore[arg-type]
    return Learner(model, LearnerSettings(**(defaults | settings)))


def test_the_gpu_learns_what_the_cpu_learns(folder: Path, episodes: list[Episode]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    one, two = make(folder, "cpu"), make(folder, "cuda")
    for expected, found in zip(one.score(episodes), two.score(episodes), strict=True):
        assert np.abs(expected[0] - found[0]).max() < 1e-3
    expected, found = (it.step(episodes, ADVANTAGES, clock_tokens=200) for it in (one, two))
    for name in ("loss", "grad_norm", "entropy", "drift", "effective_share"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.02), name
    assert found.peak_memory_mb > 0


def test_bfloat16_is_near_float32(folder: Path, episodes: list[Episode]) -> None:
    exact, rounded = make(folder, "cuda"), make(folder, "cuda", "bfloat16")
    difference = np.concatenate(
        [a[0] - b[0] for a, b in zip(exact.score(episodes), rounded.score(episodes), strict=True)]
    )
    assert np.abs(difference).mean() < 0.05
    lengths = [it.step(episodes, ADVANTAGES).grad_norm for it in (exact, rounded)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_clock_stands_still_at_learning_rate_zero(
    folder: Path, episodes: list[Episode], dtype: str
) -> None:
    learner = make(folder, "cuda", dtype, learning_rate=0.0)
    assert learner.step(episodes, ADVANTAGES, clock_tokens=200).drift == 0.0


def test_saved_and_loaded_it_goes_on(folder: Path, episodes: list[Episode], tmp_path: Path) -> None:
    learner = make(folder, "cuda", "bfloat16", gradient_checkpointing=True)
    learner.step(episodes, ADVANTAGES)
    learner.save(tmp_path)
    other = make(folder, "cuda", "bfloat16", gradient_checkpointing=True)
    other.load(tmp_path)
    first, second = (it.step(episodes, ADVANTAGES) for it in (learner, other))
    assert second.loss == pytest.approx(first.loss, rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks(folder: Path, episodes: list[Episode]) -> None:
    settings = LearnerSettings(learning_rate=1e-4, mini_batch=6, place="process", ranks=2)
    one = make(folder, "cuda").step(episodes, ADVANTAGES)
    with LearnerProcesses(ModelSettings(path=str(folder)), settings) as pair:
        two = pair.step(episodes, ADVANTAGES)
    assert two.loss == pytest.approx(one.loss, rel=0.02)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=0.02)
