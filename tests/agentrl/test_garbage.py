"""Python's garbage collector while many episodes are in flight."""

from __future__ import annotations

import gc

import pytest

from agentrl.training.collector import THRESHOLDS, rare_collections


def run_and_fail() -> None:
    with rare_collections():
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > 10_000
        raise ValueError("over")


def test_collections_are_rare_inside_and_as_before_outside():
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(ValueError, match="over"):
        run_and_fail()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == frozen


def test_cycles_are_still_collected():
    class Node:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            type(self).alive += 1

        def __del__(self) -> None:
            type(self).alive -= 1

    with rare_collections():
        for _ in range(2 * THRESHOLDS[0]):
            Node()
        # Fails when the collector is off.
        assert Node.alive < 1.5 * THRESHOLDS[0]
