"""Products of bfloat16 matrices, and attention, on processors that multiply float32 ones faster.

A product of two bfloat16 numbers is exact in float32, and both ways add up in float32; results are rounded to
bfloat16 once. So of a product of matrices only the order of the sum is another. Attention keeps its weights
in float32, where torch's kernel for bfloat16 rounds them before it multiplies them with the values. Copies in
float32 live as long as a few rows' product.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 1024
"""Multiplied at a time: their copies in float32 stay in the processor's caches."""
FEW_ROWS = 256
"""Fewer are not worth a copy of the weights in float32: those of a decoder's step, for one."""


def _slow_bfloat16() -> bool:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return False
    return not (getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() and _is_amd())


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


SLOW_BFLOAT16 = _slow_bfloat16()
"""Whether this is an x86 processor without AMX, and not one of AMD's with `avx512_bf16`.

One core of an Intel Xeon with `avx512_bf16` gave 80 GFLOP/s in bfloat16 and 130 to 150 in float32, one of an
AMD EPYC 440 and 100. From the processor and not from a measurement: a run that is resumed there must compute
the same numbers."""


def multiplies_in_float32(choice: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices of `dtype` are multiplied in float32.

    Args:
        choice: `learner.cpu_products`.
        device: where they are; only a CPU does so.
        dtype: only bfloat16 is.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return SLOW_BFLOAT16 if choice == "auto" else choice == "float32"


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, rows, ROWS))


class _Product(torch.autograd.Function):
    """input [..., I] times the transpose of weight [O, I], plus bias [O] or None."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(given, weight)
        ctx.biased = bias is not None
        bias, exact = (None if bias is None else bias.float()), weight.float()
        rows = given.flatten(0, -2)
        result = rows.new_empty(len(rows), len(weight))
        for part in _parts(len(rows)):
            result[part] = nn.functional.linear(rows[part].float(), exact, bias)
        return result.view(*given.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, weight = ctx.saved_tensors
        gradient, rows = gradients[0].flatten(0, -2), given.flatten(0, -2)
        wanted, learned, biased = (*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2])
        exact = weight.float() if wanted else None
        to_given = torch.empty_like(rows) if wanted else None
        to_weight: Tensor | None = None
        to_bias = weight.new_zeros(len(weight), dtype=torch.float32) if biased else None
        for part in _parts(len(rows)):
            some = gradient[part].float()
            if to_given is not None and exact is not None:
                to_given[part] = some @ exact
            if learned:
                once = rows[part].float()
                to_weight = some.t() @ once if to_weight is None else to_weight.addmm_(some.t(), once)
            if to_bias is not None:
                to_bias += some.sum(0)
        return (
            None if to_given is None else to_given.view(given.shape),
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(weight.dtype),
        )


class _Attention(torch.autograd.Function):
    """Causal, (query [R, H, T, D], key and value [R, K, T, D], scale) -> [R, H, T, D].

    torch's own kernel, called by name so that what is kept for the backward pass is in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        result, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.float(), key.float(), value.float(), 0.0, True, scale=scale
        )
        result = result.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, normaliser)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *saved, normaliser = ctx.saved_tensors
        exact = [tensor.float() for tensor in (gradients[0], *saved)]
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *exact, normaliser, 0.0, True, scale=ctx.scale
        )
        return (*(gradient.to(saved[0].dtype) for gradient in found), None)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, *, exact: bool) -> Tensor:
    """Causal attention [R, H, T, D]; H is a multiple of K.

    Args:
        query: [R, H, T, D].
        key: [R, K, T, D].
        value: [R, K, T, D].
        scale: of the logits; 1 / sqrt(D) where None.
        exact: compute in float32 what is in bfloat16.
    """
    if exact and query.dtype == torch.bfloat16 and query.shape[-1] == value.shape[-1]:
        return _Attention.apply(query, key, value, scale)  # type: ignore[no-any-return]
    grouped = key.shape[1] != query.shape[1]
    return nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
    )


class _Float32Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        few = input.numel() < FEW_ROWS * self.in_features
        if few or input.dtype != torch.bfloat16 or self.weight.dtype != input.dtype:
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]


def attend_in_float32(model: nn.Module) -> None:
    """Let the attention that `packing` installs compute in float32."""
    for module in model.modules():
        module.attends_in_float32 = True  # type: ignore[assignment]


def multiply_in_float32(model: nn.Module) -> None:
    """Let all linear layers of a bfloat16 model multiply in float32; their weights stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Float32Linear
