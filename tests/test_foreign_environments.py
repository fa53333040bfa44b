"""Environments of other people's packages: built again when their recipe changes, and never skipped once promised."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.needed import missing, needed

ROOT = Path(__file__).parents[1]
PYTHON = """#!/usr/bin/env bash
# Stands for Python where nothing may be downloaded: writes down what it is asked for.
[ "$1" != --version ] || { echo "Python ${VERSION:-3.11}"; exit; }
echo "$2 ${@: -1} $AGENTRL_REQUIRE_ADAPTERS" >> log
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
pip) [ "${@: -1}" != "$BROKEN" ] ;;
pytest) echo "tests begin"; [ -z "$SLOW" ] || exec sleep 20 ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def ran(tree: Path, script: str, **variables: str) -> tuple[int, list[str], str]:
    """Exit status of a script, what it asked Python for, and its output."""
    (tree / "log").write_text("")
    python = str(tree / "python")
    done = subprocess.run(
        [tree / "scripts" / script, "-q"],
        env={"PATH": os.environ["PATH"], "PYTHON": python, "TEST_PYTHON": python, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, [line.split()[0] for line in (tree / "log").read_text().splitlines()], done.stdout


@pytest.mark.parametrize(
    ("script", "last"), [("test_agents.sh", "mcp>=2.2,<3"), ("test_adapters.sh", "openenv>=0.10,<0.11")]
)
def test_an_environment_is_that_of_its_recipe(tree: Path, script: str, last: str) -> None:
    status, asked, _ = ran(tree, script, BROKEN=last)
    assert status != 0
    assert "pytest" not in asked, "what is half installed is not tested"
    status, built, _ = ran(tree, script)
    assert (status, built[0], built[1], built[-1]) == (0, "venv", "pip", "pytest"), (
        "an interrupted build goes on"
    )
    assert (tree / "log").read_text().splitlines()[-1] == "pytest -q 1", "nothing may be skipped"
    assert ran(tree, script)[1] == ["pytest"]
    for changed in ("pyproject.toml", "constraints.txt", f"scripts/{script}"):
        with (tree / changed).open("a") as file:
            file.write("# another version\n")
        assert ran(tree, script)[1] == built
        assert ran(tree, script)[1] == ["pytest"]
    assert ran(tree, script, VERSION="3.12")[1] == built


def test_tests_that_do_not_end_are_interrupted_and_their_output_is_kept(tree: Path) -> None:
    ran(tree, "test_adapters.sh")
    status, _, said = ran(tree, "test_adapters.sh", SLOW="1", AGENTRL_TESTS_LIMIT_S="0.2")
    assert (status, said) == (124, "tests begin\n")


def test_what_is_missing_is_skipped_unless_it_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTRL_REQUIRE_ADAPTERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make it"):
        needed("no_such_package", "make it")
    with pytest.raises(pytest.skip.Exception, match="no curl"):
        missing("no curl")
    monkeypatch.setenv("AGENTRL_REQUIRE_ADAPTERS", "1")
    with pytest.raises(ModuleNotFoundError):
        needed("no_such_package", "make it")
    with pytest.raises(pytest.fail.Exception, match="no curl"):
        missing("no curl")


def test_tests_with_other_peoples_packages_skip_in_no_other_way() -> None:
    files = [*(ROOT / "tests" / "adapters").glob("*.py"), *(ROOT / "tests" / "agents").glob("*.py")]
    own = [
        path.name
        for path in files
        if any(s in path.read_text() for s in ("importorskip", "pytest.skip", "skipif"))
    ]
    assert len(files) > 5
    assert own == [], "want tests.needed"
