"""Hostile programs and what a good sandbox does with each; for the tests of every backend.

A case prints ESCAPED when it got what it must not get. They are run by `tests/sandbox/hostile_harness.py`,
which refuses to run them without isolation. Knows `Status` and nothing of any backend.
"""

from .case import Case, Surroundings
from .clock import CASES as _CLOCK
from .damage import CASES as _DAMAGE
from .disk import CASES as _DISK
from .kernel import CASES as _KERNEL
from .memory import CASES as _MEMORY
from .neighbours import CASES as _NEIGHBOURS
from .notebook import CASES as _NOTEBOOK
from .outside import CASES as _OUTSIDE
from .protocol import CASES as _PROTOCOL
from .resources import CASES as _RESOURCES

_ALL = (
    *_RESOURCES, *_OUTSIDE, *_PROTOCOL, *_NOTEBOOK, *_DAMAGE,
    *_KERNEL, *_CLOCK, *_MEMORY, *_DISK, *_NEIGHBOURS,
)  # fmt: skip
CASES: tuple[Case, ...] = tuple(sorted(_ALL, key=lambda case: case.number))

__all__ = ["CASES", "Case", "Surroundings"]
