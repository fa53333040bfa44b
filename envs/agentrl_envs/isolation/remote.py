"""Environments on other machines: the protocol of `channel.py` over TCP, a process for each connection.

Whoever connects says the key first. Nothing is encrypted: for a private network. The environment is the
server's choice; who connects gives its settings. Knows nothing of episodes.
"""

from __future__ import annotations

import hmac
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..env import Env
from ..errors import EnvError

__all__ = ["KEY", "connect", "remote_env", "serve_remotely"]

KEY = "AGENTRL_ENV_KEY"
"""Variable that holds the key, on both sides."""
_CONNECT_S = 30.0
_LONGEST_KEY = 1024
_BOOT = """
import sys
sys.path[:] = sys.argv[3:]
from agentrl_envs.isolation.__main__ import main
main()
"""


def remote_env(address: str, settings: Mapping[str, Any]) -> type[Env]:
    """The environment of `env.name = "remote:HOST:PORT"`.

    Raises:
        EnvError: nobody answers there, or not with what is expected.
    """
    from .environment import Isolation, isolated

    return isolated(f"remote:{address}", settings, Isolation(address=address))


def connect(address: str) -> socket.socket:
    """A connection to a server of environments. EnvError when there is none."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise EnvError(f"remote:{address}: want remote:HOST:PORT")
    key = _key()
    try:
        peer = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S)
    except OSError as error:
        raise EnvError(f"no environment at {address}: {error} (is `agentrl serve` running there?)") from error
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.sendall(key + b"\n")
    return peer


def serve_remotely(spec: str, address: str, on_ready: Callable[[str], None]) -> None:
    """Serve an environment at `HOST:PORT` until this process is ended; each connection has a process.

    Args:
        spec: as `load_env` takes it.
        address: where to listen; port 0 takes a free one.
        on_ready: is told the address.

    Raises:
        EnvError: no key is set, or the address cannot be had.
    """
    key = _key()
    host, _, port = address.rpartition(":")
    try:
        listening = socket.create_server((host.strip("[]"), int(port)))
    except (OSError, ValueError) as error:
        raise EnvError(f"cannot listen at {address!r}: {error}; want HOST:PORT") from error
    with listening:
        on_ready(":".join(map(str, listening.getsockname()[:2])))
        while True:
            peer, _ = listening.accept()
            threading.Thread(target=_admit, args=(peer, key, spec), daemon=True).start()


def _admit(peer: socket.socket, key: bytes, spec: str) -> None:
    """Start a process for a connection that says the key, and wait for its end."""
    with peer:
        peer.settimeout(_CONNECT_S)
        said = b""
        try:
            while not said.endswith(b"\n") and len(said) < _LONGEST_KEY:
                # Byte by byte: what follows the key is for the process.
                piece = peer.recv(1)
                if not piece:
                    return
                said += piece
        except OSError:
            return
        if not hmac.compare_digest(said.rstrip(b"\n"), key):
            return
        peer.settimeout(None)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(peer.fileno()), spec, *filter(None, sys.path)],
            pass_fds=[peer.fileno()],
            stdin=subprocess.DEVNULL,
        )
    process.wait()


def _key() -> bytes:
    key = os.environ.get(KEY, "")
    if len(key) < 16:
        raise EnvError(f"an environment on another machine needs a key of 16 characters or more in {KEY}")
    return key.encode()
