"""The sandbox server: sessions of this machine for clients that speak HTTP."""

from .hosting import FLAGS, SandboxServer, add_flags, main, serve
from .service import ServerSettings, ceiling_of

__all__ = [
    "FLAGS",
    "SandboxServer",
    "ServerSettings",
    "add_flags",
    "ceiling_of",
    "main",
    "serve",
]
