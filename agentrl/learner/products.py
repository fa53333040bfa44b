"""Products of bfloat16 matrices, and attention, on processors that multiply float32 ones faster.

A product of two bfloat16 numbers is exact in float32, and both ways add up in float32; results are rounded to
bfloat16 once. So only the order of the sum is another. Copies in float32 live as long as a few rows' product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 1024
"""Multiplied at a time: their copies in float32 stay in the processor's caches."""
FEW_ROWS = 256
"""Fewer are not worth a copy of the weights in float32: those of a decoder's step, for one."""


def _no_tiles() -> bool:
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return torch.backends.cpu.get_cpu_capability().startswith("AVX") and not tiles


NO_TILES = _no_tiles()
"""Whether this is an x86 processor without AMX.

One core of an Intel Xeon with `avx512_bf16` gave 80 GFLOP/s in bfloat16 and 130 to 150 in float32. From the
processor and not from a measurement: a run that is resumed must compute the same numbers."""


def float32_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies float32 matrices faster than those of `dtype`."""
    return NO_TILES and device.type == "cpu" and dtype == torch.bfloat16


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


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention [R, H, T, D], in float32 where that is faster; H is a multiple of K.

    Args:
        query: [R, H, T, D].
        key: [R, K, T, D].
        value: [R, K, T, D].
        scale: of the logits; 1 / sqrt(D) where None.
    """
    if float32_is_faster(query.device, query.dtype) and query.shape[-1] == value.shape[-1]:
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


def multiply_in_float32(model: nn.Module) -> None:
    """Let all linear layers of a bfloat16 model multiply in float32; their weights stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Float32Linear
