"""Tells, token by token, whether a message has come to its end.

A stop text may span tokens and may end inside one. Looking at text for every token would cost more
than sampling it, so each vocabulary entry is classified once, when first seen: most can neither end
a message nor complete a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.errors import ConfigError
from agentrl.renderers.text import decode_exactly

_UNKNOWN, _ORDINARY, _CANDIDATE, _STOP = range(4)


class TokenTexts:
    """Text of single tokens as they appear inside a longer text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space before the first word: an anchor in front keeps it.
        self._anchor = list(tokenizer.encode("a", add_special_tokens=False))[-1:]
        self._anchor_text = self.decode(self._anchor)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        return decode_exactly(self._tokenizer, token_ids)

    def __getitem__(self, token: int) -> str:
        text = self.decode([*self._anchor, token])
        return text[len(self._anchor_text) :]


class StopRule:
    """Stop texts and stop tokens of one kind of request.

    Args:
        vocabulary: number of token ids.
        stop: texts; needs `texts`.
        stop_token_ids: tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        texts: TokenTexts | None = None,
    ) -> None:
        if stop and texts is None:
            raise ConfigError(f"stop texts {list(stop)} need an engine with a tokenizer")
        if "" in stop:
            raise ConfigError("an empty stop text would end every message")
        self._stop = tuple(stop)
        self._texts = texts
        # Without stop texts nothing has to be found out about a token.
        self._kinds = bytearray([_UNKNOWN if stop else _ORDINARY]) * vocabulary
        for token in stop_token_ids:
            if 0 <= token < vocabulary:
                self._kinds[token] = _STOP
        # A token is at least one byte of the text, so this many tokens hold any stop text.
        self._window = max((len(text.encode()) for text in stop), default=0) + 4

    def ended(self, token_ids: Sequence[int], start: int) -> bool:
        """Whether the last token ends the message that began at `start`."""
        token = token_ids[-1]
        kind = self._kinds[token]
        if kind == _ORDINARY:
            return False
        if kind == _STOP:
            return True
        if kind == _UNKNOWN:
            kind = self._kinds[token] = _CANDIDATE if self._may_complete(token) else _ORDINARY
        return kind == _CANDIDATE and self._completes(token_ids, start)

    def _completes(self, token_ids: Sequence[int], start: int) -> bool:
        assert self._texts is not None
        text = self._texts.decode(token_ids[max(start, len(token_ids) - self._window) :])
        return any(stop in text for stop in self._stop)

    def _may_complete(self, token: int) -> bool:
        """Whether a text that ends with this token can hold a stop text that it did not hold before."""
        assert self._texts is not None
        text = self._texts[token]
        if not text or ("\ufffd" in text and not all(stop.isascii() for stop in self._stop)):
            return True  # A part of a character: only the whole text can tell.
        return any(_completes(text, stop) for stop in self._stop)


def _completes(text: str, stop: str) -> bool:
    """Whether some end of `stop` is a beginning of `text`, or `text` holds `stop`."""
    return stop in text or any(text.startswith(stop[at:]) for at in range(1, len(stop)))
