"""Environments on other machines: the protocol of `channel.py` over TCP, a process for each connection.

The server sends a nonce first; whoever connects answers with its HMAC-SHA-256 under the key, and is told with
one byte whether the key is the server's. Nothing is encrypted after that: for a private network. The
environment is the server's choice; who connects gives its settings. Knows nothing of episodes.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import EnvError, ServerFailure
from ..registry import load_env
from .command import command

__all__ = ["KEY", "connect", "place_of", "serve_remotely"]

logger = logging.getLogger(__name__)

KEY = "AGENTRL_ENV_KEY"
"""Variable that holds the key, on both sides."""
_CONNECT_S = 30.0
_KEY_S = 10.0
"""Within which a connection must have said its key."""
_AGAIN_S = 1.0
_ACCEPTED, _REFUSED = b"+", b"-"
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
"""Why a connection cannot be accepted now, and another can later."""
_NONCE = 16
"""Bytes that the server sends first, and that the key signs: what was overheard opens nothing."""


def connect(address: str) -> socket.socket:
    """A connection to a server of environments.

    Raises:
        ServerFailure: there is none, or it does not answer.
        EnvError: it has another key, or the address is none.
    """
    place = place_of(address, f"remote:{address}: want remote:HOST:PORT")
    key = _key()
    try:
        peer = socket.create_connection(place, _CONNECT_S)
    except OSError as error:
        raise ServerFailure(
            f"no environment at {address}: {error} (is `agentrl serve` running there?)"
        ) from error
    try:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.sendall(_signed(key, _received(peer, _NONCE, _CONNECT_S)))
        answer = _received(peer, len(_ACCEPTED), _CONNECT_S)
        peer.settimeout(None)
    except OSError as error:
        peer.close()
        raise ServerFailure(f"what is at {address} did not answer the key: {error}") from error
    if answer == _ACCEPTED:
        return peer
    peer.close()
    if answer == _REFUSED:
        raise EnvError(f"the key in {KEY} is not the server's at {address}: both sides need the same")
    raise ServerFailure(
        f"what is at {address} closed the connection instead of answering the key (is it `agentrl serve`, of "
        "the same version?)"
    )


def serve_remotely(
    spec: str, address: str, on_ready: Callable[[str], None], settings: Mapping[str, Any] | None = None
) -> None:
    """Serve an environment at `HOST:PORT` until this process is ended; each connection has a process.

    Args:
        spec: as `load_env` takes it.
        address: where to listen; port 0 takes a free one.
        on_ready: is told the address.
        settings: with which it is loaded once, before anybody connects; who connects gives its own.

    Raises:
        EnvError: no key is set, the environment cannot be loaded, or the address cannot be had.
    """
    key = _key()
    place = place_of(address, f"cannot listen at {address!r}: want HOST:PORT")
    load_env(spec, settings or {})
    try:
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, bound = found[0]
        listening = socket.create_server(bound[:2], family=family)
    except (OSError, ValueError) as error:
        raise EnvError(f"cannot listen at {address!r}: {error}; want HOST:PORT") from error
    with listening:
        host, port = listening.getsockname()[:2]
        on_ready(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        while True:
            _accept(listening, key, spec)


def _accept(listening: socket.socket, key: bytes, spec: str) -> None:
    """Let a thread serve the next connection; where there is no room for one, wait a little."""
    try:
        peer, _ = listening.accept()
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        logger.warning("no connection can be accepted now: %s", error)
        time.sleep(_AGAIN_S)
        return
    try:
        threading.Thread(target=_admit, args=(peer, key, spec), daemon=True).start()
    except RuntimeError as error:
        peer.close()
        logger.warning("a connection was closed: %s", error)
        time.sleep(_AGAIN_S)


def _admit(peer: socket.socket, key: bytes, spec: str) -> None:
    """Start a process for a connection that says the key, and wait for its end."""
    with peer:
        try:
            peer.sendall(nonce := secrets.token_bytes(_NONCE))
            wanted = _signed(key, nonce)
            if not hmac.compare_digest(_received(peer, len(wanted), _KEY_S), wanted):
                peer.sendall(_REFUSED)
                return
            peer.settimeout(None)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            process = subprocess.Popen(
                command(peer.fileno(), spec=spec),
                pass_fds=[peer.fileno()],
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            logger.warning("a connection was closed: %s", error)
            return
        with contextlib.suppress(OSError):  # who connected is gone, and its process ends with that
            peer.sendall(_ACCEPTED)
    process.wait()


def _received(peer: socket.socket, size: int, limit_s: float) -> bytes:
    """Bytes that come within a limit; fewer where the connection was closed. TimeoutError past the limit."""
    until = time.monotonic() + limit_s
    said = b""
    while len(said) < size:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"timed out after {limit_s:g} s")
        peer.settimeout(left_s)
        if not (piece := peer.recv(size - len(said))):
            break
        said += piece
    return said


def place_of(address: str, wanted: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` and `[::1]:PORT`. EnvError with the text `wanted` for anything else."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise EnvError(wanted)
    return host, int(port)


def _key() -> bytes:
    key = os.environ.get(KEY, "")
    if len(key) < 16:
        raise EnvError(f"an environment on another machine needs a key of 16 characters or more in {KEY}")
    return key.encode()


def _signed(key: bytes, nonce: bytes) -> bytes:
    return hmac.digest(key, nonce, "sha256")
