"""The local backend: sessions in a jail that this machine's kernel upholds."""

from .sandbox import LocalSandbox

__all__ = [
    "LocalSandbox",
]
