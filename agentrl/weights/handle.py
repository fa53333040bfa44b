"""The handle of one version's weights, which a learner gives and an engine takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WeightHandle:
    """Where the weights of one version are; never the tensors themselves.

    `source` is understood by the engine that loads it: the learner's live model for the embedded
    engine, a path of safetensors for servers.
    """

    version: int
    attempt: int
    source: Any = field(repr=False)
