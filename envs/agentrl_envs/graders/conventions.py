r"""What a data set means where writers differ: the decimal mark, `\log`, percentages and units left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .cleaning import cleaned
from .exact import number_of
from .units import split_unit

__all__ = ["Conventions"]


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""How the answers of one data set are read.

    decimal_comma: `3,14` is 3.14 and `1.234,5` is 1234.5; lists are then separated by semicolons or spaces.
    log_base: of a `\log` without a base.
    percent_signs, units: "optional": `50\%` is also 50, `5\text{ cm}` is also 5; "required": they are not.
    """

    decimal_comma: bool = False
    log_base: Literal["10", "e", "2"] = "10"
    percent_signs: Literal["optional", "required"] = "optional"
    units: Literal["optional", "required"] = "optional"

    def __post_init__(self) -> None:
        if self.log_base not in ("10", "e", "2"):
            raise ValueError(f'log_base {self.log_base!r}: want "10", "e" or "2"')
        for name in ("percent_signs", "units"):
            if (value := getattr(self, name)) not in ("optional", "required"):
                raise ValueError(f'{name} {value!r}: want "optional" or "required"')

    def read(self, text: str) -> str:
        """An answer, or a gold answer, as it would be written under the usual conventions."""
        if self.decimal_comma:
            text = re.sub(r"(?<=\d)\.(?=\d{3}(?!\d))", "", text.replace("{,}", ","))
            text = re.sub(r"(?<=\d),(?=\d)", ".", text)
        if self.log_base != "10":
            text = re.sub(r"\\log(?![A-Za-z]|\s*_)", r"\\ln" if self.log_base == "e" else r"\\log_{2}", text)
        if self.percent_signs == "required" and "%" in text:
            value, unit = split_unit(cleaned(text))
            if unit == "%" and (number := number_of(value)) is not None:
                return f"{number.numerator}/{number.denominator * 100}"
        return text

    def differ(self, answer: str, gold: str) -> bool:
        """Whether only one of two answers states a unit that both must state."""
        if self.units == "optional":
            return False
        wanted = split_unit(cleaned(gold))[1]
        given = split_unit(cleaned(answer), wanted)[1]
        return bool(given and given != "%") != bool(wanted and wanted != "%")
