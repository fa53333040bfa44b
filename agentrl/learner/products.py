"""Products of bfloat16 matrices on processors that multiply float32 ones faster.

A product of two bfloat16 numbers is exact in float32, and both ways add up in float32; results are rounded to
bfloat16 once. So only the order of the sum is another. Copies in float32 live no longer than one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def float32_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies float32 matrices faster than those of `dtype`: x86 without AMX.

    An Intel Xeon with `avx512_bf16` gave 80 GFLOP/s in bfloat16, 130 to 150 in float32, on one core. From the
    processor and not from a measurement: a run that is resumed must compute the same numbers.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return torch.backends.cpu.get_cpu_capability().startswith("AVX") and not tiles


class _Product(torch.autograd.Function):
    """input [..., I] times the transpose of weight [O, I], plus bias [O] or None."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(given, weight)
        ctx.biased = bias is not None
        bias = None if bias is None else bias.float()
        return nn.functional.linear(given.float(), weight.float(), bias).to(given.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2).float()
        to_given = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_given = (gradient @ weight.float()).to(given.dtype).view(given.shape)
        if ctx.needs_input_grad[1]:
            to_weight = (gradient.t() @ given.flatten(0, -2).float()).to(weight.dtype)
        if ctx.biased and ctx.needs_input_grad[2]:
            to_bias = gradient.sum(0).to(weight.dtype)
        return to_given, to_weight, to_bias


class _Float32Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.bfloat16 or self.weight.dtype != input.dtype:
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]


def multiply_in_float32(model: nn.Module) -> None:
    """Let all linear layers of a bfloat16 model multiply in float32; their weights stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Float32Linear
