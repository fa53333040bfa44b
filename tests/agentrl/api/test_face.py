"""Every name of the face: its docstring's example runs, and importing it costs nothing."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import agentrl
from agentrl.inference.scripted import ScriptedPolicy

pytest.importorskip("torch", reason="examples train (pip install agentrl[train])")
pytestmark = pytest.mark.timeout(300)  # of machines that others load

EXPLAINED = ["AgentRLError", "ConfigError", "EnvError", "Interrupted", "ToolError", "__version__"]
"""Errors, which nobody makes by hand."""
NAMES = [name for name in agentrl.__all__ if name not in EXPLAINED]
TRAINS = ("train", "resume", "replay", "Replayed", "Run", "episodes")
"""Names whose examples train."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in TRAINS else ()) for name in NAMES]
)
def test_the_example_of_a_name_runs(name: str, place: Path):
    documented = getattr(agentrl, name)
    assert inspect.getdoc(documented), name
    everything = {known: getattr(agentrl, known) for known in agentrl.__all__}
    everything |= {"__name__": "__main__", "ScriptedPolicy": ScriptedPolicy}
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(documented, name, globs=everything)
        if test.examples
    ]
    assert tests, f"the docstring of {name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    for test in tests:
        told: list[str] = []
        assert runner.run(test, out=told.append).failed == 0, "".join(told)


def test_every_name_is_there_and_told_to_editors():
    assert set(agentrl.__all__) <= set(dir(agentrl))
    with pytest.raises(AttributeError, match="trian"):
        agentrl.trian  # noqa: B018


def test_importing_is_quick_and_free_of_torch():
    program = (
        "import time; begun = time.process_time(); import agentrl; print(time.process_time() - begun);"
        "import sys; print([name for name in ('torch', 'transformers', 'agentrl.api') if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert told[1] == "[]"
        seconds.append(float(told[0]))
    assert min(seconds) < 0.5
