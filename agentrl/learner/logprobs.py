"""Log-probabilities of chosen tokens under a causal language model, in little memory.

The head of the model is applied only at positions that predict a chosen token, and only to so many of
them at a time that a bounded number of logits exists; the backward pass computes them again. A full
`[tokens, vocabulary]` tensor is the largest thing in the memory of an ordinary step, and never made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from agentrl.errors import ConfigError

LOGITS_AT_ONCE = 1 << 25
"""Logits in one piece: 128 MiB in float32, of which a few copies exist at a time."""
LOGITS_AT_ONCE_GPU = 1 << 27
"""The same on a GPU, whose kernels want larger pieces: 512 MiB."""


class Scores(NamedTuple):
    """What a model says of N tokens, in nats and float32; logits are divided by the temperature."""

    logprobs: Tensor
    """[N] of the tokens."""
    entropies: Tensor
    """[N] of the distributions they were drawn from."""
    logsumexp: Tensor
    """[N] of the logits; a token's own logit is the sum of its log-probability and this."""
    top_ids: Tensor
    """[N, k] the likeliest tokens, the likeliest first."""
    top_logprobs: Tensor
    """[N, k]"""
    at_logprobs: Tensor
    """[N, j] of the tokens that were asked for besides."""


class Pieces(NamedTuple):
    """What is computed of some logits at a time; compiled, each is one pass over them."""

    statistics: Callable[..., Scores]
    gradient: Callable[..., Tensor]


class _SelectedLogProbs(torch.autograd.Function):
    """(hidden [N, D], weight [V, D], bias [V] or None, targets [N], temperature [N], at [N, j], ...)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor,
        at: Tensor,
        at_once: int,
        pieces: Pieces,
        top: int,
    ) -> tuple[Tensor, ...]:
        rows = max(1, at_once // weight.shape[0])
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        found = Scores(
            logprobs,
            torch.empty_like(logprobs),
            torch.empty_like(logprobs),
            torch.empty((len(hidden), top), dtype=torch.int64, device=hidden.device),
            torch.empty((len(hidden), top), dtype=torch.float32, device=hidden.device),
            torch.empty(at.shape, dtype=torch.float32, device=hidden.device),
        )
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            some = pieces.statistics(
                hidden[part], weight, bias, targets[part], temperature[part], top, at[part]
            )
            for whole, values in zip(found, some, strict=True):
                whole[part] = values
        ctx.save_for_backward(
            hidden, weight, bias, targets, temperature, found.logsumexp, found.entropies, found.top_ids, at
        )
        ctx.rows, ctx.pieces = rows, pieces
        ctx.mark_non_differentiable(found.top_ids)
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_logprobs, to_entropies, to_normalisers, _, to_top, to_at = gradients
        hidden, weight, bias, targets, temperature, normalisers, entropies, top_ids, at = ctx.saved_tensors
        learned = ctx.needs_input_grad[1]
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if learned else None
        to_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            to_logits = ctx.pieces.gradient(
                hidden[part],
                weight,
                bias,
                targets[part],
                temperature[part],
                normalisers[part],
                entropies[part],
                *(
                    None if given is None else given[part]
                    for given in (to_logprobs, to_entropies, to_normalisers, to_top, to_at)
                ),
                top_ids[part],
                at[part],
            )
            if to_bias is not None:
                to_bias += to_logits.sum(0)
            to_logits = to_logits.to(hidden.dtype)
            to_hidden[part] = to_logits @ weight
            if to_weight is None:
                continue
            if to_logits.dtype == torch.float32:
                to_weight.addmm_(to_logits.t(), hidden[part])
            else:
                to_weight += to_logits.t() @ hidden[part]
        to_bias = None if bias is None or to_bias is None else to_bias.to(bias.dtype)
        to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        return to_hidden, to_weight, to_bias, None, None, None, None, None, None


def _statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    top: int,
    at: Tensor,
) -> Scores:
    """Of n targets and their distributions."""
    logits = _logits(hidden, weight, bias, temperature)
    largest = logits.amax(-1)
    logits -= largest[:, None]
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    asked = logits.gather(-1, at)
    if top:
        top_logits, top_ids = logits.topk(top, dim=-1)
    else:
        top_logits, top_ids = logits[:, :0], logits[:, :0].long()
    # In place and with a single exponential: passes over this tensor are what forward costs.
    powers = logits.exp()
    total = powers.sum(-1)
    normaliser = total.log()
    entropy = normaliser - powers.mul_(logits).sum(-1) / total
    return Scores(
        chosen - normaliser,
        entropy,
        largest + normaliser,
        top_ids,
        top_logits - normaliser[:, None],
        asked - normaliser[:, None],
    )


def _gradient(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    normalisers: Tensor,
    entropies: Tensor,
    to_logprobs: Tensor | None,
    to_entropies: Tensor | None,
    to_normalisers: Tensor | None,
    to_top: Tensor | None,
    to_asked: Tensor | None,
    top_ids: Tensor,
    asked: Tensor,
) -> Tensor:
    """Gradient [n, V] at the head's output, float32."""
    log_probabilities = _logits(hidden, weight, bias, temperature)
    log_probabilities -= normalisers[:, None]
    at = []  # d log p_j / d z_i = [i = j] - p_i, of the targets and of all other tokens alike
    if to_logprobs is not None:
        at.append((targets[:, None], to_logprobs[:, None]))
    if to_top is not None:
        at.append((top_ids, to_top))
    if to_asked is not None:
        at.append((asked, to_asked))
    to_logits = _gradient_of_logits(log_probabilities, entropies, at, to_entropies, to_normalisers)
    return to_logits.div_(temperature[:, None])


