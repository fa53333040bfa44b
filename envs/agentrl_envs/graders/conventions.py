r"""What a data set means where writers differ: the decimal mark and the base of `\log`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Conventions"]


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""How the answers of one data set are read.

    decimal_comma: `3,14` is 3.14 and `1.234,5` is 1234.5; lists are then separated by semicolons or spaces.
    log_base: of a `\log` without a base.
    """

    decimal_comma: bool = False
    log_base: Literal["10", "e", "2"] = "10"

    def __post_init__(self) -> None:
        if self.log_base not in ("10", "e", "2"):
            raise ValueError(f'log_base {self.log_base!r}: want "10", "e" or "2"')

    def read(self, text: str) -> str:
        """An answer, or a gold answer, as it would be written under the usual conventions."""
        if self.decimal_comma:
            text = re.sub(r"(?<=\d)\.(?=\d{3}(?!\d))", "", text.replace("{,}", ","))
            text = re.sub(r"(?<=\d),(?=\d)", ".", text)
        if self.log_base != "10":
            text = re.sub(r"\\log(?![A-Za-z]|\s*_)", r"\\ln" if self.log_base == "e" else r"\\log_{2}", text)
        return text
