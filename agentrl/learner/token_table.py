"""What a model said of the targets of some sequences, gathered from micro-batches in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrl.episode import Episode
from agentrl.learner.batch import MicroBatch, TokenSequence
from agentrl.learner.logprobs import Scores
from agentrl.learner.ranks import Ranks
from agentrl.storage.steps import TokenValues


class TokenTable:
    """Scores of the targets of the chosen sequences, one after the other.

    Args:
        sequences: of a batch.
        indices: those that are scored.
        device: where the scores are.
        top: k likeliest tokens at each position.
    """

    def __init__(
        self, sequences: Sequence[TokenSequence], indices: Sequence[int], device: torch.device, top: int = 0
    ) -> None:
        self.sizes = [len(sequences[index].targets) for index in indices]
        starts = np.cumsum([0, *self.sizes])
        self._places = {
            index: np.arange(start, start + size)
            for index, start, size in zip(indices, starts, self.sizes, strict=False)
        }
        zeros = torch.zeros(int(starts[-1]), device=device)
        ids = torch.zeros((len(zeros), top), dtype=torch.int64, device=device)
        self.scores = Scores(zeros, zeros.clone(), zeros.clone(), ids, ids.float(), zeros[:, None][:, :0])
        """Of all chosen sequences together."""

    def put(self, micro: MicroBatch, scores: Scores) -> None:
        """Take the scores of a micro-batch, without their gradients."""
        places = np.concatenate([self._places[index] for index in micro.sequences])
        at = torch.from_numpy(places).to(self.scores.logprobs.device)
        for whole, values in zip(
            self.scores[:-1], scores, strict=False
        ):  # asked-for tokens are the loss's alone
            whole[at] = values.detach()

    def gather(self, ranks: Ranks) -> None:
        """Make it whole on every rank, each of which has put some sequences."""
        for whole in self.scores[:-1]:
            ranks.sum(whole)

    @property
    def logprobs(self) -> list[Tensor]:
        """[N] of each chosen sequence, in their order."""
        return list(self.scores.logprobs.split(self.sizes))

    def values(self, episodes: Sequence[Episode], sequences: Sequence[TokenSequence]) -> TokenValues:
        """All of it as it is kept on disk; every sequence of the batch must have been chosen."""
        rows = [(place, len(one)) for place, episode in enumerate(episodes) for one in episode.segments]
        first = np.cumsum([0, *(len(episode.segments) for episode in episodes)])
        runs = [
            _runs(int(first[sequence.episode]) + sequence.segment, sequence.positions)
            for sequence in sequences
        ]
        arrays = [tensor.cpu().numpy() for tensor in self.scores]
        top = arrays[3].shape[1]
        return TokenValues(
            segments=np.array(rows, dtype=np.int32).reshape(-1, 2),
            runs=np.concatenate([*runs, np.zeros((0, 3), dtype=np.int32)]),
            logprobs=arrays[0],
            entropies=arrays[1].astype(np.float16),
            top_ids=arrays[3].astype(np.int32) if top else None,
            top_logprobs=arrays[4].astype(np.float16) if top else None,
        )


def _runs(row: int, positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """[R, 3] row, first position and length of each run of neighbouring positions."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    lengths = np.diff(starts, append=len(positions))
    return np.stack([np.full(len(starts), row), positions[starts], lengths], axis=1).astype(np.int32)
