"""What `agentrl.cluster.memory` foretells, against what torch holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from agentrl.cluster.activations import LOGITS_AT_ONCE as FORETOLD_AT_ONCE
from agentrl.cluster.activations import Pass
from agentrl.cluster.memory import host_needs, learner_needs
from agentrl.cluster.model_shape import ModelShape
from agentrl.config.settings import (
    AdapterSettings,
    EngineSettings,
    LearnerSettings,
    ModelSettings,
    Settings,
    StreamSettings,
)
from agentrl.episode import Episode
from agentrl.learner.learner import Learner
from agentrl.learner.logprobs import LOGITS_AT_ONCE
from benchmarks.tiny_config import tiny_config

TOKENS = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    config = tiny_config(
        hidden=128, inner=384, layers=3, heads=4, key_heads=2, head=32, tie_word_embeddings=False
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def foretold(folder: Path, dtype: str, **learner: Any) -> dict[str, int]:
    settings = Settings(
        model=ModelSettings(dtype=dtype),  # type: ignore[arg-type]
        learner=LearnerSettings(micro_batch_tokens=TOKENS, **learner),
        engine=EngineSettings(context_tokens=TOKENS),
        stream=StreamSettings(batch=8),
    )
    shape = ModelShape.load(str(folder))
    return {
        need.what.removeprefix("learner: "): need.bytes
        for need in (*learner_needs(shape, settings), *host_needs(shape, settings))
    }


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_optimizer_are_exact(
    dtype: str, folder: Path, make_learner: Callable[..., Learner], episodes: list[Episode]
) -> None:
    learner = make_learner(folder, dtype=dtype, mini_batch=4)
    optimizer = learner._optimizer
    gradients: list[int] = []
    step = optimizer.step

    def spy() -> float | None:
        gradients.append(size(master.grad for master in optimizer._masters if master.grad is not None))
        return step()

    optimizer.step = spy  # type: ignore[method-assign]
    learner.step(episodes, [1.0] * len(episodes))
    told = foretold(folder, dtype, mini_batch=4, undo=True)
    assert size(learner.model.parameters()) == told["weights"]
    assert gradients == [told["gradients, float32"]] * 2
    tensors = optimizer.tensors()
    assert (
        size(t for name, t in tensors.items() if name.startswith("exp_avg")) == told["AdamW moments, float32"]
    )
    own = {parameter.data_ptr() for parameter in learner.model.parameters()}
    masters = [tensor for name, tensor in tensors.items() if name.startswith("master:")]
    assert size(t for t in masters if t.data_ptr() not in own) == told.get("float32 masters", 0)
    snapshot = optimizer.snapshot()
    steps = size(tensor for name, tensor in snapshot.state.items() if name.startswith("step:"))
    kept = size(snapshot.state.values()) - steps
    assert kept == told["copy to undo a failed step"]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_torch_saves(
    kind: str,
    dtype: str,
    rank: int,
    checkpointing: bool,
    make_learner: Callable[..., Learner],
    tmp_path: Path,
) -> None:
    config = tiny_config(kind, hidden=128, inner=384, layers=3, heads=4, key_heads=2, head=32)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    adapter = AdapterSettings(rank=rank)
    learner = make_learner(tmp_path, dtype=dtype, gradient_checkpointing=checkpointing, adapter=adapter)
    model: Any = learner.model.base_model
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randint(0, 61, (1, TOKENS)), use_cache=False)
    assert output.last_hidden_state.requires_grad
    width = {"float32": 4, "bfloat16": 2}[dtype]
    told = Pass(ModelShape.load(str(tmp_path)), TOKENS, width, rank=rank, recomputed=checkpointing).kept
    told -= 2 * TOKENS * width * 128  # the last states and those that the head reads, which is not there yet
    # Beside it: ids, the angles of positions.
    assert sum(saved.values()) == pytest.approx(told, rel=0.03)


def test_logits_come_in_the_pieces_that_were_counted() -> None:
    assert FORETOLD_AT_ONCE == LOGITS_AT_ONCE
