"""Products of bfloat16 matrices in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agentrl.learner import products
from agentrl.learner.products import attend, multiplies_in_float32, multiply_in_float32


def _pair(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    exact = nn.Linear(48, 32, bias=bias)
    half = nn.Linear(48, 32, bias=bias)
    with torch.no_grad():
        exact.load_state_dict({name: value.bfloat16().float() for name, value in exact.state_dict().items()})
    half.load_state_dict(exact.state_dict())
    half = half.bfloat16()
    multiply_in_float32(half)
    return exact, half


@pytest.mark.parametrize("bias", [False, True])
def test_results_and_gradients_are_the_exact_ones_rounded_once(bias: bool) -> None:
    exact, half = _pair(bias)
    given = torch.randn(3, 100, 48, requires_grad=True)
    with torch.no_grad():
        given.copy_(given.bfloat16())
    halved = given.detach().bfloat16().requires_grad_()
    weights = torch.randn(3, 100, 32).bfloat16()
    (exact(given) * weights.float()).sum().backward()
    result = half(halved)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, exact(given).bfloat16(), rtol=2**-8, atol=0)
    result.backward(weights)
    for found, wanted in [(halved, given), *zip(half.parameters(), exact.parameters(), strict=True)]:
        assert found.grad is not None
        assert wanted.grad is not None
        assert found.grad.dtype == torch.bfloat16
        torch.testing.assert_close(found.grad, wanted.grad.bfloat16(), rtol=2**-7, atol=2**-14)


def test_sums_are_kept_in_float32() -> None:
    """256 + 1 is 256 in bfloat16: a sum kept in it would never grow by ones."""
    layer = nn.Linear(512, 1, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    multiply_in_float32(layer)
    assert layer(torch.ones(300, 512, dtype=torch.bfloat16)).unique().tolist() == [512.0]


def test_frozen_weights_get_no_gradient() -> None:
    _, half = _pair(False)
    half.requires_grad_(False)
    given = torch.randn(400, 48).bfloat16().requires_grad_()
    half(given).sum().backward()
    assert half.weight.grad is None
    assert given.grad is not None
    assert given.grad.shape == (400, 48)


def test_float32_models_and_gpus_are_left_alone() -> None:
    assert not multiplies_in_float32("float32", torch.device("cpu"), torch.float32)
    assert not multiplies_in_float32("float32", torch.device("cuda"), torch.bfloat16)
    layer = nn.Linear(3, 2)
    before = layer(torch.ones(1, 3))
    multiply_in_float32(layer)
    assert torch.equal(layer(torch.ones(1, 3)), before)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_and_its_gradients_are_those_of_float32(
    scale: float | None,
) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, 7, 16), (2, 2, 7, 16), (2, 2, 7, 16))
    halved = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    exact = [tensor.detach().float().requires_grad_() for tensor in halved]
    weights = torch.randn(2, 4, 7, 16).bfloat16()
    query, key, value = exact
    logits = query @ key.repeat_interleave(2, 1).transpose(2, 3) * (0.25 if scale is None else scale)
    logits = logits.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    wanted = logits.softmax(-1) @ value.repeat_interleave(2, 1)
    (wanted * weights.float()).sum().backward()
    found = attend(halved[0], halved[1], halved[2], scale, exact=True)
    found.backward(weights)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=1e-6)
    for half, whole in zip(halved, exact, strict=True):
        assert half.grad is not None
        assert whole.grad is not None
        torch.testing.assert_close(half.grad.float(), whole.grad, rtol=2**-6, atol=2**-7)


def test_few_rows_are_multiplied_as_they_are() -> None:
    _, half = _pair(False)
    plain = nn.Linear(48, 32, bias=False).bfloat16()
    plain.load_state_dict(half.state_dict())
    given = torch.randn(255, 48).bfloat16()
    assert torch.equal(half(given), plain(given))
    assert half(given.expand(2, 255, 48)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "tiles", "dots", "amd", "slow"),
    [
        ("AVX512", False, True, False, True),  # a Xeon whose AMX is hidden
        ("AVX512", True, True, False, False),
        ("AVX2", False, False, True, True),  # no products in bfloat16 at all
        ("AVX512", False, True, True, False),  # never measured: as torch has it
        ("DEFAULT", False, False, False, False),
    ],
)
def test_auto_is_by_the_processor(
    capability: str, tiles: bool, dots: bool, amd: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: dots, raising=False)
    monkeypatch.setattr(products, "_is_amd", lambda: amd)
    assert products._slow_bfloat16() == slow
    monkeypatch.setattr(products, "SLOW_BFLOAT16", slow)
    cpu = torch.device("cpu")
    assert multiplies_in_float32("auto", cpu, torch.bfloat16) == slow
    assert multiplies_in_float32("float32", cpu, torch.bfloat16)
    assert not multiplies_in_float32("bfloat16", cpu, torch.bfloat16)


def test_a_learner_multiplies_as_it_is_told_and_says_so(
    make_learner: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {}
    for choice in ("float32", "bfloat16"):
        learner = make_learner(dtype="bfloat16", cpu_products=choice)
        exact = {getattr(module, "attends_in_float32", False) for module in learner.model.modules()}
        linear = {
            type(module) is nn.Linear for module in learner.model.modules() if isinstance(module, nn.Linear)
        }
        kinds[choice] = (exact, linear, learner._forward.scorer.float32_head)
        learner.save(tmp_path / choice)
    assert kinds == {"float32": ({True}, {False}, True), "bfloat16": ({False}, {True}, False)}
    learner.load(tmp_path / "bfloat16")
    assert "cpu_products" not in caplog.text
    learner.load(tmp_path / "float32")
    assert "learner.cpu_products = 'float32'" in caplog.text
