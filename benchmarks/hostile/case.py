"""One hostile program: its code, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentrl_sandbox.result import Result, Status


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Things of the host that cases try to reach; put into the code in place of `@NAME@`."""

    secret_path: str
    secret: str
    port: int
    pid: int
    planted: str
    abstract: str

    def fill(self, code: str) -> str:
        """The code with the names of real things in it."""
        for name in ("secret_path", "port", "pid", "planted", "abstract"):
            code = code.replace(f"@{name.upper()}@", str(getattr(self, name)))
        return code


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile program.

    `steps` run one after another in one session; the outcome of the last must be one of `allowed`. `check`
    says what is wrong with the last result, or None. `alive`: whether the session must have survived. Between
    two steps `pause_s` pass. No program may use more than 1.5 times its limit of CPU time.
    """

    number: float
    name: str
    steps: tuple[str, ...]
    allowed: frozenset[Status]
    check: Callable[[Result], str | None] | None = None
    alive: bool | None = None
    time_s: float = 0.8
    pause_s: float = 0.0
    stdin: str = ""
    needs: str | None = None
    destructive: bool = True
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def id(self) -> str:
        """For pytest."""
        return f"{self.number:g}-{self.name.replace(' ', '_')}"

    def complaint(self, result: Result, surroundings: Surroundings, *, exact_time: bool = True) -> str | None:
        """What is wrong with the outcome; None when it is as it should be.

        Args:
            result: of the last step.
            surroundings: what it may have reached for.
            exact_time: a control group counts CPU time. Else it is looked at ten times a second, and a storm
                of forks on a busy machine does much between two looks.
        """
        said = f"{result.stdout}\n{result.value}"
        if "ESCAPED" in said:
            return f"it got out: {said[:500]}"
        if surroundings.secret in result.text:
            return "the planted secret is in the output"
        if result.cpu_s > 1.5 * self.time_s + (0.5 if exact_time else 3.0):
            return f"{result.cpu_s:.2f} CPU seconds under a limit of {self.time_s:g} s"
        if result.status not in self.allowed:
            return f"status {result.status}, not one of {sorted(self.allowed)}: {result.text[:500]}"
        if self.alive is not None and result.session_alive is not self.alive:
            return f"session_alive is {result.session_alive}: {result.text[:500]}"
        return self.check(result) if self.check else None


def case(
    number: float,
    name: str,
    code: str | tuple[str, ...],
    *allowed: Status,
    **more: object,
) -> Case:
    """Shorthand: one step or several, allowed statuses (default OK and ERROR)."""
    steps = (code,) if isinstance(code, str) else code
    return Case(number, name, steps, frozenset(allowed or (Status.OK, Status.ERROR)), **more)  # type: ignore[arg-type]


def says(*words: str) -> Callable[[Result], str | None]:
    """A check: all of `words` are in what a model is told."""

    def check(result: Result) -> str | None:
        missing = [word for word in words if word not in result.text]
        return f"{missing} not in {result.text[:500]!r}" if missing else None

    return check


def lacks(*words: str) -> Callable[[Result], str | None]:
    """A check: none of `words` is in what a model is told."""

    def check(result: Result) -> str | None:
        found = [word for word in words if word in result.text]
        return f"{found} in {result.text[:500]!r}" if found else None

    return check


def holds(field_name: str, value: object) -> Callable[[Result], str | None]:
    """A check: a field of the result has this value."""

    def check(result: Result) -> str | None:
        seen = getattr(result, field_name)
        return None if seen == value else f"{field_name} is {seen!r}, not {value!r}: {result.text[:300]}"

    return check


def bounded(result: Result) -> str | None:
    """A check: output was cut, and what came is near the limit."""
    if not result.truncated:
        return "truncated is False"
    if len(result.stdout) > 80_000 or len(result.stderr) > 80_000:
        return f"{len(result.stdout)} + {len(result.stderr)} characters came through"
    return None
