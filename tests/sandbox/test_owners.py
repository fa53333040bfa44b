"""Whose containers are removed: those of dead processes that can be seen from here."""

from __future__ import annotations

from agentrl_sandbox.docker.pool import OWNER_LABEL, is_abandoned, owner_of_this_process


def test_containers_of_trainers_that_cannot_be_seen_from_here_are_theirs() -> None:
    boot, _, process = owner_of_this_process().partition("/")
    machine, _, namespace = boot.rpartition(".")
    pid, _, started = process.partition("/")
    for owner, abandoned in (
        (f"{boot}/{pid}/{started}", False),
        (f"{boot}/{pid}/1", True),  # the process id was given to another
        (f"{boot}/4194305/1", True),  # above every process id
        (f"{machine}.{int(namespace) + 1}/4194305/1", False),  # of another container
    ):
        assert is_abandoned({OWNER_LABEL: owner}, now=0.0) == abandoned, owner
