"""Harmless attempts to get out, with proof on the host's side whether they did.

A level of isolation counts only when these have really run and failed; on a backend without isolation they
must succeed. Knows the `Session` interface and nothing of any backend.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from pathlib import Path

from ..interface import Session
from ..result import Status
from .rooms import Rooms

_PROGRAM = """
import os, socket
def attempt(what):
    try:
        what()
    except BaseException as error:
        return
def read():
    print(open({secret!r}).read())
def connect():
    s = socket.socket(); s.settimeout(0.3); s.connect(('127.0.0.1', {port})); s.sendall(b'tcp'); s.close()
def abstract():
    s = socket.socket(socket.AF_UNIX); s.settimeout(0.3); s.connect({abstract!r}); s.close()
def signal():
    os.kill({pid}, 15)
def write():
    open({planted!r}, 'w').write('written')
for what in (read, connect, abstract, signal, write):
    attempt(what)
"""

ATTEMPTS = (
    "read a planted secret",
    "connect to a TCP listener",
    "connect to an abstract socket",
    "signal a process of the host",
    "write into a planted directory",
)


class Traps:
    """Things of the host that a program must not reach; a context manager. Names what was reached."""

    def __enter__(self) -> Traps:
        self._stack = contextlib.ExitStack()
        rooms = Rooms()  # removed at the next start when this one is killed
        self._stack.callback(rooms.close)
        directory = Path(rooms.make())
        directory.chmod(0o777)
        self.word = secrets.token_hex(16)
        self.secret = directory / "secret"
        self.secret.write_text(self.word)
        self.secret.chmod(0o644)
        self.planted = directory / "planted"
        self._tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self.abstract = "\0agentrl-canary-" + secrets.token_hex(8)
        self._unix = self._listen(socket.AF_UNIX, self.abstract)
        self._target = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(self._end_target)
        return self

    def _listen(self, family: int, address: object) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(family))
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(1)
        listener.setblocking(False)
        return listener

    def _end_target(self) -> None:
        self._target.kill()
        self._target.wait()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """Of the TCP listener on 127.0.0.1."""
        return self._tcp.getsockname()[1]

    @property
    def target_pid(self) -> int:
        """The process that may be signalled."""
        return self._target.pid

    def program(self) -> str:
        """The code that tries."""
        return _PROGRAM.format(
            secret=str(self.secret),
            port=self.port,
            abstract=self.abstract,
            pid=self.target_pid,
            planted=str(self.planted),
        )

    def sprung(self, output: str) -> list[str]:
        """Which of `ATTEMPTS` succeeded, by what the host sees."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._target.wait(0.05)
        seen = (
            self.word in output,
            _was_called(self._tcp),
            _was_called(self._unix),
            self._target.poll() is not None,
            self.planted.exists(),
        )
        return [name for name, yes in zip(ATTEMPTS, seen, strict=True) if yes]


def _was_called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


_STATE = """
try:
    lines = dict(line.split(':', 1) for line in open('/proc/self/status'))
except OSError:
    lines = {}
print({name: lines.get(name, '').strip() for name in ('CapEff', 'NoNewPrivs', 'Seccomp')})
"""


async def escapes(session: Session, *, timeout_s: float = 5.0) -> list[str]:
    """Run the canaries in `session`; the attempts that were not contained. Empty is good.

    A program that could not be run at all is an escape too: nothing was proven.
    """
    with Traps() as traps:
        result = await session.run(traps.program(), timeout_s)
        found = traps.sprung(result.stdout)
    if result.status is not Status.OK:
        found.append(f"the canaries did not run: {result.status}: {result.error}")
    return found


async def privileges(session: Session) -> str:
    """What the program's own /proc says of its capabilities and filters; for reports, not for trust."""
    return (await session.run(_STATE, 5.0)).stdout.strip()


def readable_by(path: str, uid: int) -> bool:
    """True when a user without groups may reach and read `path` (by the permission bits)."""
    parts = Path(os.path.realpath(path))
    for place in [*reversed(parts.parents), parts]:
        try:
            stat = place.stat()
        except OSError:
            return False
        bits = stat.st_mode >> 6 if stat.st_uid == uid else stat.st_mode
        needed = 1 if place.is_dir() else 4
        if not bits & needed:
            return False
    return True
