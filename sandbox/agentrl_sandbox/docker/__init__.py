"""The Docker backend: sessions in containers of a Docker engine."""

from .sandbox import DockerSandbox

__all__ = [
    "DockerSandbox",
]
