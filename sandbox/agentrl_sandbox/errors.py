"""Exceptions of the sandbox. `Session.run` raises none of them for what a program did.

SandboxError
+-- SandboxConfigError      a setting is wrong (also a ValueError)
+-- SandboxUnavailable      this machine cannot give the isolation asked for; says what to do
|   +-- LibraryBroken       libraries for programs could not be imported inside; no other level would help
+-- SandboxClosed           used after close
+-- SessionClosed           used after close
+-- PoolExhausted           no session became free in time
+-- SessionStartFailed      a session could not be started in time; says who was waited for
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of all exceptions of `agentrl_sandbox`."""


class SandboxConfigError(SandboxError, ValueError):
    """A setting is wrong; the text names it and what would be right."""


class SandboxUnavailable(SandboxError):
    """The machine cannot give what was asked for; the text says why and how to get there."""


class LibraryBroken(SandboxUnavailable):
    """Libraries for programs cannot be imported inside the sandbox; the text names them and says why."""


class SandboxClosed(SandboxError):
    """The sandbox was closed."""


class SessionClosed(SandboxError):
    """The session was closed."""


class PoolExhausted(SandboxError):
    """All sessions were taken and none became free in time."""


class SessionStartFailed(SandboxError):
    """A session's interpreter did not come up."""
