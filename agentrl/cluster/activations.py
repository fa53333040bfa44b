"""What a forward and backward pass holds beside weights and optimizer, in bytes.

Counted from what torch saves in the layers of transformers' Llama, Qwen2 and Qwen3 (tests compare the two),
and from which of it is there at the same time: the peak is either in the head, whose logits come in pieces,
or in a layer on the way back, or where the gradient of the embeddings is put together.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.cluster.model_shape import ModelShape

LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU = 1 << 25, 1 << 27
"""As in `agentrl.learner.logprobs`, which this module does not import: it needs torch."""
MATRICES = 7
"""Of a layer, each with an adapter beside it."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch of T tokens on its way through a model.

    Args:
        shape: of the model.
        tokens: T.
        width: bytes of a number that is computed with.
        rank: of the adapter; 0 learns all weights.
        compiled: whether layers are fused.
        recomputed: whether only the inputs of layers are kept.
        float32_head: whether head and hidden states are multiplied in float32.
        entropy: whether the loss has an entropy term.
        logits: most that exist at a time.
    """

    shape: ModelShape
    tokens: int
    width: int
    rank: int = 0
    compiled: bool = False
    recomputed: bool = False
    float32_head: bool = False
    entropy: bool = False
    logits: int = LOGITS_AT_ONCE

    def _norm(self, size: int, *, read: bool) -> int:
        """Of a token in an RMS norm: the input in float32, the normalised where its weights are learned, and
        the output where the next operation reads it."""
        if self.compiled:
            return (1 + read) * self.width * size
        return (4 + (0 if self.rank else self.width) + (self.width if read else 0)) * size

    @property
    def layer(self) -> int:
        """What one layer saves of a token."""
        shape, width = self.shape, self.width
        queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
        # Rotated queries and keys, values, the output; and of each head a normaliser.
        attention = 2 * width * (queries + keys) + 4 * shape.heads
        if shape.head_norms:
            attention += self._norm(queries + keys, read=False) + 4 * (shape.heads + shape.key_heads)
        # The gate before and after its activation, what it is multiplied with, the product.
        gated = (3 if self.compiled else 4) * width * shape.intermediate
        norms = 2 * (self._norm(shape.hidden, read=True) + 4)
        return attention + gated + norms + MATRICES * self.rank * width

    @property
    def kept(self) -> int:
        """What all layers have saved when the head begins."""
        after = self._norm(self.shape.hidden, read=True) + self.width * self.shape.hidden
        layer = self.width * self.shape.hidden if self.recomputed else self.layer
        return self.tokens * (self.shape.layers * layer + after)

    @property
    def working(self) -> int:
        """The most that is there at one time besides, and for a short time only."""
        return max(self._head(), self._one_layer(), self._embeddings() - self.kept)

    def _head(self) -> int:
        size = self.shape.vocabulary * self.shape.hidden
        pieces = min(self.logits, self.tokens * self.shape.vocabulary)
        half = self.width < 4
        forward = 8 * pieces
        # Logits as float32 and as they are multiplied, and the gradient of the head with one piece's part.
        backward = (4 + (2 if half and not self.float32_head else 0) + 4 * self.entropy) * pieces
        if not self.rank:
            backward += (4 + (2 if half else 0)) * size
        return max(forward, backward) + (4 * size if self.float32_head and half else 0)

    def _one_layer(self) -> int:
        """The gradients inside an MLP, the layer itself where it is done again, and the head's gradient,
        which waits for that of the embeddings where both are one matrix."""
        gradients = 3 * self.width * self.shape.intermediate
        again = self.layer if self.recomputed else 0
        waits = self.shape.tied and not self.rank
        held = self.width * self.shape.vocabulary * self.shape.hidden if waits else 0
        return self.tokens * (gradients + again) + held

    def _embeddings(self) -> int:
        """Two gradients become one, and that one float32; every activation is gone."""
        if self.rank:
            return 0
        both = 2 if self.shape.tied else 1
        return max(self.width * both, self.width + 4) * self.shape.vocabulary * self.shape.hidden
