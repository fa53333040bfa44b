"""The command of a process that holds an environment."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["command"]

_SAME = "import sys; sys.path[:] = sys.argv[3:]"
_OTHER = """
import sys
try:
    import agentrl_envs.isolation
except ModuleNotFoundError:
    sys.path += sys.argv[3:]
"""
_SERVE = "\nfrom agentrl_envs.isolation.__main__ import main\nmain()\n"


def command(socket: int, *, python: str = "", spec: str = "") -> list[str]:
    """The arguments, the program first.

    Args:
        socket: number of the connected socket that it is given.
        python: another interpreter, which finds this package beside its own; empty is this process's, with
            its paths.
        spec: of the one environment that it loads, whatever it is asked for; empty lets who connects say.
    """
    paths = _roots() if python else [path for path in sys.path if path]
    boot = (_OTHER if python else _SAME) + _SERVE
    return [python or sys.executable, "-c", boot, str(socket), spec, *paths]


def _roots() -> list[str]:
    """Where another interpreter finds this package, if it has none of its own."""
    import agentrl_sandbox

    files = (Path(__file__).parents[1], Path(agentrl_sandbox.__file__).parent)
    return list(dict.fromkeys(str(file.parent) for file in files))
