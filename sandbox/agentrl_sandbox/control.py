"""How long a process of this machine waits for a core: the witness for a program that says it was starved.

A process of its own, outside of every session, that wants a core for a short while again and again. Started
when a run takes suspiciously long, and ended with the last such run. Knows nothing of sessions.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

BACK_STOP = 3.0
"""Times its limit that a run may take in wall time while the control process need not wait for a core."""
MOST_WAITING = 0.98
"""A share of waiting above this is not believed: it would wait for ever."""
_START_LIMIT_S = 20.0  # for a control process that does not come up

# Long enough for the scheduler to set it aside for others: it is asked of no program to be faster than this.
_WORK_S, _PAUSE_S = 0.03, 0.2
_ENOUGH_S, _LONG_S = 0.05, 1.0  # CPU seconds, or seconds of wanting them, from which it is believed
_SOURCE = """
import os, struct, sys, time
work, pause = float(sys.argv[1]), float(sys.argv[2])
left = work
while os.getppid() == int(sys.argv[3]):
    began, ran = time.monotonic(), time.thread_time()
    while time.thread_time() - ran < left and time.monotonic() - began < pause:
        pass
    wanted, ran = time.monotonic() - began, time.thread_time() - ran
    os.write(1, struct.pack("dd", wanted, ran))
    left -= ran
    if left <= 0:
        left = work
        time.sleep(pause)
"""


class Control:
    """The control process, shared by all who wait. `with control: ... control.waiting()`. Thread-safe."""

    def __init__(self) -> None:
        self._users = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = self._ran = 0.0

    def __enter__(self) -> Self:
        with self._lock:
            self._users += 1
            if self._process is None:
                self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def waiting(self) -> float | None:
        """Share of the time that the process stood in the run queue while it wanted to run: 0 to 0.98.

        None as long as it has not run enough to tell.
        """
        with self._lock:
            self._read()
            if self._process is None:
                return 0.0  # no witness: nobody is believed
            if self._ran < _ENOUGH_S and self._wanted < _LONG_S:
                return None
            return min(MOST_WAITING, max(0.0, 1.0 - self._ran / self._wanted))

    def _start(self) -> None:
        self._wanted = self._ran = 0.0
        command = [sys.executable, "-I", "-S", "-c", _SOURCE, str(_WORK_S), str(_PAUSE_S), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/"
            )
        except OSError:
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        try:
            said = os.read(self._process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        for wanted, ran in struct.iter_unpack("dd", said[: len(said) // 16 * 16]):
            self._wanted += wanted
            self._ran += ran


CONTROL = Control()
"""The one of this process."""


async def arrives(answer: asyncio.Future[Any], began: float, patience_s: float) -> bool:
    """Wait for `answer` as long as a machine that is not busy may take for it; False when it did not come.

    That is until `patience_s` of wall time have passed since `began` (of `time.monotonic`), less the share of
    it that a control process stands in the run queue; the share that is found now is taken for all of it.
    """
    unknown_until = time.monotonic() + _START_LIMIT_S
    with CONTROL as control:
        while True:
            share = control.waiting()
            end = unknown_until if share is None else began + patience_s / (1.0 - share)
            if (left := end - time.monotonic()) <= 0.0:
                return answer.done()
            if (await asyncio.wait({answer}, timeout=min(0.1, left)))[0]:
                return True
