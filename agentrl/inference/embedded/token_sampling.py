"""One token for each of many rows of logits, with the log-probability it had.

All rows are sampled by the same few operations. Randomness is one uniform number per token, a pure
function of the request's seed and of the token's place in it, so that a token does not depend on
which rows happen to be sampled together. Knows nothing of requests or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per row: splitmix64 of a stream's key at a place in the stream.

    Multiples of 2^-52, so that the product with a total is always less than the total.

    Args:
        keys: [B] from `stream_key`.
        counters: [B] place in the stream.
    """
    mixed = _mix(keys + (counters + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52


def stream_key(seed: int) -> int:
    """Key of a random stream: neighbouring seeds give streams that have nothing in common."""
    return int(_mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)[0])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How each of B rows is sampled. Made once for a batch, used until its rows change."""

    temperatures: Tensor
    """[B, 1] float32; 1 where greedy."""
    greedy: Tensor | None
    """[B] bool; None when no row is."""
    truncated: Tensor | None
    """[T] rows with top-k or top-p; None when there are none."""
    top_k: Tensor
    """[T, 1] the size of the vocabulary where there is no limit."""
    top_p: Tensor
    """[T, 1]"""

    @classmethod
    def make(
        cls,
        temperatures: NDArray[np.float32],
        top_k: NDArray[np.int64],
        top_p: NDArray[np.float32],
        device: torch.device,
    ) -> SamplingRows:
        """From arrays [B] of settings as requests state them."""
        greedy = temperatures == 0.0
        chosen = np.flatnonzero(((top_k > 0) | (top_p < 1.0)) & ~greedy)
        limits = np.where(top_k > 0, top_k, np.iinfo(np.int64).max)
        return cls(
            temperatures=torch.from_numpy(np.where(greedy, np.float32(1), temperatures)[:, None]).to(device),
            greedy=torch.from_numpy(greedy).to(device) if greedy.any() else None,
            truncated=torch.from_numpy(chosen).to(device) if len(chosen) else None,
            top_k=torch.from_numpy(limits[chosen][:, None]).to(device),
            top_p=torch.from_numpy(top_p[chosen][:, None]).to(device),
        )


class Sampled(NamedTuple):
    """One token for each of B rows."""

    tokens: list[int]
    """[B]"""
    logprobs: list[float]
    """[B] nats. Not finite where the row's logits are not; the caller must look."""
    top_ids: NDArray[np.int32]
    """[B, k] the likeliest tokens."""
    top_logprobs: NDArray[np.float32]
    """[B, k] and their log-probabilities, the largest first."""


def sample_tokens(logits: Tensor, rows: SamplingRows, randoms: NDArray[np.float64], top: int = 0) -> Sampled:
    """Sample one token per row.

    The log-probability is that of the distribution sampled from: after temperature, then top-k, then
    top-p. A greedy row takes the most likely token, with its log-probability at temperature 1.

    Args:
        logits: [B, V], finite or -inf; overwritten when float32.
        rows: how.
        randoms: [B] in [0, 1).
        top: k likeliest tokens that are reported of each row.
    """
    scaled = logits.float().div_(rows.temperatures)
    if rows.truncated is not None:
        kept = _truncate(scaled[rows.truncated], rows.top_k, rows.top_p)
        scaled.index_copy_(0, rows.truncated, kept)
    logprobs = torch.log_softmax(scaled, dim=-1)
    tokens = _inverse_cdf(logprobs.exp(), torch.from_numpy(randoms).to(logits.device))
    if rows.greedy is not None:
        tokens = torch.where(rows.greedy, scaled.argmax(dim=-1), tokens)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    # Both in one copy from the device; ids are exact in float64.
    both = torch.stack((tokens.double(), chosen.double())).tolist()
    sampled = [int(token) for token in both[0]], both[1]
    if not top:  # no further copy from the device where nobody asked
        return Sampled(*sampled, np.empty((len(tokens), 0), np.int32), np.empty((len(tokens), 0), np.float32))
    likeliest = torch.topk(logprobs, top, dim=-1)
    return Sampled(*sampled, likeliest.indices.int().cpu().numpy(), likeliest.values.cpu().numpy())


def _truncate(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits [T, V] with -inf outside the k most likely tokens and outside the nucleus among those.

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p.
    """
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(scaled.shape[-1], device=scaled.device)
    ordered = ordered.masked_fill(places >= top_k, float("-inf"))
    mass = ordered.softmax(dim=-1)
    before = mass.cumsum(dim=-1, dtype=torch.float64) - mass
    outside = before >= top_p
    outside[:, 0] = False
    ordered = ordered.masked_fill(outside, float("-inf"))
    return torch.empty_like(scaled).scatter_(1, order, ordered)


def _inverse_cdf(mass: Tensor, randoms: Tensor) -> Tensor:
    """Index [B] of the first cumulative mass above random * total.

    Sums are in float64. Over a large vocabulary blocks are summed first, and only the block that
    holds the answer is looked into.
    """
    if mass.shape[-1] <= 16 * _BLOCK:
        return _first_above(mass, randoms)
    blocks = torch.nn.functional.pad(mass, (0, -mass.shape[-1] % _BLOCK)).view(len(mass), -1, _BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    cumulative = sums.cumsum(dim=-1)
    target = randoms * cumulative[:, -1]
    block = _search(cumulative, target)
    rows = torch.arange(len(mass), device=mass.device)
    inside = (target - (cumulative[rows, block] - sums[rows, block])) / sums[rows, block]
    # Rounding may put the remainder a hair outside its block.
    inside = inside.clamp(0.0, 1.0 - 2.0**-52)
    return block * _BLOCK + _first_above(blocks[rows, block], inside)


def _first_above(mass: Tensor, randoms: Tensor) -> Tensor:
    cumulative = mass.cumsum(dim=-1, dtype=torch.float64)
    return _search(cumulative, randoms * cumulative[:, -1])


def _search(cumulative: Tensor, target: Tensor) -> Tensor:
    found = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return found.clamp_(max=cumulative.shape[-1] - 1)
