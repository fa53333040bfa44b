"""The host's handle on one zygote: start it, ask it for sessions, notice its death.

Thread-safe and free of event loops: asking is one packet, and the session answers on its own socket. Knows
nothing of programs or results.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LibraryBroken, SandboxUnavailable
from .rooms import Rooms

SESSION_UIDS = (1_700_000_000, 1 << 24)
"""First and number of the users that sessions have where this process is root."""
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class ZygoteSettings:
    """How zygotes are built. `python` is the base interpreter's executable, `prefix` its home."""

    python: str
    prefix: str
    library_paths: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    namespaces: bool = True
    protect: bool = True
    own_network: bool = True
    uid: int = 65534

    def as_packet(self, cache: str) -> bytes:
        """What the jail and the zygote read from the control socket; `cache`: where libraries may write."""
        inside = [f"/libraries/{index}" for index in range(len(self.library_paths))]
        config: dict[str, Any] = {
            "python": self.python,
            "prefix": self.prefix,
            "libraries": list(self.library_paths),
            "library_paths": inside if self.namespaces else list(self.library_paths),
            "warm": list(self.warm),
            "exercise": True,
            "namespaces": self.namespaces,
            "protect": self.protect,
            "own_network": self.own_network,
            "uid": self.uid,
            "session_uids": SESSION_UIDS,
            "cache": cache,
        }
        return json.dumps(config).encode()


class Zygote:
    """A running zygote."""

    def __init__(self, settings: ZygoteSettings, process: subprocess.Popen[bytes], control: socket.socket):
        self.settings, self._process, self._control = settings, process, control
        self.ready: dict[str, Any] = {}
        self.forks = self.live = 0
        self._rooms = Rooms()  # swept at the next start when this process is killed
        self._cache = "" if settings.namespaces else self._rooms.make()
        if self._cache:
            os.chmod(self._cache, 0o755)  # sessions read what the libraries wrote
        self._broken = False

    @classmethod
    def start(cls, settings: ZygoteSettings, timeout_s: float) -> Zygote:
        """Start one and wait until its libraries are warm. Blocks; raises SandboxUnavailable."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = theirs if theirs.fileno() != 3 else None
        try:
            process = subprocess.Popen(
                [
                    settings.python,
                    "-P",
                    "-s",
                    "-S",
                    "-c",
                    _STEP,
                    str(theirs.fileno()),
                    str(_HERE / "jail.py"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment(settings),
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxUnavailable(f"cannot start {settings.python}: {error}") from error
        finally:
            theirs.close()
            del keeper
        self = cls(settings, process, ours)
        try:
            self._warm_up(timeout_s)
        except BaseException:
            self.close()
            raise
        return self

    def _warm_up(self, timeout_s: float) -> None:
        packet = self.settings.as_packet(self._cache)
        self._control.settimeout(timeout_s)
        try:
            self._control.send(packet)  # the jail takes one, the zygote the other
            self._control.send(packet)
            answer = self._control.recv(65536)
        except TimeoutError:
            raise LibraryBroken(
                f"the interpreter was not ready within {timeout_s:g} s; it imports "
                f"{', '.join(self.settings.warm) or 'nothing but the standard library'}: the machine is too "
                "busy, or these take too long"
            ) from None
        except OSError as error:
            raise SandboxUnavailable(
                f"the zygote died at its start: {error}; {self._last_words()}"
            ) from error
        if not answer:
            raise SandboxUnavailable(f"the zygote died at its start: {self._last_words()}")
        self.ready = json.loads(answer)
        if "error" in self.ready:
            raise SandboxUnavailable(self.ready["error"])
        if self.ready.get("failed"):
            listed = "; ".join(f"{name}: {why}" for name, why in self.ready["failed"].items())
            raise LibraryBroken(f"libraries could not be imported inside the sandbox: {listed}")
        self._control.setblocking(False)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        stderr = self._process.stderr
        if stderr is None or self._process.poll() is None:
            return "no message"
        return stderr.read()[-2000:].decode(errors="replace").strip() or f"exit {self._process.returncode}"

    @property
    def alive(self) -> bool:
        """False when it has died or was closed."""
        return not self._broken and self._control.fileno() >= 0 and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def ask(self, line: socket.socket, groups: list[int], usage: int, uid: int | None) -> bool:
        """Ask for a session that speaks on `line`; False when the zygote has too many orders already.

        `groups`: control groups to join; `usage`: where its CPU time is counted, -1 for nowhere. Raises
        OSError when the zygote is gone.
        """
        order = json.dumps({"uid": uid, "metered": usage >= 0}).encode()
        fds = [line.fileno(), *groups, *([usage] if usage >= 0 else [])]
        try:
            socket.send_fds(self._control, [order], fds)
        except BlockingIOError:
            return False
        except OSError:
            self._broken = True
            raise
        self.forks += 1
        return True

    def close(self) -> None:
        """End the zygote and all its sessions; waits until it is gone."""
        with contextlib.suppress(OSError):
            self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._rooms.close()


# Moves the control socket to descriptor 3, closes what else was inherited, becomes the jail.
_STEP = (
    "import os,sys,runpy; fd=int(sys.argv[1]); fd==3 or os.dup2(fd,3); os.closerange(4,1<<20); "
    "sys.argv=sys.argv[2:]; runpy.run_path(sys.argv[0],run_name='__main__')"
)


def _environment(settings: ZygoteSettings) -> dict[str, str]:
    if settings.prefix == "/usr":
        return {}
    return {"LD_LIBRARY_PATH": settings.prefix + "/lib"}
