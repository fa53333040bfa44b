"""A task of several turns whose right credit is known, and a model of 21 thousand parameters for it.

The model is shown a letter at a time and answers each with one token; a letter has one right digit. Turns have
nothing to do with each other: what a turn deserves is 1 / TURNS if its digit is right, and nothing of what
other turns got. Credited by the episode, each of them is given the luck of the five others.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from agentrl.renderers.base import ParsedMessage
from agentrl_envs import Env, ToolResult, ToolSpec, text_of
from benchmarks.tiny_config import tiny_config

LETTERS, DIGITS = "abcdefgh", "01234567"
TURNS = 6
RIGHT = {letter: DIGITS[(5 * place + 3) % 8] for place, letter in enumerate(LETTERS)}


class Letters(Env):
    """Answer each letter with its digit; the reward is the share of right digits."""

    system_prompt: ClassVar[str | None] = ""
    max_turns = TURNS
    required_fields = ("word",)
    example_rows = ({"word": "abcdef"},)

    async def prompt(self, row: Mapping[str, Any]) -> str:
        """The first letter."""
        self._word, self._right = row["word"], list[bool]()
        return self._word[0]

    async def reply(self, message: str) -> str | None:
        """The next letter, until all are answered."""
        self._right.append(message == RIGHT[self._word[len(self._right)]])
        self.answered(self._right[-1])
        return None if len(self._right) == TURNS else self._word[len(self._right)]

    def answered(self, right: bool) -> None:
        """A turn was answered."""

    async def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """Share of right digits."""
        return sum(self._right) / TURNS

    @classmethod
    def generate_rows(cls, count: int, *, split: Literal["train", "test"], seed: int = 0):
        """Different words."""
        words = ["".join(word) for word in itertools.product(LETTERS, repeat=TURNS)]
        chosen = random.Random(f"{split}/{seed}").sample(words[split == "test" :: 2], count)
        return [{"id": word, "word": word} for word in chosen]


class CreditedLetters(Letters):
    """The same, with the reward where it was earned: each turn its own, and the episode's taken from the last."""

    def answered(self, right: bool) -> None:
        """Reward the turn."""
        self.reward_turn(right / TURNS)

    async def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """Share of right digits; turns sum to it, so the last turn gives back what it is given once more."""
        total = await super().reward(row, answer)
        self.reward_turn(-total)
        return total


class OneToken:
    """A renderer whose every message is one token.

    Args:
        tokenizer: of the model.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.stop_token_ids = tuple(range(len(tokenizer)))
        self.turn_end_id = int(tokenizer.eos_token_id)

    def start(self, messages: Sequence[Any], tools: Sequence[ToolSpec]) -> list[int]:
        """Ids of what the last message says."""
        return self._tokenizer.encode(text_of(messages[-1]))

    def parse(self, token_ids: Sequence[int], tools: Sequence[Any] = ()) -> ParsedMessage:
        """The token as text."""
        text = self.decode(token_ids)
        return ParsedMessage(text=text, tool_calls=(), message={"role": "assistant", "content": text})

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Ids of the reply."""
        return self._tokenizer.encode(additions)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids."""
        return self._tokenizer.decode(token_ids)


def make_model(folder: Path, seed: int) -> Path:
    """Write a random model and its tokenizer, one token a character."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    names = ["<|end|>", "<|pad|>", *LETTERS, *DIGITS]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, "<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = tiny_config(
        vocabulary=len(names),
        inner=64,
        key_heads=2,
        context=64,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
