"""Errors an environment can end an episode with, as one tree.

Every message says what was wrong, where, and what would be right. Which of them are the fault of the
machinery (and so are never a reward) is a property of the class, `infrastructure`; who retries what is not
known here.
"""

from __future__ import annotations

__all__ = [
    "DatasetError",
    "EnvError",
    "EnvNotFound",
    "GraderFailure",
    "RewardError",
    "RowError",
    "SandboxFailure",
    "ServerFailure",
    "SettingsError",
    "ToolError",
    "ToolFailure",
]


class EnvError(Exception):
    """An environment broke, or was used wrongly. The episode fails; it does not get a reward."""

    infrastructure: bool = False
    """True when machinery (sandbox, grader, network) broke, rather than the code of the environment."""
    where: str = ""
    """Where user code raised it, `my_env.py:12`; "" when agentrl raised it, whose message says where."""


class SettingsError(EnvError, ValueError):
    """A setting of an environment is unknown, misspelt or of the wrong type."""


class EnvNotFound(EnvError, LookupError):
    """No environment under this name, file or dotted path."""


class RowError(EnvError, ValueError):
    """A row lacks a field that the environment needs."""


class DatasetError(EnvError, ValueError):
    """A data file cannot be read; the message names the file and the line."""


class RewardError(EnvError, ValueError):
    """A reward is no number, not finite, or outside the environment's `reward_range`."""


class ToolFailure(EnvError):
    """A tool could not run: a bug in it, or a service behind it is out of reach."""


class SandboxFailure(EnvError):
    """The sandbox machinery broke. Says nothing about the program that ran in it."""

    infrastructure = True


class ServerFailure(EnvError):
    """A process or a server behind an environment died, hangs, or says what cannot be read."""

    infrastructure = True


class GraderFailure(EnvError):
    """The grader's own process broke or was starved, so the answer is neither right nor wrong."""

    infrastructure = True


class ToolError(Exception):
    """Raised inside a tool to tell the model something went wrong; the episode goes on.

    Example:
        >>> class Shop(Env):
        ...     @tool
        ...     def price(self, name: str) -> float:
        ...         "The price of a thing."
        ...         raise ToolError(f"there is no {name}")
    """
