"""Folders of weights in shared memory, and whose are deleted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

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


def test_weights_that_do_not_fit_go_among_the_temporary_files_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    assert weights_folder(tmp_path, room=10**18).parent == other
    assert weights_folder(tmp_path / "missing").parent == other
    assert f"they need 1000000000000 MB, and {tmp_path} has" in caplog.messages[0]
    assert len(caplog.messages) == 2
    assert weights_folder(tmp_path, room=1).parent == tmp_path
