"""What a setting's type says besides: the range of a number, the family of a part that is named.

`Annotated[int, Range(least=1)]` is a whole number from 1. No range holds NaN or an infinity.
"""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of finite numbers; a bound that is None does not bound."""

    least: float | None = None
    """Smallest number that belongs to it."""
    most: float | None = None
    """Largest number that belongs to it."""
    above: float | None = None
    """Every number of it is larger than this."""
    below: float | None = None
    """Every number of it is smaller than this."""
    or_zero: bool = False
    """0 belongs to it besides: it switches something off."""

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (self.or_zero and value == 0) or (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def wanted(self, value: float) -> str:
        """What would be right in place of `value`."""
        return str(self) if math.isfinite(value) or not self._bounds() else f"finite and {self}"

    def __str__(self) -> str:
        return f"{'0, or ' if self.or_zero else ''}{self._bounds() or 'a finite number'}"

    def _bounds(self) -> str:
        bounds = (
            ("at least", self.least),
            ("above", self.above),
            ("at most", self.most),
            ("below", self.below),
        )
        return " and ".join(f"{word} {_shown(bound)}" for word, bound in bounds if bound is not None)


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def range_of(hint: Any) -> Range | None:
    """The range written in a type, None where there is none."""
    found = (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range))
    return next(found, None)


@dataclass(frozen=True, slots=True)
class PartOf:
    """Says in a setting's type that it names a part: `Annotated[str, PartOf("loss")]`."""

    family: str
    also: tuple[str, ...] = ()
    """Words besides names of parts."""


def part_of(hint: Any) -> PartOf | None:
    """The family that a type names parts of, None where it names none."""
    found = (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, PartOf))
    return next(found, None)


def out_of_range(section: Any, name: str = "") -> Iterator[str]:
    """What is wrong with the numbers of a dataclass, one sentence each.

    Args:
        section: its annotations hold the ranges.
        name: of the section, put before the names of its fields.
    """
    hints = typing.get_type_hints(type(section), include_extras=True)
    for field in fields(section):
        value: Any = getattr(section, field.name)
        hint = hints[field.name]
        if is_dataclass(value):
            yield from out_of_range(value, f"{name}{'.' if name else ''}{field.name}")
            continue
        several = isinstance(value, tuple)
        for part, kind in zip(value, typing.get_args(hint), strict=False) if several else [(value, hint)]:
            within = range_of(kind)
            if within is not None and part not in within:
                yield f"{name}{'.' if name else ''}{field.name} = {value!r} must be {within.wanted(part)}"


def check_ranges(section: Any, name: str = "") -> None:
    """Check the numbers of a dataclass, and its rules where it has some.

    Raises:
        ConfigError: with everything that is out of range or breaks a rule.
    """
    rules = section.rules() if hasattr(section, "rules") else ()
    wrong = [*out_of_range(section, name), *(text for _, text in rules)]
    if wrong:
        raise ConfigError("; ".join(wrong))


def number(hint: Any) -> Callable[[str], Any]:
    """A `type=` of argparse: reads a number of an annotated type, and names the range of what it refuses."""
    kind, within = typing.get_args(hint)[0], range_of(hint)

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if within is not None and value not in within:
            raise argparse.ArgumentTypeError(f"{text} must be {within.wanted(value)}")
        return value

    return read


Amount = Annotated[float, Range(least=0)]
"""A number from 0."""
Count = Annotated[int, Range(least=1)]
"""A whole number from 1."""
Number = Annotated[int, Range(least=0)]
"""A whole number from 0."""
Port = Annotated[int, Range(least=0, most=65_535)]
"""Of TCP; 0 takes a free one."""
Positive = Annotated[float, Range(above=0)]
"""A number above 0."""
Seconds = Annotated[float, Range(above=0)]
"""A time that passes."""
Share = Annotated[float, Range(least=0, most=1)]
"""A part of a whole."""
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
"""What every generator of random numbers takes."""
