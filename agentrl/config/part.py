"""What classes of parts have in common."""

from __future__ import annotations

from typing import Generic, TypeVar

S = TypeVar("S")


class Part(Generic[S]):
    """A part that keeps its settings: `class Mine(Part["Mine.Settings"])`."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
