"""Episodes to sequences, sequences to mini-batches and to micro-batches, padded or packed.

NumPy only: what the model does with them is `logprobs` and `learner`. A sequence is the part of one
segment that matters: its tokens up to the last one learned from, and which of them are.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.episode import Episode, Segment
from agentrl.errors import DataError, LearnerError

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
Advantages: TypeAlias = NDArray[np.float64] | Sequence[float] | Sequence[Sequence[ArrayLike]]
"""[B], or of each episode and segment [T]."""


PASS_TOKENS = 256
"""What one more pass costs, in tokens: more padding than this and a micro-batch is better cut in two."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """T input tokens of one segment, of which N following ones are learned from."""

    episode: int
    """Index of the episode in the batch."""
    segment: int
    token_ids: IntArray
    """[T] inputs: everything before the last target."""
    positions: IntArray
    """[N] position in the segment of each target, at least 1; it is predicted at input position - 1."""
    targets: IntArray
    """[N] token ids."""
    behaviour: FloatArray
    """[N] log-probabilities at sampling, nats."""
    temperature: float
    top_ids: IntArray
    """[N, k] the sampler's likeliest tokens at each target; k = 0 where the loss looks at none."""
    top_logprobs: FloatArray
    """[N, k] and their log-probabilities at sampling."""
    teacher: FloatArray
    """[N] log-probabilities by a served teacher; [0] where none was asked."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """R sequences padded to a length T, or end to end in one row, with N targets among them."""

    sequences: tuple[int, ...]
    """[R] indices of the sequences."""
    counts: tuple[int, ...]
    """[R] targets of each; they sum to N and stand in this order."""
    input_ids: IntArray
    """[R, T] padded on the right with 0: attention is causal, so no target ever sees the padding and no
    attention mask is needed. Packed: [1, T]."""
    rows: IntArray
    """[N] row of each target."""
    columns: IntArray
    """[N] input position that predicts each target."""
    targets: IntArray
    """[N]"""
    behaviour: FloatArray
    """[N]"""
    temperature: FloatArray
    """[N]"""
    top_ids: IntArray
    """[N, k]"""
    top_logprobs: FloatArray
    """[N, k]"""
    lengths: tuple[int, ...] = ()
    """[R] tokens of each sequence, where they are packed; empty where they are padded."""


def build_sequences(
    episodes: Sequence[Episode], *, trainable_only: bool = True, top: int = 0
) -> list[TokenSequence]:
    """The sequences of a batch, in the order of episodes and segments.

    Segments without a target are left out. Where a segment begins with tokens that an earlier segment
    of the same agent begins with too (a branch, or a context carried over), their targets are taken
    from the earlier one only, so that a shared token is counted once.

    Args:
        episodes: the batch.
        trainable_only: leave out segments that are not trainable, and shared tokens.
        top: k likeliest tokens of the sampler that are taken along.

    Raises:
        DataError: a sampled token has nothing before it, so no model can score it; or fewer than k likeliest
            tokens were recorded.
    """
    sequences: list[TokenSequence] = []
    for index, episode in enumerate(episodes):
        for number, segment in enumerate(episode.segments):
            if trainable_only and not segment.trainable:
                continue
            shared = _shared_length(episode.segments[:number], segment) if trainable_only else 0
            sequence = _build(index, number, episode, segment, shared, top)
            if sequence is not None:
                sequences.append(sequence)
    return sequences


def _build(
    index: int, number: int, episode: Episode, segment: Segment, shared: int, top: int
) -> TokenSequence | None:
    mask = np.frombuffer(segment.loss_mask, dtype=np.uint8)
    if len(mask) and mask[0]:
        raise DataError(
            f"episode {episode.episode_id}, segment {number}: the first token was sampled after an empty "
            "prompt, so no model can score it; begin the prompt with at least one token"
        )
    positions = np.flatnonzero(mask).astype(np.int64)
    positions = positions[positions >= shared]
    if not len(positions):
        return None
    if segment.top_k < top:
        raise DataError(
            f"episode {episode.episode_id}, segment {number}: the loss needs the {top} likeliest tokens of "
            f"the sampler at each place, and {segment.top_k} were recorded"
        )
    skipped = int(mask[:shared].sum())
    token_ids = np.frombuffer(segment.token_ids, dtype=np.int32)
    logprobs = np.frombuffer(segment.logprobs, dtype=np.float32)
    return TokenSequence(
        episode=index,
        segment=number,
        token_ids=token_ids[: positions[-1]].astype(np.int64),
        positions=positions,
        targets=token_ids[positions].astype(np.int64),
        behaviour=logprobs[positions].copy(),
        # Temperature 0 is greedy; what it reports are log-probabilities at temperature 1.
        temperature=episode.temperature or 1.0,
        top_ids=_top(segment.top_ids, np.int32, segment.top_k)[skipped:, :top].astype(np.int64),
        top_logprobs=_top(segment.top_logprobs, np.float32, segment.top_k)[skipped:, :top].copy(),
        teacher=np.array(segment.teacher_logprobs[skipped:], dtype=np.float32),
    )


def _top(values: Any, dtype: Any, top: int) -> NDArray[Any]:
    """[S, k] of a segment; nothing of it where nothing was recorded."""
    return np.frombuffer(values, dtype=dtype).reshape(-1, top) if top else np.zeros((0, 0), dtype=dtype)


def _shared_length(earlier: Sequence[Segment], segment: Segment) -> int:
    """Length of the longest prefix, sampled tokens included, shared with an earlier segment."""
    longest = 0
    for other in earlier:
        if not other.trainable or (other.agent, other.model) != (segment.agent, segment.model):
            continue
        longest = max(longest, _common_prefix(other, segment))
    return longest


def _common_prefix(one: Segment, two: Segment) -> int:
    length = min(len(one), len(two))
    differs = np.zeros(length, dtype=np.bool_)
    for a, b, dtype in (
        (one.token_ids, two.token_ids, np.int32),
        (one.loss_mask, two.loss_mask, np.uint8),
        (one.logprobs, two.logprobs, np.float32),
        (one.policy_versions, two.policy_versions, np.int32),
    ):
        differs |= np.frombuffer(a, dtype=dtype)[:length] != np.frombuffer(b, dtype=dtype)[:length]
    return int(np.argmax(differs)) if differs.any() else length


def spread(
    advantages: Advantages, episodes: Sequence[Episode], sequences: Sequence[TokenSequence]
) -> list[FloatArray]:
    """Advantages of the targets of each sequence, [N] each.

    Args:
        advantages: [B], one number for all tokens of an episode; or, of each episode and segment, [T], one
            for each token, of which those of the targets are read.
        episodes: B.
        sequences: of the episodes.

    Raises:
        DataError: the shape is neither, or an advantage is not finite.
    """
    if len(advantages) != len(episodes):
        raise DataError(f"{len(episodes)} episodes came with {len(advantages)} advantages")
    # A list of segments of several lengths is no array.
    first: Any = advantages[0] if len(advantages) else 0.0
    whole = not isinstance(first, list | tuple) and np.ndim(first) == 0
    values: list[FloatArray] = []
    for item in sequences:
        given = advantages[item.episode]
        episode = episodes[item.episode]
        if whole:
            value = np.full(len(item.targets), given, dtype=np.float32)
        else:
            of_segments = cast("Sequence[Any]", given)
            lengths = [np.shape(part) for part in of_segments]
            if lengths != [(len(segment),) for segment in episode.segments]:
                tokens = [len(segment) for segment in episode.segments]
                raise DataError(
                    f"episode {episode.episode_id} has segments of {tokens} tokens and came with "
                    f"advantages of the shapes {lengths}"
                )
            value = np.asarray(of_segments[item.segment], dtype=np.float32)[item.positions]
        if not np.isfinite(value).all():
            wrong = float(value[~np.isfinite(value)][0])
            raise LearnerError(f"episode {episode.episode_id} has the advantage {wrong}")
        values.append(value)
    return values


def split_mini_batches(episodes: int, mini_batch: int, *, seed: Sequence[int]) -> list[IntArray]:
    """Shuffle B episodes and cut them into mini-batches whose sizes differ by at most one.

    Arrival order goes with length and difficulty, hence the shuffle. It depends on the seed alone, so
    that a recorded batch learned from again is cut the same way.

    Args:
        episodes: B.
        mini_batch: largest size of a part.
        seed: of the shuffle.
    """
    if episodes <= mini_batch:
        return [np.arange(episodes)]
    order = np.random.default_rng(list(seed)).permutation(episodes)
    return [np.sort(part) for part in np.array_split(order, -(-episodes // mini_batch))]


def split_micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut sequences into micro-batches of at most `max_tokens` tokens, padding included.

    Sequences are sorted from long to short, so that a micro-batch too large for memory is met first, and
    cut where padding plus the cost of a pass is least (dynamic programming over the places to cut). A
    sequence longer than `max_tokens` stands alone.

    Args:
        lengths: [S] tokens of each sequence.
        max_tokens: rows times longest row.

    Returns:
        Indices of the sequences of each micro-batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    longest = np.array([lengths[index] for index in order], dtype=np.float64)
    cost = np.zeros(len(order) + 1)  # of the first j sequences, cut best
    begin = np.zeros(len(order) + 1, dtype=np.int64)  # where the last micro-batch of those begins
    for end in range(1, len(order) + 1):
        rows = end - np.arange(end)
        tokens = longest[:end] * rows
        total = np.where((tokens <= max_tokens) | (rows == 1), cost[:end] + tokens + PASS_TOKENS, np.inf)
        begin[end] = np.argmin(total)
        cost[end] = total[begin[end]]
    result: list[list[int]] = []
    end = len(order)
    while end:
        result.append(order[begin[end] : end])
        end = int(begin[end])
    return result[::-1]


def pad(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> MicroBatch:
    """Lay the chosen sequences out as one micro-batch."""
    chosen = [sequences[index] for index in indices]
    input_ids = np.zeros((len(chosen), max(len(item) for item in chosen)), dtype=np.int64)
    for row, item in enumerate(chosen):
        input_ids[row, : len(item)] = item.token_ids
    counts = [len(item.targets) for item in chosen]
    return MicroBatch(
        input_ids=input_ids,
        rows=np.repeat(np.arange(len(chosen)), counts),
        columns=np.concatenate([item.positions - 1 for item in chosen]),
        **_targets(indices, chosen, counts),
    )


def balance(lengths: Sequence[int], max_tokens: int, ranks: int, even_at: float) -> list[list[int]]:
    """Share sequences out into packed micro-batches that take equally long.

    A sequence of T tokens costs T (1 + T / even_at): what attention costs grows with the square. The
    longest are placed first, each where least is so far (longest processing time first), in as few
    micro-batches as memory allows, a multiple of the ranks.

    Args:
        lengths: [S] tokens of each sequence.
        max_tokens: of a micro-batch. A sequence that is longer needs memory all the same, and then every
            micro-batch may have as many tokens as it: ranks that wait for it are not kept short.
        ranks: micro-batches run side by side.
        even_at: tokens at which attention costs as much as everything else.

    Returns:
        Indices of the sequences of each micro-batch, the dearest first, so that those of one round are alike.
    """
    if not lengths:
        return []
    max_tokens = max(max_tokens, *lengths)
    cost = [length * (1.0 + length / even_at) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    count = -(-sum(lengths) // max_tokens)
    while True:
        count = -(-count // ranks) * ranks
        parts = _place(order, lengths, cost, max_tokens, count)
        if parts is not None:
            break
        count += 1
    filled = [part for part in parts if part]
    return sorted(filled, key=lambda part: -sum(cost[index] for index in part))


def _place(
    order: Sequence[int], lengths: Sequence[int], cost: Sequence[float], max_tokens: int, count: int
) -> list[list[int]] | None:
    """The sequences in `count` parts; None where they do not fit."""
    parts: list[list[int]] = [[] for _ in range(count)]
    heap = [(0.0, 0, at) for at in range(count)]  # cost, tokens, part
    for index in order:
        full = []
        while heap and heap[0][1] and heap[0][1] + lengths[index] > max_tokens:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        spent, tokens, at = heap[0]
        parts[at].append(index)
        heapq.heapreplace(heap, (spent + cost[index], tokens + lengths[index], at))
        for item in full:
            heapq.heappush(heap, item)
    return parts


def pack(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> MicroBatch:
    """Lay the chosen sequences out end to end in one row."""
    chosen = [sequences[index] for index in indices]
    lengths = [len(item) for item in chosen]
    starts = np.cumsum([0, *lengths[:-1]])
    counts = [len(item.targets) for item in chosen]
    columns = [start + item.positions - 1 for start, item in zip(starts, chosen, strict=True)]
    return MicroBatch(
        input_ids=np.concatenate([item.token_ids for item in chosen])[None],
        rows=np.zeros(sum(counts), dtype=np.int64),
        columns=np.concatenate(columns),
        lengths=tuple(lengths),
        **_targets(indices, chosen, counts),
    )


def _targets(indices: Sequence[int], chosen: Sequence[TokenSequence], counts: list[int]) -> dict[str, Any]:
    """What is the same however sequences are laid out."""
    return {
        "sequences": tuple(indices),
        "counts": tuple(counts),
        "targets": np.concatenate([item.targets for item in chosen]),
        "behaviour": np.concatenate([item.behaviour for item in chosen]),
        "top_ids": np.concatenate([item.top_ids for item in chosen]),
        "top_logprobs": np.concatenate([item.top_logprobs for item in chosen]),
        "temperature": np.repeat(np.array([item.temperature for item in chosen], dtype=np.float32), counts),
    }
