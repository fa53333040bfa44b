"""Text to token ids without letting text pose as control tokens, and long text cut to size.

Knows nothing of messages, templates or tools.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from agentrl_envs.plain import clean_text

BREAK = "\ue0f7"
"""Private-use character put inside control text; the text is encoded in pieces around it."""


class Tokenizer(Protocol):
    """What renderers need of a tokenizer; Hugging Face tokenizers have it."""

    eos_token_id: Any
    bos_token_id: Any

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> str:
        """Text of token ids."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Texts that are tokens of their own, special or not."""
        ...


def decode_exactly(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of token ids as the model wrote it: control tokens included, no space tidied away."""
    if hasattr(tokenizer, "clean_up_tokenization_spaces"):
        return tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    return tokenizer.decode(list(token_ids), skip_special_tokens=False)


def message_id(token_ids: Sequence[int]) -> str:
    """Id for the calls of a message: the same for the same tokens."""
    return f"call_{zlib.crc32(array('i', list(token_ids))):08x}"


class TextCodec:
    """Encodes and decodes text with one tokenizer; keeps foreign text from becoming control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that foreign text must never be encoded to."""
        return frozenset(i for text, i in self._control_texts.items())

    @cached_property
    def _control_texts(self) -> dict[str, int]:
        # One visible character, as character-level tokenizers add them, is text and not control.
        special = set(getattr(self.tokenizer, "all_special_tokens", ()))
        added = self.tokenizer.get_added_vocab()
        return {text: i for text, i in added.items() if text and (len(text) > 1 or text in special)}

    @cached_property
    def _breaks(self) -> list[tuple[re.Pattern[str], str]]:
        return _first_characters([text for text in self._control_texts if len(text) > 1])

    def neutral(self, text: str) -> str:
        """The text with `BREAK` after the first character of every control text in it."""
        text = text.replace(BREAK, "\ufffd")
        for first, broken in self._breaks:
            text = first.sub(broken, text)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids; control texts become control tokens, except where `neutral` broke them."""
        ids: list[int] = []
        for piece in clean_text(text).split(BREAK):
            if piece:
                ids += self.tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included."""
        return decode_exactly(self.tokenizer, token_ids)


def _first_characters(texts: Sequence[str]) -> list[tuple[re.Pattern[str], str]]:
    """Pattern and replacement for each first character of the texts; what follows is only looked at, so that
    texts that overlap are all found. (One pattern for all would need a function called for each match.)"""
    by_first: dict[str, list[str]] = {}
    for text in texts:
        by_first.setdefault(text[0], []).append(re.escape(text[1:]))
    return [
        (re.compile(f"{re.escape(first)}(?={'|'.join(rests)})"), first.replace("\\", r"\\") + BREAK)
        for first, rests in by_first.items()
    ]


def fenced_code(block: str) -> str:
    """The program of a code block, with or without a Markdown fence around it."""
    code = block.strip()
    first, newline, rest = code.partition("\n")
    if not (newline and first.startswith("```") and "`" not in first[3:]):
        return block.strip("\n")
    rest = rest.rstrip()
    return rest.removesuffix("```").rstrip(" \t").strip("\n") if rest.endswith("```") else rest.strip("\n")


def cut_text(text: str, limit: int) -> str:
    """Head and tail of a text of more than `limit` characters, with a line between that says so."""
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    omitted = len(text) - limit
    return (
        f"{text[:head]}\n[... {omitted} of {len(text)} characters left out ...]\n{text[len(text) - tail :]}"
    )
