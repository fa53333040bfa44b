"""A working folder with the demo's model in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import agentrl


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which `models/demo` is the model of the demo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo").symlink_to(Path(agentrl.__file__).parent / "demo" / "model")
    return tmp_path
