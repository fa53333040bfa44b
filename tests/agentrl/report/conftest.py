"""A run folder, written as a run writes it."""

from pathlib import Path

import pytest

from tests.agentrl.report.run_files import write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "one")
