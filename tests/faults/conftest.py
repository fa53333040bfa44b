"""What the tests of faults share: agentrl's commands, as a person calls them.

These tests use public commands, `import agentrl` and files only, so that moving code moves no test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs under `make test-faults`."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("faults")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `agentrl ARGUMENTS` in a process of its own, in an empty folder."""

    def run(
        *arguments: object, timeout_s: float = 50, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        program = "import sys; from importlib.metadata import entry_points as e; "
        program += "sys.exit(next(iter(e(group='console_scripts', name='agentrl'))).load()())"
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def agentrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `agentrl ARGUMENTS` in this process (a second less each): its exit code, output and errors."""
    main = next(iter(entry_points(group="console_scripts", name="agentrl"))).load()

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 2
        return code, *capfd.readouterr()

    return run
