"""Folders of weights in shared memory, and whose are deleted."""

from __future__ import annotations

import os
from pathlib import Path

from agentrl.weights.shared_memory import weights_folder


def test_what_dead_processes_left_is_deleted_but_not_what_other_containers_have(tmp_path: Path) -> None:
    here = os.stat("/proc/self/ns/pid").st_ino
    names = {
        "dead": f"agentrl-weights-{here}-99999999-a",  # above every pid_max
        "alive": f"agentrl-weights-{here}-{os.getpid()}-a",
        "elsewhere": f"agentrl-weights-{here + 1}-99999999-a",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    made = weights_folder(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {names["alive"], names["elsewhere"], made.name}
