"""Tiny models for real servers: random, one that always says one token, one whose tokens hold a tool call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tiny_config import tiny_config

SPECIAL = ("<s>", "</s>", "<pad>")
CALL = "<code>\n```python\nprint(6*7)\n```\n</code>"
"""One token of the vocabulary, so that a model without attention can write a whole tool call."""
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
HIDDEN = 64


def save_tokenizer(folder: Path) -> dict[str, int]:
    """Bytes, three special tokens and the tool call; returns the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([CALL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return dict(tokenizer.get_vocab())


def make_model(size: int = 264, seed: int = 0, spread: float = 0.3) -> Any:
    """A random Llama with two layers, float32; its distributions are neither flat nor certain."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = tiny_config(
        "llama",
        vocabulary=size,
        hidden=HIDDEN,
        inner=128,
        key_heads=2,
        head=HIDDEN // 2,
        context=2048,
        **{f"{name}_token_id": number for number, name in enumerate(("bos", "eos", "pad"))},
        tie_word_embeddings=False,
        initializer_range=spread,
    )
    return LlamaForCausalLM(config).eval()


def save_random(folder: Path, seed: int = 0) -> Any:
    """Write a random model and its tokenizer; returns the model."""
    save_tokenizer(folder)
    model = make_model(seed=seed)
    model.save_pretrained(folder)
    return model


def save_constant(folder: Path, token: int) -> Path:
    """Write the weights of a model that can only say `token`: layers that add nothing, one live output."""
    import torch
    from safetensors.torch import save_file

    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.weight.fill_(1.0)
        model.lm_head.weight[token] = 2.0  # logit 128 against 0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in model.named_parameters()}, str(path))
    return path


def reference_logprobs(
    model: Any,
    prompt: Sequence[int],
    tokens: Sequence[int],
    temperature: float = 1.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[float]:
    """Log-probabilities of `tokens` after `prompt` under the truncated distribution, by transformers."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([[*prompt, *tokens]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    if top_k:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    scores = logits.log_softmax(-1)
    return [float(scores[index, token]) for index, token in enumerate(tokens)]


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation, one full forward pass per token."""
    import torch

    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
