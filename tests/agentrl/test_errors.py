"""Errors of other processes, by name and text."""

from __future__ import annotations

import pytest

from agentrl.errors import AgentRLError, ContextOverflow, DiskError, PolicyError, told


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DiskError", DiskError),  # takes a path and an error
        ("ContextOverflow", ContextOverflow),  # takes two numbers
        ("ServerRefused", PolicyError),  # of another module
        ("annotations", PolicyError),  # no class
    ],
)
def test_an_error_of_another_process_keeps_its_words(name: str, kind: type[AgentRLError]) -> None:
    error = told(name, "rank 1: cannot write x", PolicyError)
    assert (type(error), str(error)) == (kind, "rank 1: cannot write x")
