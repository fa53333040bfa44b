"""`env.name = "reasoning_gym:NAME"`: a generator of the package reasoning-gym, its own scorer as the reward.

Training and held-out rows never share a question. Knows nothing of what the questions are about.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..env import Env
from ..errors import EnvError, EnvNotFound, SettingsError
from ..tools.schema import schema_of
from .making import make_class

__all__ = ["ReasoningGym", "reasoning_gym_env"]

_NONSENSE = "no answer at all"
_HELD_OUT = 4
"""One question in so many is held out."""
_ATTEMPTS = 8
"""Questions that are looked at for each row that is wanted, before the generator counts as used up."""
_ORDINARY = (ArithmeticError, AssertionError, AttributeError, LookupError, SyntaxError, TypeError, ValueError)
"""What scorers raise on text that is no answer."""


class ReasoningGym(Env):
    """A generated question; the answer stands between <answer> and </answer>."""

    required_fields = ("question", "metadata")
    generator: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    """Settings of the generator that were given."""

    instruction: str = "Think first. Then write the answer alone between <answer> and </answer>."
    """What follows the question."""

    def prompt(self, row: Mapping[str, Any]) -> str:
        """The question, and how to answer."""
        return f"{row['question']}\n\n{self.instruction}".rstrip()

    def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """The package's score of the answer, 0 to 1; 0 where any nonsense would have earned as much."""
        stated = _stated(answer)
        if not stated:
            return 0.0
        scorer = _scorer(self.generator, json.dumps(self.options, sort_keys=True))
        score = self._score(scorer, stated, row)
        if stated == row.get("answer") or score == 0:
            return score
        # Some scorers pay anything that is not the other of two answers, others a little for any text.
        return score if score > self._score(scorer, _NONSENSE, row) else 0.0

    def _score(self, scorer: _Scorer, stated: str, row: Mapping[str, Any]) -> float:
        """A score; 0 where the scorer stumbles over the text, EnvError where it does over its own answer."""
        try:
            return scorer.score(stated, row)
        except _ORDINARY:
            if row.get("answer") is not None:
                scorer.score(str(row["answer"]), row)
            self.speaker.count("reasoning_gym/unreadable_answers")
            return 0.0

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """`count` different rows `{"id", "question", "answer", "metadata"}`, for "generated:train:300".

        The checksum of a question decides its split, whatever the seeds.

        Raises:
            SettingsError: the generator has no more different questions.
        """
        attempts = _ATTEMPTS * (count + 50)
        # Question i of seed s is a function of s + i: neighbouring seeds would give the same questions.
        start = zlib.crc32(f"{cls.generator}/{seed}".encode())
        dataset = _dataset(cls.generator, cls.options, start, attempts)
        rows: dict[str, dict[str, Any]] = {}
        for number in range(attempts):
            try:
                entry = dataset[number]
            except IndexError:
                break
            checksum = zlib.crc32(entry["question"].encode())
            if (checksum % _HELD_OUT == 0) == (split == "test"):
                key = f"{cls.generator}-{checksum:08x}"
                rows.setdefault(entry["question"], {"id": key, **_plain(entry)})
            if len(rows) == count:
                return [*rows.values()]
        raise SettingsError(
            f"reasoning_gym:{cls.generator} gave {len(rows)} different questions for {split!r}, and {count} "
            "are wanted: ask for fewer, or let its settings allow for more"
        )


class _Scorer:
    """The scorer of one generator, for rows that were JSON in between."""

    def __init__(self, generator: str, options: Mapping[str, Any]) -> None:
        self._dataset = _dataset(generator, options, 0)
        entry = self._dataset[0]
        self._form = _plain
        if entry["answer"] is None:
            return
        gold = str(entry["answer"])
        want = self._dataset.score_answer(gold, entry)
        for form in (_plain, _tupled):
            self._form = form
            try:
                if self.score(gold, _plain(entry)) == want:
                    return
            except _ORDINARY:
                continue
        raise EnvError(f"reasoning_gym:{generator} cannot score its own answer from a row of JSON")

    def score(self, stated: str, row: Mapping[str, Any]) -> float:
        """The package's score of `stated`, 0 to 1."""
        return float(self._dataset.score_answer(stated, self._form(row)))


@functools.lru_cache(maxsize=64)
def _scorer(generator: str, options: str) -> _Scorer:
    return _Scorer(generator, json.loads(options))


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as it is after it was JSON."""
    return json.loads(json.dumps(dict(entry), default=str))


def _tupled(value: Any) -> Any:
    """As `_plain`, with tuples for lists: what some scorers compare with."""
    if isinstance(value, Mapping):
        return {key: _tupled(one) for key, one in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _stated(text: str | None) -> str | None:
    """What stands between the last <answer> and </answer> after the thoughts."""
    text = (text or "").rpartition("</think>")[2]
    before, closed, _ = text.partition("<think>")[0].rpartition("</answer>")
    return before.rpartition("<answer>")[2].strip() if closed and "<answer>" in before else None


def _dataset(generator: str, options: Mapping[str, Any], seed: int, size: int = 8) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(generator, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise SettingsError(f"reasoning_gym:{generator} refuses its settings {options}: {error}") from error


def reasoning_gym_env(rest: str, settings: Mapping[str, Any]) -> type[ReasoningGym]:
    """The environment of `env.name = "reasoning_gym:NAME"`; the generator's settings are the class's.

    Raises:
        EnvNotFound: no such generator.
        SettingsError: settings that it does not have, or refuses.
    """
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS) - {"composite"})
    if rest not in known:
        near = difflib.get_close_matches(rest, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        if rest == "composite":
            hint = "give each generator an [[env]] of its own, with its weight"
        raise EnvNotFound(f"reasoning-gym has no generator {rest!r} that can be used here; {hint}")
    body = _settings_of(DATASETS[rest][1])
    body |= {"generator": rest, "__doc__": f"Questions of reasoning-gym's {rest}."}
    made, given = make_class(ReasoningGym, body, settings)
    made.options = {name: value for name, value in given.items() if name in body["__annotations__"]}
    _dataset(rest, made.options, 0)
    return made


def _settings_of(config: type) -> dict[str, Any]:
    """Class attributes that declare the fields of a generator's configuration as settings."""
    hints = typing.get_type_hints(config)
    body: dict[str, Any] = {"__annotations__": {}}
    for field in dataclasses.fields(config):
        if field.name in ("seed", "size") or hasattr(Env, field.name):
            continue
        try:
            schema_of(hints[field.name])
        except TypeError:
            hints[field.name] = Any
        made = field.default_factory
        body[field.name] = field.default if made is dataclasses.MISSING else made()
        body["__annotations__"][field.name] = hints[field.name]
    return body
