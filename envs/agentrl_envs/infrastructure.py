"""Which exceptions mean that machinery broke (a service, a network, a disk), rather than that it said no.

One table by module and class name, so that no client library needs to be imported, or even installed. An
episode that meets such an exception says nothing about the model: it fails, and is not rewarded. An
environment that knows better converts the exception, or names it in `Env.told_errors`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from .raised import chain

__all__ = ["is_infrastructure"]

_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        # network
        *("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ETIMEDOUT", "EPIPE", "ENOTCONN", "ESHUTDOWN", "EADDRINUSE", "EADDRNOTAVAIL"),
        # disks and devices
        *("EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE", "EREMOTEIO", "ENODEV", "ENXIO", "EBUSY"),
        # what the system has too little of
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "ENOLCK", "EINTR", "ECHILD"),
    )
)
_SQLITE = frozenset({5, 6, 7, 10, 11, 13, 14})
"""Primary result codes of SQLite: busy, locked, no memory, disk, corrupt, full, cannot open."""
_STATUSES = frozenset({408, 425, 429})
"""Answers of a server that cannot answer now, besides those from 500 on."""


def _by_errno(error: Any) -> bool:
    return error.errno is None or error.errno in _ERRNOS


def _by_status(error: Any) -> bool:
    response = getattr(error, "response", None)
    holders = (error, "status_code"), (response, "status_code"), (error, "status"), (error, "code")
    found = (getattr(holder, name, None) for holder, name in holders)
    status = next((value for value in found if isinstance(value, int)), 0)
    return status >= 500 or status in _STATUSES


def _by_sqlite(error: Any) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE


def _by_thread(error: Any) -> bool:
    return "in that same thread" in str(error)


def _yes(error: Any) -> bool:
    return True


def _no(error: Any) -> bool:
    return False


_TABLE: dict[str, dict[str, Callable[[Any], bool]]] = {
    "builtins": {
        # A wrong path is what a model gives.
        "FileNotFoundError": _no,
        "FileExistsError": _no,
        "NotADirectoryError": _no,
        "IsADirectoryError": _no,
        "PermissionError": _no,
        "ConnectionError": _yes,
        "TimeoutError": _yes,
        "EOFError": _yes,
        "OSError": _by_errno,
    },
    "asyncio": {"CancelledError": _yes, "IncompleteReadError": _yes},
    "concurrent": {"BrokenExecutor": _yes, "CancelledError": _yes},
    "multiprocessing": {"ProcessError": _yes},
    "socket": {"gaierror": _yes, "herror": _yes},
    "ssl": {"SSLError": _yes},
    "http": {"IncompleteRead": _yes, "BadStatusLine": _yes, "ImproperConnectionState": _yes},
    "urllib": {"HTTPError": _by_status, "ContentTooShortError": _yes, "URLError": _no},  # its `reason` counts
    "sqlite3": {
        "OperationalError": _by_sqlite,
        "ProgrammingError": _by_thread,
        "DatabaseError": _by_sqlite,
    },
    "requests": {
        "HTTPError": _by_status,
        "ConnectionError": _yes,
        "Timeout": _yes,
        "ChunkedEncodingError": _yes,
        "RetryError": _yes,
        "RequestException": _no,
    },
    "urllib3": {
        "LocationValueError": _no,
        "TimeoutError": _yes,
        "ProtocolError": _yes,
        "NewConnectionError": _yes,
        "ProxyError": _yes,
        "SSLError": _yes,
        "ResponseError": _yes,
        "PoolError": _yes,
    },
    "httpx": {
        "UnsupportedProtocol": _no,
        "LocalProtocolError": _no,
        "TransportError": _yes,
        "HTTPStatusError": _by_status,
    },
    "httpcore": {
        "UnsupportedProtocol": _no,
        "LocalProtocolError": _no,
        "ConnectionNotAvailable": _yes,
        "NetworkError": _yes,
        "ProtocolError": _yes,
        "ProxyError": _yes,
        "TimeoutException": _yes,
    },
    "aiohttp": {
        "InvalidURL": _no,
        "ClientConnectionError": _yes,
        "ClientPayloadError": _yes,
        "ClientResponseError": _by_status,
    },
    "openai": {
        "APIConnectionError": _yes,
        "AuthenticationError": _yes,
        "PermissionDeniedError": _yes,
        "APIStatusError": _by_status,
    },
    "docker": {"ContainerError": _no, "BuildError": _no, "InvalidArgument": _no, "DockerException": _yes},
    "anyio": {
        "BrokenResourceError": _yes,
        "ClosedResourceError": _yes,
        "EndOfStream": _yes,
        "BrokenWorkerProcess": _yes,
    },
    "websockets": {"ConnectionClosed": _yes, "InvalidHandshake": _yes},
    "redis": {"ConnectionError": _yes, "TimeoutError": _yes, "BusyLoadingError": _yes},
    "psycopg": {"OperationalError": _yes, "InterfaceError": _yes},
    "pymongo": {"ConnectionFailure": _yes},
    "grpc": {"RpcError": _yes},
    "botocore": {"HTTPClientError": _yes, "ConnectionError": _yes, "NoCredentialsError": _yes},
    "ray": {"RaySystemError": _yes, "RayActorError": _yes},
    "paramiko": {"SSHException": _yes},
    "kubernetes": {"ApiException": _by_status},
}
"""By the first part of a module's name and a class's; the nearest base class of an exception decides."""
_SAME_AS = {
    "httpx2": "httpx",
    "httpcore2": "httpcore",
    "anthropic": "openai",
    "psycopg2": "psycopg",
    "_socket": "socket",
    "_ssl": "ssl",
    "_sqlite3": "sqlite3",
}


def is_infrastructure(error: BaseException) -> bool:
    """Whether the exception, a member of its group, or what it was raised from means broken machinery."""
    return any(_decide(one) for one in chain(error))


def _decide(error: BaseException) -> bool:
    for cls in type(error).__mro__:
        root = cls.__module__.partition(".")[0]
        rule = _TABLE.get(_SAME_AS.get(root, root), {}).get(cls.__name__)
        if rule is not None:
            return rule(error)
    return False
