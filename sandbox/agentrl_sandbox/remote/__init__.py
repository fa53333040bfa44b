"""The remote backend: sessions on a server that `agentrl_sandbox.server` runs."""

from .sandbox import RemoteSandbox

__all__ = [
    "RemoteSandbox",
]
