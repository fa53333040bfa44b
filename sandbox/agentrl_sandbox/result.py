"""What a run of a program came to: `Status` and `Result`.

Knows nothing of how programs are run. Every field is measured by the supervisor outside the program's
process, except `value`, `error`, `files` and `note`, which are the program's own words about itself.
"""

from __future__ import annotations

import re
import signal as _signal
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a run ended. Only `INFRASTRUCTURE_FAILURE` is not the program's own doing."""

    OK = "ok"
    """The program ran to its end."""
    ERROR = "error"
    """The program raised an exception or could not be compiled; the session lives."""
    TIMEOUT = "timeout"
    """The time limit was reached. `session_alive` tells whether an interrupt was enough."""
    OUT_OF_MEMORY = "out_of_memory"
    """The session's memory limit was reached and the kernel or the supervisor killed it."""
    KILLED = "killed"
    """The process was killed, by itself (`os.kill`) or for breaking a limit on files or processes."""
    CRASHED = "crashed"
    """The process died of a fault (segmentation fault, abort, forbidden system call); see `signal`."""
    EXITED = "exited"
    """`sys.exit` (the session lives) or `os._exit` (it does not); see `exit_code`."""
    PROTOCOL_LOST = "protocol_lost"
    """The program broke the line to its supervisor (closed or wrote to descriptors); the session is gone."""
    INFRASTRUCTURE_FAILURE = "infrastructure_failure"
    """The sandbox broke or the machine starved the program: no verdict on the program, never a reward."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file that a call left new or changed in the working directory; `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one `Session.run`. Times are in seconds; `cpu_s` covers the session's processes."""

    status: Status
    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    """`repr` of the last bare expression, as a notebook shows it."""
    error: str | None = None
    """Traceback cut to the user's frames, or the reason in words."""
    truncated: bool = False
    """Output was longer than the limit; its head and tail were kept."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    signal: int | None = None
    exit_code: int | None = None
    session_alive: bool = True
    """False when variables and files of the session are lost; the next run begins in a fresh one."""
    files: tuple[File, ...] = ()
    note: str | None = None
    """What the sandbox says besides: lines of the cell that it left out, damage that it repaired, why the
    session could not go on."""

    @property
    def ok(self) -> bool:
        """True when the program ran to its end."""
        return self.status is Status.OK

    @property
    def infrastructure_failure(self) -> bool:
        """True when the result says nothing about the program."""
        return self.status is Status.INFRASTRUCTURE_FAILURE

    @property
    def text(self) -> str:
        """What a model is told: output, value, error, and a plain sentence for every other end."""
        parts = [plain(self.stdout), plain(self.stderr)]
        # Neither is written to a terminal, where a carriage return would take back what stands before it.
        parts += [plain(said.replace("\r", "\n")) for said in (self.value, self.error) if said]
        parts += [self.note or "", self._notice()]
        body = "\n".join(part.rstrip("\n") for part in parts if part.strip("\n"))
        return body if body.strip() else "(no output)"

    def _notice(self) -> str:
        sentence = ""
        if self.status is Status.EXITED:
            sentence = f"The program exited with code {self.exit_code}."
        elif self.status in (Status.KILLED, Status.CRASHED) and self.signal is not None:
            verb = "was killed by" if self.status is Status.KILLED else "crashed with"
            sentence = f"The program {verb} {signal_name(self.signal)}."
        if not self.session_alive:
            sentence += " The interpreter was restarted; all variables and files are lost."
        return sentence.strip()


# A string sequence without an end on its line is no sequence: only its introducer goes, or it would take
# along all that follows. No part crosses an escape, so the time is linear.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|[\]PX^_]|[@-Z\\-_])?"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_WRITTEN_OVER = re.compile(r"^[^\n]*\r(?=[^\r\n])", re.MULTILINE)
_C0 = bytes(sorted({*range(32), 127} - {9, 10}))
_C1 = re.compile("[\x80-\x9f]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MOST = 100_000
"""Escapes, and lines written over, that are read in one text; of any more only the controls go."""


def plain(text: str) -> str:
    """Without terminal escapes and controls; of a line written over with `\\r`, what was left standing.

    What can be done a megabyte at a time is, so that a text made of nothing else takes some ten milliseconds.
    """
    if "\x1b" in text or "\x9b" in text:
        text = _ESCAPES.sub("", text, _MOST)
    if "\r" in text:
        text = _WRITTEN_OVER.sub("", text, _MOST)
    if text.isascii():
        return text.encode().translate(None, _C0).decode()
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = _SURROGATES.sub("\ufffd", text).encode()
    return _C1.sub("", encoded.translate(None, _C0).decode())


def signal_name(number: int) -> str:
    """`11` -> `signal 11 (SIGSEGV)`."""
    try:
        return f"signal {number} ({_signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended that is no session: its exit status and what it wrote."""

    code: int
    """Exit status; -N where signal N ended it."""
    out: str
    err: str
    cut: bool = False
    """Whether output was dropped."""

    @property
    def why(self) -> str:
        """The end in words, with the last of what it wrote to standard error."""
        how = f"signal {_signal.Signals(-self.code).name}" if self.code < 0 else f"exit status {self.code}"
        said = self.err.strip() or self.out.strip()
        return f"{how}; it wrote: {said[-600:]}" if said else f"{how}; it wrote nothing"
