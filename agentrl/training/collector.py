"""Python's garbage collector while many episodes are in flight.

Every episode in flight is hundreds of objects that live for seconds to minutes, and a full collection walks
all of them, and all that libraries made at import. At 10,000 episodes that took a third of the loop's time
(`benchmarks.scale`).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

THRESHOLDS = (50_000, 10, 10)
"""New objects before the youngest are looked at, and how many such looks before the older ones are."""


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect rarely, and never what is there already; both end with the block."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