PIECES = Pieces(_statistics, _gradient)


def compiled_pieces() -> Pieces:
    """The same, fused by torch.compile."""
    return Pieces(torch.compile(_statistics, dynamic=True), torch.compile(_gradient, dynamic=True))


def _gradient_of_logits(
    log_probabilities: Tensor,
    entropies: Tensor,
    at: list[tuple[Tensor, Tensor]],
    to_entropies: Tensor | None,
    to_normalisers: Tensor | None,
) -> Tensor:
    """[n, V]: d log p_j / d z_i = [i = j] - p_i, d H / d z_i = -p_i (log p_i + H), d logsumexp / d z_i = p_i.

    Overwrites `log_probabilities`; `at` are ids j [n, k], with gradients [n, k] at their log-probabilities.
    """
    extra = None
    if to_entropies is not None:
        extra = (log_probabilities + entropies[:, None]).mul_(-to_entropies[:, None])
    probabilities = log_probabilities.exp_()
    if extra is not None:
        extra.mul_(probabilities)
    to_all = torch.zeros_like(entropies) if to_normalisers is None else to_normalisers
    for _, gradients in at:
        to_all = to_all - gradients.sum(-1)
    result = probabilities.mul_(to_all[:, None])
    for ids, gradients in at:
        result.scatter_add_(-1, ids, gradients)
    return result if extra is None else result.add_(extra)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor) -> Tensor:
    """[n, V] float32 logits, divided by the temperature [n]."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits.div_(temperature[:, None])


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    *,
    at_once: int = LOGITS_AT_ONCE,
    pieces: Pieces = PIECES,
    top: int = 0,
    at: Tensor | None = None,
) -> Scores:
    """What a model says of N targets.

    Args:
        hidden: [N, D] last hidden states at the predicting positions.
        weight: [V, D] of the head.
        bias: [V] of the head, or None.
        targets: [N] token ids.
        temperature: [N] float32, positive; logits are divided by it.
        at_once: logits that exist at a time.
        pieces: what is done with them.
        top: k likeliest tokens that are looked for at each position.
        at: [N, j] token ids that are asked for besides.
    """
    asked = targets[:, None][:, :0] if at is None else at
    result = _SelectedLogProbs.apply(hidden, weight, bias, targets, temperature, asked, at_once, pieces, top)
    return Scores(*cast("tuple[Tensor, ...]", result))


class TokenScorer(nn.Module):
    """A causal language model seen as a function from tokens to log-probabilities of chosen ones.

    Args:
        model: a transformers causal language model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pieces = PIECES
        self.at_once = LOGITS_AT_ONCE
        self.float32_head = False
        """Whether hidden states and head are multiplied in float32, whatever their type."""

    def compile_parts(self) -> None:
        """Fuse each layer and the head with torch.compile, for any number of tokens."""
        for layer in cast("Any", self.model).base_model.layers:
            layer.compile(dynamic=True)
        self.pieces = compiled_pieces()

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        targets: Tensor,
        temperature: Tensor,
        top: int = 0,
        at: Tensor | None = None,
        **boundaries: Any,
    ) -> Scores:
        """What the model says of N chosen tokens.

        Args:
            input_ids: [R, T], padded on the right; attention is causal, so padding changes nothing.
            rows: [N] row of each chosen token.
            columns: [N] position that predicts it.
            targets: [N] its id.
            temperature: [N] float32.
            top: k likeliest tokens that are looked for at each position.
            at: [N, j] token ids that are asked for besides.
            boundaries: where packed sequences begin.
        """
        model = cast("Any", self.model)
        states = model.base_model(input_ids=input_ids, use_cache=False, **boundaries).last_hidden_state
        head = model.get_output_embeddings()
        hidden, weight, bias = states[rows, columns], head.weight, getattr(head, "bias", None)
        if self.float32_head:
            hidden, weight = hidden.float(), weight.float()
            bias = None if bias is None else bias.float()
        return selected_log_probs(
            hidden,
            weight,
            bias,
            targets,
            temperature,
            at_once=self.at_once,
            pieces=self.pieces,
            top=top,
            at=at,
        )


def check_head(scorer: TokenScorer, name: str) -> None:
    """Make sure that the model's own logits are what its head gives.

    Some architectures scale or cap their logits after the head; they would be learned from wrongly.

    Raises:
        ConfigError: the two differ.
    """
    model = cast("Any", scorer.model)
    device = next(model.parameters()).device
    size = int(model.config.vocab_size)
    ids = torch.tensor([[number * 7 % size for number in range(1, 9)]], device=device)
    columns = torch.arange(7, device=device)
    ones = torch.ones(7, device=device)
    with torch.no_grad():
        mine = scorer(ids, torch.zeros_like(columns), columns, ids[0, 1:], ones).logprobs
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    full = torch.log_softmax(logits, dim=-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    if not torch.allclose(mine, full, atol=tolerance):
        raise ConfigError(
            f"model {name!r} ({type(model).__name__}) changes its logits after the head (largest difference "
            f"{float((mine - full).abs().max()):.3g} nats), which the learner does not support"
        )
