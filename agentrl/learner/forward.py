"""Forward passes over sequences in micro-batches, shared among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrl.learner.batch import (
    MicroBatch,
    TokenSequence,
    balance,
    pack,
    pad,
    split_micro_batches,
)
from agentrl.learner.logprobs import Scores, TokenScorer
from agentrl.learner.packing import boundaries
from agentrl.learner.ranks import Ranks
from agentrl.learner.token_table import TokenTable


@dataclass(frozen=True, slots=True)
class Forward:
    """How sequences go through a model.

    Args:
        scorer: the model.
        device: where it is.
        micro_batch_tokens: tokens of one pass, padding included.
        ranks: who else takes part.
        packed: sequences stand end to end in one row, instead of padded below each other.
        even_at: tokens at which attention costs as much as everything else.
        one_kernel: one kernel attends within all packed sequences.
    """

    scorer: TokenScorer
    device: torch.device
    micro_batch_tokens: int
    ranks: Ranks
    packed: bool = False
    even_at: float = 8192.0
    one_kernel: bool = False

    def micro_batches(
        self, sequences: Sequence[TokenSequence], indices: Sequence[int]
    ) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's micro-batches of the chosen sequences, and whether each counts."""
        lengths = [len(sequences[index]) for index in indices]
        if self.packed:
            shared = self.ranks.size // self.ranks.groups
            parts = balance(lengths, self.micro_batch_tokens * shared, self.ranks.groups, self.even_at)
        else:
            parts = split_micro_batches(lengths, self.micro_batch_tokens)
        for part, counts in self.ranks.share(parts):
            yield self.layout(sequences, [indices[at] for at in part]), counts

    def layout(self, sequences: Sequence[TokenSequence], indices: Sequence[int]) -> MicroBatch:
        """The chosen sequences as one micro-batch."""
        return (pack if self.packed else pad)(sequences, indices)

    def run(self, micro: MicroBatch, top: int = 0) -> Scores:
        """What the model says of the N targets of a micro-batch, and of the `top` likeliest tokens there.

        And, with a gradient, of those that the sampler found likeliest.
        """
        split, sizes = self.ranks.split, ()
        if split is not None:
            micro, sizes = split.part(micro)
        more = {}
        if micro.lengths:
            more = boundaries(micro.lengths, self.device, one_kernel=self.one_kernel, split=split)
        scores = self.scorer(
            self.tensor(micro.input_ids),
            self.tensor(micro.rows),
            self.tensor(micro.columns),
            self.tensor(micro.targets),
            self.tensor(micro.temperature),
            top,
            self.tensor(micro.top_ids) if micro.top_ids.shape[1] and torch.is_grad_enabled() else None,
            **more,
        )
        return scores if split is None else split.gather(scores, sizes)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The array on the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def scores(self, sequences: Sequence[TokenSequence], indices: Sequence[int], top: int = 0) -> TokenTable:
        """Scores of the targets of the chosen sequences, without gradient, on every rank.

        The same call twice pads and cuts the same way, so that with the same weights it gives the same
        numbers bit for bit.
        """
        table = TokenTable(sequences, indices, self.device, top)
        if indices:
            with torch.no_grad():
                for micro, counts in self.micro_batches(sequences, indices):
                    scores = self.run(micro, top)
                    if counts and self.ranks.leads:
                        table.put(micro, scores)
            table.gather(self.ranks)
        return table
