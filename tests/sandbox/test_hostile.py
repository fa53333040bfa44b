"""Every hostile program on every level that this machine offers; see `benchmarks.hostile`.

Run by `make test-sandbox`. Each case is followed by a healthy call, a look at a neighbouring session and a
search for what was left over. The whole run stands in limits of its own (`outer_limits`), so that a hole in
the jail cannot take the machine along.
"""

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from agentrl_sandbox import Level, open_sandbox
from benchmarks.hostile import CASES
from benchmarks.hostile.harness import Footprint, Refused, endure, own_group
from tests.sandbox.starting import started

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]

LEVELS = (Level.CONTAINED, Level.NAMESPACED, Level.FILTERED)
_INSIDE = "AGENTRL_TEST_OUTER_LIMITS"


@pytest.fixture(scope="module", autouse=True)
def outer_limits():
    """2.5 GiB and 600 processes for all of this module, whatever the jail lets through."""
    if os.environ.get(_INSIDE):
        yield
        return
    with own_group(2560 << 20, 600) as group:
        if group is None:
            # Without control groups: no process more than 4 GiB.
            resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, resource.getrlimit(resource.RLIMIT_DATA)[1]))
            yield
            return
        os.environ[_INSIDE] = "1"
        yield
        del os.environ[_INSIDE]


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: level.name.lower())
def sandbox(request, outer_limits):
    library_path = os.environ.get("AGENTRL_TEST_LIBRARIES")
    sandbox = open_sandbox(
        "local", max_level=request.param, min_level=request.param, zygotes=1, library_path=library_path
    )
    with started(sandbox):
        yield sandbox


def _missing(case, sandbox):
    return case.needs is not None and not os.path.isdir(
        os.path.join(os.environ.get("AGENTRL_TEST_LIBRARIES", "/nowhere"), case.needs)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_contained(sandbox, case):
    if _missing(case, sandbox):
        pytest.skip(f"needs {case.needs}: set AGENTRL_TEST_LIBRARIES")
    footprint = Footprint()
    complaint = await endure(sandbox, case)
    assert complaint is None, complaint
    assert await footprint.growth() is None


async def test_destructive_cases_are_refused_without_isolation():
    # Fails when the guard at the head of `endure` is taken out.
    sandbox = open_sandbox("local", max_level=Level.UNSAFE, allow_unsafe=True, zygotes=1)
    async with sandbox:
        assert sandbox.level is Level.UNSAFE
        with pytest.raises(Refused):
            await endure(sandbox, CASES[0])


@pytest.mark.timeout(1800)
def test_again_as_an_ordinary_user():
    """The same suite as uid 65534, in a process of its own."""
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) is not installed")
    python = _python_for_everybody()
    if python is None:
        pytest.skip("no Python that uid 65534 may read and that has this one's version")
    import subprocess

    root = Path(__file__).resolve().parents[2]
    packages = [path for path in sys.path if path.endswith("-packages")]
    command = [setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command += [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x", "-m", "hostile", __file__]
    environment = {
        "PYTHONPATH": os.pathsep.join([*packages, str(root / "sandbox")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
    }
    for name in (_INSIDE, "AGENTRL_TEST_LIBRARIES"):
        if name in os.environ:
            environment[name] = os.environ[name]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=1700, check=False
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def _python_for_everybody():
    from agentrl_sandbox.local.canaries import readable_by
    from agentrl_sandbox.local.probe import pythons

    wanted = "{}.{}".format(*sys.version_info[:2])
    for python in pythons(None):
        if python.version == wanted and readable_by(python.executable, 65534):
            return python.executable
    return None
