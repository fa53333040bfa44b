"""Low-rank adapters: only they are learned, and what leaves the learner is W + alpha / rank * B A."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")
peft = pytest.importorskip("peft", reason="adapters need peft (pip install agentrl[train])")

from agentrl.config.settings import AdapterSettings
from agentrl.errors import CheckpointError, ConfigError, WeightSyncError
from agentrl.inference.embedded.weight_copy import copy_weights
from agentrl.inference.vllm.transfer import DeviceTransfer
from agentrl.learner.adapter import plain_copy, plain_weights

ADAPTER = AdapterSettings(rank=4)


def test_only_the_adapter_changes(make_learner, episodes, advantages) -> None:
    learner = make_learner(adapter=ADAPTER, mini_batch=3)
    before = {name: tensor.clone() for name, tensor in learner.model.named_parameters()}
    learner.step(episodes, advantages)
    changed = {
        name for name, tensor in learner.model.named_parameters() if not torch.equal(tensor, before[name])
    }
    # Two layers of seven matrices, A and B each.
    assert len(changed) == 2 * 7 * 2
    assert all(".lora_" in name for name in changed)


def test_at_the_start_it_is_the_model_itself(make_learner, episodes) -> None:
    for a, b in zip(
        make_learner().score(episodes), make_learner(adapter=ADAPTER).score(episodes), strict=True
    ):
        np.testing.assert_array_equal(a[0], b[0])


def test_merged_weights_by_hand(make_learner, episodes, advantages) -> None:
    learner = make_learner(adapter=AdapterSettings(rank=2, alpha=6.0, targets=("q_proj",)))
    learner.step(episodes, advantages)
    layer = learner.model.get_submodule("model.layers.1.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = dict(plain_weights(learner.model))
    expected = layer.base_layer.weight + 3.0 * b @ a  # alpha / rank = 3
    torch.testing.assert_close(merged["model.layers.1.self_attn.q_proj.weight"], expected)
    assert not torch.equal(expected, layer.base_layer.weight)
    assert not any("lora" in name or "base_layer" in name for name in merged)


@pytest.mark.parametrize("tied", [False, True])
def test_merged_equals_the_live_model_everywhere(
    make_model, make_learner, episodes, advantages, tmp_path: Path, tied: bool
) -> None:
    folder = make_model(tmp_path / "base", tied=tied)
    learner = make_learner(folder, adapter=ADAPTER)
    learner.step(episodes, advantages)
    learner.save_weights(tmp_path / "merged")
    live = learner.score(episodes)
    exported = make_learner(tmp_path / "merged").score(episodes)
    engine = make_learner(folder)
    copy_weights(engine.model, learner.model)
    for a, b, c in zip(live, exported, engine.score(episodes), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=2e-5)
        np.testing.assert_allclose(a[0], c[0], atol=2e-5)
    # Asking for weights leaves the live model as it was.
    np.testing.assert_array_equal(learner.score(episodes)[0][0], live[0][0])


def test_the_adapter_apart_is_read_by_peft(
    model_folder, make_learner, episodes, advantages, tmp_path
) -> None:
    learner = make_learner(adapter=ADAPTER)
    learner.step(episodes, advantages)
    learner.save_weights(tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, learner.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_it_resumes_bit_for_bit(make_learner, episodes, advantages, tmp_path) -> None:
    learner, other = make_learner(adapter=ADAPTER), make_learner(adapter=ADAPTER)
    learner.step(episodes, advantages)
    learner.save(tmp_path)
    other.load(tmp_path)
    assert learner.step(episodes, advantages).loss == other.step(episodes, advantages).loss
    with pytest.raises(CheckpointError, match="do not have the names"):
        make_learner().load(tmp_path)


def test_bfloat16_keeps_float32_masters_of_the_adapter(make_learner, episodes, advantages) -> None:
    learner = make_learner(adapter=ADAPTER, dtype="bfloat16", learning_rate=1e-5)
    for _ in range(3):
        learner.step(episodes, advantages)
    masters = {name: tensor for name, tensor in learner._optimizer.tensors().items() if "master" in name}
    assert len(masters) == 28
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())


def test_targets_that_the_model_lacks_are_refused(make_learner) -> None:
    with pytest.raises(ConfigError, match=r"learner.adapter.targets = \['c_attn'\] names no matrix of Qwen3"):
        make_learner(adapter=AdapterSettings(rank=2, targets=("c_attn",)))


def test_an_engine_s_own_copy_has_no_adapter(make_learner, episodes, advantages) -> None:
    learner = make_learner(adapter=ADAPTER)
    learner.step(episodes, advantages)
    engine = plain_copy(learner.model)
    plain = make_learner()
    assert [name for name, _ in engine.named_parameters()] == [n for n, _ in plain.model.named_parameters()]
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(engine(ids).logits, learner.model(ids).logits, atol=1e-5, rtol=1e-5)
    learner.step(episodes, advantages)
    copy_weights(engine, learner.model)
    with torch.no_grad():
        torch.testing.assert_close(engine(ids).logits, learner.model(ids).logits, atol=1e-5, rtol=1e-5)


async def test_a_transfer_of_live_weights_refuses_an_adapter(make_learner) -> None:
    learner = make_learner(adapter=ADAPTER)
    with pytest.raises(WeightSyncError, match="its merged weights go through the transfer `file`"):
        await DeviceTransfer("nccl").prepare(learner.model)
