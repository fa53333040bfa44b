"""Packages for programs, in a directory of the sandbox's own: never the trainer's site-packages.

Installed once per set of packages and Python version with pip, below the user's cache directory. Knows
nothing of sessions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import SandboxUnavailable

_IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "beautifulsoup4": "bs4",
    "python-dateutil": "dateutil",
    "pyyaml": "yaml",
}
_INSTALL_LIMIT_S = 600


def import_names(libraries: Sequence[str]) -> tuple[str, ...]:
    """`("numpy>=2", "scikit-learn")` -> `("numpy", "sklearn")`."""
    names = []
    for requirement in libraries:
        name = re.split(r"[\s<>=!~\[;]", requirement.strip(), maxsplit=1)[0].lower()
        names.append(_IMPORT_NAMES.get(name, name.replace("-", "_")))
    return tuple(names)


def install(libraries: Sequence[str], python: str, version: str) -> str:
    """Directory with the packages for Python `version` ("3.11"); installs at the first call.

    Raises:
        SandboxUnavailable: pip failed; the text has its last lines and what to do.
    """
    wanted = sorted(libraries)
    key = hashlib.sha256("\n".join([version, os.uname().machine, *wanted]).encode()).hexdigest()[:16]
    home = _cache_directory()
    target = home / f"libraries-{version}-{key}"
    with _locked(home / f"{key}.lock"):
        if not (target / ".complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            _run_pip(wanted, python, version, target)
            (target / ".complete").write_text("\n".join(wanted))
    return str(target)


def _run_pip(wanted: list[str], python: str, version: str, target: Path) -> None:
    arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    arguments += ["--target", str(target), "--only-binary=:all:"]
    problems = []
    for interpreter, extra in ((python, []), (sys.executable, ["--python-version", version])):
        command = [interpreter, *arguments, *extra, *wanted]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False, cwd="/"
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"{interpreter}: {error}")
            continue
        if done.returncode == 0:
            return
        problems.append(f"{interpreter}: {done.stderr.strip()[-300:]}")
        shutil.rmtree(target, ignore_errors=True)
    raise SandboxUnavailable(
        f"could not install {', '.join(wanted)} for programs: {' | '.join(problems)}. "
        "Install them yourself (pip install --target DIR ...) and pass library_path=DIR, "
        "or use libraries=() for the standard library only"
    )


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    if base is None and os.geteuid() == 0:
        base = "/var/cache"  # root's sessions run as another user, whom /root is closed to
    home = Path(base or os.path.join(os.path.expanduser("~"), ".cache")) / "agentrl" / "sandbox"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    home = Path(tempfile.gettempdir()) / f"agentrl-sandbox-{os.getuid()}"
    home.mkdir(mode=0o755, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise SandboxUnavailable(f"{home} belongs to another user; set XDG_CACHE_HOME")
    return home


@contextlib.contextmanager
def _locked(path: Path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
