"""The sandbox server: sessions of this machine for clients that speak HTTP."""

from .service import FLAGS, SandboxServer, ServerSettings, add_flags, ceiling_of, main, serve

__all__ = [
    "FLAGS",
    "SandboxServer",
    "ServerSettings",
    "add_flags",
    "ceiling_of",
    "main",
    "serve",
]
