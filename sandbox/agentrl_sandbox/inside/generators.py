"""Random numbers of a session: each generator that a library made at its import gets a seed of its own.

Sessions are forks of one process, and would else all draw the same. Standard library only.
"""

from __future__ import annotations

import gc
import random
import sys

_found: list[object] | None = None


def find():
    """Remember the generators that exist now; before `gc.freeze`, which hides them."""
    global _found
    kinds = (random.Random, *_kinds_of_numpy())
    ours = {id(random._inst), id(_numpy_global())}  # type: ignore[attr-defined]
    _found = [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, kinds) and not isinstance(thing, random.SystemRandom) and id(thing) not in ours
    ]


def seed(number):
    """Seed all of them from `number`, or from the machine's randomness where that is None."""
    if _found is None:
        find()
    random.seed(number)
    source = random.Random(None if number is None else f"agentrl {number}")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(source.getrandbits(32) if number is None else number % (1 << 32))
    if number is not None and "numpy.random.bit_generator" in sys.modules:
        # What `default_rng()` asks for when it is given no seed.
        sys.modules["numpy.random.bit_generator"].randbits = source.getrandbits  # type: ignore[attr-defined]
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(source.getrandbits(63))
    for generator in _found or ():
        _seed_one(generator, source)


def _seed_one(generator, source):
    if isinstance(generator, random.Random):
        generator.seed(source.getrandbits(64))
    elif hasattr(generator, "seed"):
        generator.seed(source.getrandbits(32))  # numpy.random.RandomState
    else:
        bits = generator.bit_generator
        bits.state = type(bits)(source.getrandbits(64)).state


def _kinds_of_numpy():
    numpy = sys.modules.get("numpy.random")
    return (numpy.RandomState, numpy.Generator) if numpy is not None else ()


def _numpy_global():
    module = sys.modules.get("numpy.random.mtrand")
    return module._rand if module is not None else None
