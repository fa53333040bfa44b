"""From a supervisor's result frame to a `Result`. Knows the wire protocol's words; trusts only the header.

What the interpreter says about itself is parsed as JSON, field by field, with caps; anything odd in it is
`PROTOCOL_LOST`. Knows nothing of processes.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from .limits import Limits
from .result import File, Result, Status

_FAULTS = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGXFSZ", "SIGTRAP")
)


def result_from_frame(
    header: dict[str, Any],
    blobs: list[bytes],
    limits: Limits,
    wall_s: float,
    *,
    time_s: float,
    out_of_memory: bool = False,
) -> Result:
    """Build the result of a run.

    Args:
        header: of the "result" frame; measured by the supervisor.
        blobs: what the interpreter says (untrusted JSON), stdout, stderr.
        wall_s: measured by the host.
        time_s: the limit that held for this run, for the text.
        out_of_memory: the host saw the kernel kill for memory during the run.
    """
    said, stdout, stderr = (*blobs, b"", b"", b"")[:3]
    common: dict[str, Any] = {
        "stdout": readable(stdout),
        "stderr": readable(stderr),
        "truncated": bool(header.get("truncated")),
        "wall_s": wall_s,
        "cpu_s": float(header.get("cpu_s") or 0.0),
        "session_alive": bool(header.get("alive")),
    }
    if not common["session_alive"]:
        return _dead(header, limits, common, time_s, out_of_memory)
    fields = parse_reply(said, limits.output_bytes)
    if fields is None:
        common["session_alive"] = False
        return Result(Status.PROTOCOL_LOST, error="The interpreter's reply could not be read.", **common)
    kind, restart = fields.pop("kind"), fields.pop("restart")
    if restart is not None:
        common["session_alive"] = False
        fields["note"] = "\n".join(filter(None, (fields["note"], f"The session cannot go on: {restart}.")))
    if header.get("interrupted"):
        if kind == "error":
            fields["error"] = f"Interrupted at the time limit of {time_s:g} s.\n{fields['error']}".rstrip()
        else:
            fields["error"] = f"The time limit of {time_s:g} s was reached."
        fields["exit_code"] = None
        return Result(Status.TIMEOUT, **fields, **common)
    status = {"ok": Status.OK, "error": Status.ERROR, "exit": Status.EXITED}[kind]
    return Result(status, **fields, **common)


def _dead(
    header: dict[str, Any], limits: Limits, common: dict[str, Any], time_s: float, out_of_memory: bool
) -> Result:
    cause, wait_status = header.get("cause"), header.get("wait_status")
    if out_of_memory or cause == "memory":
        reason = f"The memory limit of {limits.memory_mb} MiB was reached and the program was killed."
        return Result(Status.OUT_OF_MEMORY, error=reason, **common)
    if cause == "files":
        reason = (
            f"More than {limits.files} files or {limits.file_mb} MiB were written; the program was killed."
        )
        return Result(Status.KILLED, error=reason, **common)
    if cause in ("time", "cancelled"):
        reason = (
            f"The time limit of {time_s:g} s was reached; the program ignored the interrupt and was killed."
        )
        return Result(Status.TIMEOUT, error=reason, **common)
    if cause == "protocol" or wait_status is None:
        reason = "The program broke the connection to its interpreter (closed or wrote to its descriptors)."
        return Result(Status.PROTOCOL_LOST, error=reason, **common)
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        status = Status.CRASHED if number in _FAULTS else Status.KILLED
        return Result(status, signal=number, **common)
    return Result(Status.EXITED, exit_code=os.WEXITSTATUS(wait_status), **common)


def parse_reply(said: bytes, output_bytes: int) -> dict[str, Any] | None:
    """Fields for `Result` from the interpreter's own words; None when they are not as agreed."""
    try:
        reply = json.loads(str(said, "utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or reply.get("kind") not in ("ok", "error", "exit"):
        return None
    value, error, code = reply.get("value"), reply.get("error"), reply.get("exit_code")
    if not all(text is None or isinstance(text, str) for text in (value, error)):
        return None
    if code is not None and (not isinstance(code, int) or isinstance(code, bool) or abs(code) > 1 << 31):
        return None
    files, notes, restart = _files(reply.get("files")), reply.get("notes", []), reply.get("restart")
    if files is None or not (isinstance(notes, list) and all(isinstance(note, str) for note in notes[:20])):
        return None
    if not (restart is None or isinstance(restart, str)):
        return None
    cap = output_bytes + 256
    return {
        "kind": reply["kind"],
        "value": None if value is None else clean(value[:cap]),
        "error": None if error is None else clean(error[:cap]),
        "exit_code": code,
        "files": files,
        "note": clean("\n".join(note[:500] for note in notes[:20])) or None,
        "restart": None if restart is None else clean(restart[:500]),
    }


def _files(listed: Any) -> tuple[File, ...] | None:
    if not isinstance(listed, list) or len(listed) > 100:
        return None
    found = []
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 2):
            return None
        name, size = entry
        if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return None
        if "/" in name or len(name) > 255:
            return None
        found.append(File(clean(name), size))
    return tuple(found)


def readable(data: bytes) -> str:
    """Bytes of a program's output as text: wrong UTF-8 is replaced, NUL taken out."""
    return data.decode("utf-8", "replace").replace("\0", "")


def clean(text: str) -> str:
    """Text that can be encoded: lone surrogates are replaced, NUL taken out."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")
