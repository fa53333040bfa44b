"""Limits of one session. Knows nothing of how a backend enforces them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import SandboxConfigError

_RANGES: dict[str, tuple[float, float]] = {
    "time_s": (0.01, 86_400.0),
    "memory_mb": (32, 1 << 20),
    "processes": (4, 32_768),
    "output_bytes": (256, 64 << 20),
    "file_mb": (1, 1 << 16),
    "files": (16, 10_000_000),
    "open_files": (16, 65_536),
    "source_bytes": (1, 64 << 20),
    "grace_s": (0.05, 60.0),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use. Every number is a hard limit, checked on construction."""

    time_s: float = 10.0
    """Seconds per call: CPU time of all that the program runs, or wall time less its waits for a core."""
    memory_mb: int = 512
    """MiB of memory of all the session's processes together (private files count)."""
    processes: int = 32
    """Processes and threads, two of the sandbox's own among them."""
    output_bytes: int = 65_536
    """Bytes of stdout, and as many of stderr, kept per call: the first and the last half."""
    file_mb: int = 16
    """MiB in the session's private files together."""
    files: int = 2_000
    """Number of files and directories."""
    open_files: int = 256
    """Open descriptors per process."""
    source_bytes: int = 1_000_000
    """Bytes of source code per call."""
    grace_s: float = 1.0
    """Seconds between the interrupt at the time limit and the kill."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SandboxConfigError(f"limits.{field.name} must be a number, not {value!r}")
            low, high = _RANGES[field.name]
            if not low <= value <= high:
                raise SandboxConfigError(f"limits.{field.name} = {value} is outside {low:g} .. {high:g}")
            if field.type == "int" and not isinstance(value, int):
                if value != int(value):
                    raise SandboxConfigError(f"limits.{field.name} = {value} must be a whole number")
                object.__setattr__(self, field.name, int(value))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON form, as the supervisor reads it."""
        return asdict(self)

    def seconds(self, timeout: object) -> float:
        """The limit of one run: `timeout`, or `time_s` where that is None. Raises SandboxConfigError."""
        if timeout is None:
            return self.time_s
        low, high = _RANGES["time_s"]
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise SandboxConfigError(f"timeout must be a number of seconds, not {timeout!r}")
        if not 0.0 <= timeout <= high:
            raise SandboxConfigError(f"timeout = {timeout} is outside {low:g} .. {high:g} seconds")
        return max(low, float(timeout))


def highest_limits() -> Limits:
    """Every limit at the top of its range."""
    return Limits(**{name: high for name, (_, high) in _RANGES.items()})  # type: ignore[arg-type]
