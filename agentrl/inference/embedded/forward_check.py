"""Proves at start-up that an architecture decodes row by row as it does in one plain pass.

An architecture may bring positions, masks or scalings of its own; one that this engine would decode
wrongly is refused here, before anything is learned from wrong log-probabilities.
"""

from __future__ import annotations

from array import array
from typing import Any

import torch

from agentrl.errors import PolicyUnavailable
from agentrl.inference.embedded.batch_decoder import BatchDecoder
from agentrl.inference.embedded.kv_cache import ATTENTION
from agentrl.inference.embedded.row_table import Request
from agentrl.inference.embedded.stop_rules import StopRule
from agentrl.inference.embedded.token_sampling import stream_key
from agentrl.inference.policy import Sampling

_SAMPLED = 3
_LIMITS = {torch.float32: 2e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest difference of a log-probability, in nats; a wrong mask makes whole nats."""


def check_decoding(model: Any, decoder: BatchDecoder, vocabulary: int, context: int) -> None:
    """Sample a little and score it again in one pass.

    Raises:
        PolicyUnavailable: the log-probabilities differ.
    """
    if context < 16:
        return
    prompts = [[(7 * i + 3) % vocabulary for i in range(length)] for length in (5, 9)]
    requests = [_request(f"check {i}", prompt, vocabulary) for i, prompt in enumerate(prompts)]
    for request in requests:
        decoder.submit(request)
    while decoder.busy:
        for ended, _ in decoder.step():
            decoder.release(ended.session)  # Its row may be the only one.
    model.set_attn_implementation("sdpa")
    try:
        worst = max(_difference(model, request) for request in requests)
    finally:
        model.set_attn_implementation(ATTENTION)
    decoder.reset_counters()
    limit = _LIMITS.get(model.dtype, 0.1)
    if not worst <= limit:
        raise PolicyUnavailable(
            f"{model.config.model_type} cannot be decoded by the transformers engine: its "
            f"log-probabilities are off by {worst:.2g} nats from those of a plain pass "
            f"(at most {limit:g} is rounding); use vLLM"
        )


def _request(session: str, prompt: list[int], vocabulary: int) -> Request:
    return Request(
        session=session,
        token_ids=array("i", prompt),
        prompt_tokens=len(prompt),
        sampling=Sampling(max_new_tokens=_SAMPLED),
        rule=StopRule(vocabulary),
        key=stream_key(0),
        limit=_SAMPLED,
    )


@torch.inference_mode()
def _difference(model: Any, request: Request) -> float:
    """Largest |difference| of the log-probabilities of a message, in nats."""
    ids = torch.tensor([list(request.token_ids)], device=model.device)
    logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
    at = torch.arange(request.prompt_tokens - 1, len(request.token_ids) - 1, device=model.device)
    wanted = logprobs[at, ids[0, at + 1]].cpu()
    got = torch.tensor(list(request.logprobs))
    if len(got) < len(wanted) or len(got) == 0:
        return float("inf")
    return float((wanted - got).abs().max())
