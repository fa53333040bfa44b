"""Tiny random models, built from a configuration, and random episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from agentrl.config.settings import LearnerSettings, LossSettings, ModelSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.learner.learner import Learner
from agentrl.learner.losses.clipped import ClippedLoss
from benchmarks.tiny_config import tiny_config

VOCABULARY = 61
CLIPPED = {field.name for field in fields(ClippedLoss.Settings)}


def make_model(folder: Path, kind: str = "qwen3", *, tied: bool = False) -> Path:
    torch.manual_seed(0)
    # Weights larger than usual, so that the policy is far from uniform.
    config = tiny_config(kind, vocabulary=VOCABULARY, tie_word_embeddings=tied, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", name="make_model")
def make_model_fixture() -> Callable[..., Path]:
    return make_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def make_learner(model_folder: Path) -> Callable[..., Learner]:
    def make(folder: Path = model_folder, *, dtype: str = "float32", **settings: object) -> Learner:
        defaults: dict[str, object] = {"learning_rate": 1e-2, "mini_batch": 64, "undo": True}
        names = {field.name for field in fields(LossSettings)}
        loss = {name: settings.pop(name) for name in list(settings) if name in names}
        own = {name: settings.pop(name) for name in list(settings) if name in CLIPPED}
        return Learner(
            ModelSettings(path=str(folder), device="cpu", dtype=dtype),  # type: ignore[arg-type]
            LearnerSettings(**(defaults | settings)),  # type: ignore[arg-type]
            LossSettings(**({"own": own} | loss)),  # type: ignore[arg-type]
            seed=0,
        )

    return make


def make_episode(
    number: int,
    *,
    prompt: int = 5,
    turns: tuple[tuple[int, int], ...] = ((6, 4), (3, 0)),
    temperature: float = 1.0,
    seed: int = 0,
    reward: float = 1.0,
    logprob: float | None = None,
) -> Episode:
    """`turns` holds (sampled, given) token counts: what the policy said, what the tool answered."""
    random = np.random.default_rng([seed, number])
    builder = SegmentBuilder()
    builder.append_given(random.integers(0, VOCABULARY, prompt).tolist())
    for sampled, given in turns:
        logprobs = -random.uniform(0.5, 5, sampled) if logprob is None else np.full(sampled, logprob)
        builder.append_sampled(
            random.integers(0, VOCABULARY, sampled).tolist(),
            logprobs.tolist(),
            [0] * sampled,
            [0, 1, 2] * sampled,
            np.log([0.03, 0.02, 0.01] * sampled).tolist(),
        )
        builder.append_given(random.integers(0, VOCABULARY, given).tolist())
    segments, reason = (builder.build(),), StopReason.ANSWERED
    return Episode(f"e{number}", number, f"p{number}", segments, (), reward, reason, 0, temperature)


def make_episodes(count: int = 7, **settings: object) -> list[Episode]:
    """Episodes of different lengths."""
    return [
        make_episode(i, prompt=2 + i % 3, turns=((3 + 2 * i, 4), (2 + i % 2, i % 3)), **settings)  # type: ignore[arg-type]
        for i in range(count)
    ]


@pytest.fixture(scope="session", name="make_episode")
def make_episode_fixture() -> Callable[..., Episode]:
    return make_episode


@pytest.fixture(scope="session", name="make_episodes")
def make_episodes_fixture() -> Callable[..., list[Episode]]:
    return make_episodes


@pytest.fixture
def episodes() -> list[Episode]:
    return make_episodes()


@pytest.fixture
def advantages() -> list[float]:
    return [1.0, -0.5, 0.25, -2.0, 0.75, 1.5, -1.0]
