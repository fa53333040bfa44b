"""Low-rank adapters: only they are learned, and what leaves the learner is W + alpha / rank * B A."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")
peft = pytest.importorskip("peft", reason="adapters need peft (pip install agentrl[train])")

from agentrl.cli.main import main
from agentrl.config.loading import load_settings
from agentrl.config.settings import AdapterSettings
from agentrl.errors import CheckpointError, ConfigError, WeightSyncError
from agentrl.inference.embedded.engine import TransformersPolicy
from agentrl.inference.embedded.weight_copy import copy_weights
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.server import adapter_arguments
from agentrl.inference.vllm.transfer import DeviceTransfer
from agentrl.learner.adapter import plain_copy, plain_weights
from agentrl.weights.adapter_files import base_of, merged_tensors, scaling
from agentrl.weights.handle import WeightHandle

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


def test_only_the_adapter_is_published_and_merges_to_the_same_bits(
    make_learner, episodes, advantages, tmp_path: Path
) -> None:
    learner = make_learner(adapter=ADAPTER, dtype="bfloat16", learning_rate=1e-2)
    learner.step(episodes, advantages)
    learner.publish(tmp_path / "1.1")
    assert sorted(path.name for path in (tmp_path / "1.1").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    live = dict(plain_weights(learner.model))
    merged = dict(merged_tensors(base_of(tmp_path / "1.1"), tmp_path / "1.1"))
    assert live.keys() == merged.keys()
    # Merging in bfloat16, or B A before its product is scaled, changes the last bits.
    for name, tensor in live.items():
        assert torch.equal(tensor, merged[name].to(tensor.dtype)), name


async def test_the_embedded_engine_takes_an_adapter_s_folder(
    make_learner, episodes, advantages, tmp_path: Path
) -> None:
    learner = make_learner(adapter=ADAPTER, learning_rate=1e-2)
    learner.step(episodes, advantages)
    learner.publish(tmp_path / "1")
    learner.step(episodes, advantages)
    learner.publish(tmp_path / "2")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    engine = TransformersPolicy(str(tmp_path / "1"), slots=2, context_tokens=64)
    await engine.start()
    try:
        await engine.load(WeightHandle(2, 1, str(tmp_path / "2")))
        said = await engine.generate(
            [3, 1, 4, 1, 5], Sampling(1, temperature=0.0), session="a", start_version=2
        )
    finally:
        await engine.close()
    with torch.no_grad():
        expected = learner.model(ids).logits[0, -1].log_softmax(-1)
    assert said.token_ids[0] == int(expected.argmax())
    assert said.logprobs[0] == pytest.approx(float(expected.max()), abs=1e-4)


def test_an_adapter_s_folder_is_merged_by_export(
    make_model, make_learner, episodes, advantages, tmp_path: Path, capsys
) -> None:
    folder = make_model(tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")
    learner = make_learner(folder, adapter=ADAPTER, learning_rate=1e-2)
    learner.step(episodes, advantages)
    learner.publish(tmp_path / "adapter")
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    for a, b in zip(learner.score(episodes), make_learner(tmp_path / "merged").score(episodes), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=2e-5)
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "x"), "--adapter"]) == 1
    assert "is an adapter already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "biases or whole modules"),
    ],
)
def test_adapters_of_other_kinds_are_not_merged(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling({"r": 4, "lora_alpha": 8, **change})
    assert scaling({"r": 4, "lora_alpha": 8}) == 2.0
    assert scaling({"r": 4, "lora_alpha": 8, "use_rslora": True}) == 4.0


def test_an_adapter_of_another_model_is_refused(make_learner, make_model, tmp_path: Path) -> None:
    make_learner(adapter=ADAPTER).publish(tmp_path / "adapter")
    other = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not fit|does not have"):
        dict(merged_tensors(tmp_path / "other", tmp_path / "adapter"))


def test_too_few_resident_adapters_are_refused_at_start() -> None:
    flags = ["--learner.adapter.rank=8", "--engine.adapter=apart", "--stream.staleness=2"]
    assert load_settings(None, flags).resident_adapters == 4
    with pytest.raises(ConfigError, match=r"engine.adapters = 3 is too few.*stream.staleness \+ 2 = 4"):
        load_settings(None, [*flags, "--engine.adapters=3"])
    assert adapter_arguments(12, 4)[-1] == "16"


async def test_a_transfer_of_live_weights_refuses_an_adapter(make_learner) -> None:
    learner = make_learner(adapter=ADAPTER)
    with pytest.raises(WeightSyncError, match="its merged weights go through the transfer `file`"):
        await DeviceTransfer("nccl").prepare(learner.model)
