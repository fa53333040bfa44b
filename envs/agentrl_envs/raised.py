"""What user code raised: as text that can always be written, with file and line, and looked through.

Knows nothing of who called the code, nor what becomes of the episode.
"""

from __future__ import annotations

import dis
import os
import sysconfig
from collections.abc import Iterator
from types import CodeType, TracebackType

from .errors import EnvError, ToolError
from .messages import Finish

__all__ = [
    "Raised",
    "chain",
    "error_text",
    "leaves",
    "message_of",
    "place",
    "raised_by_statement",
    "raised_in_own_file",
    "shown",
    "spoken",
    "wrote_text",
]

MOST_CHARS = 1_500
"""Longest text of an error, in characters."""
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(_PATHS[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OWN = os.path.dirname(__file__) + os.sep


class Raised(Exception):
    """User code raised `error`, which may be a BaseException such as SystemExit."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error_text(error))
        self.error = error


def error_text(error: BaseException) -> str:
    """`ValueError: text`; an exception group is told by its members. Never raises."""
    found = list(leaves(error))
    if found != [error]:
        return "; ".join(dict.fromkeys(error_text(leaf) for leaf in found[:3]))
    text = message_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException, most: int = MOST_CHARS) -> str:
    """`str(error)`, cut where it is very long. Never raises."""
    try:
        text = str(error)
    except BaseException as second:
        return f"(its text cannot be shown: {type(second).__name__})"
    return text if len(text) <= most else text[:most] + " ..."


def shown(value: object) -> str:
    """`repr(value)`, cut where it is very long. Never raises."""
    try:
        return f"{value!r:.200}"
    except BaseException:
        return f"a {type(value).__name__} that cannot be shown"


def leaves(error: BaseException, depth: int = 20) -> Iterator[BaseException]:
    """The exceptions of a group, of its groups too; of any other exception itself."""
    if not isinstance(error, BaseExceptionGroup) or depth == 0:
        yield error
        return
    for member in error.exceptions:
        yield from leaves(member, depth - 1)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it: members of groups, `__cause__`, `__context__`, `reason`."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if id(one) in seen or len(seen) > 100:
            continue
        seen.add(id(one))
        yield one
        context = None if one.__suppress_context__ else one.__context__
        more = [one.__cause__, context, getattr(one, "reason", None)]  # urllib and urllib3 call it `reason`
        more += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        todo += [other for other in more if isinstance(other, BaseException)]


def spoken(error: BaseException) -> BaseException | None:
    """What the environment said on purpose (Finish, EnvError, ToolError), if all of a group is that."""
    found = list(leaves(error))
    if not found or not all(isinstance(leaf, Finish | EnvError | ToolError) for leaf in found):
        return None
    # A broken machine weighs more than what another task of the group had to say.
    return next((leaf for leaf in found if isinstance(leaf, EnvError)), found[0])


def place(error: BaseException) -> str:
    """Where in the user's own files it was raised: `env.py:12`; "" where that is not known."""
    frames = next(
        (found for leaf in leaves(error) for one in chain(leaf) if (found := list(_frames(one)))), []
    )
    users = [frame for frame in frames or _frames(error) if not _is_library(frame[0].co_filename)]
    named = [frame for frame in users if not frame[0].co_filename.startswith(("<", _OWN))]
    if not (frames := named or users or frames):
        return ""
    code, line = frames[-1]
    return f"{_short(code.co_filename)}:{line}"


def wrote_text(error: BaseException) -> bool:
    """Whether it was raised inside of text that was evaluated, which in a tool is what the model wrote."""
    frames = [code.co_filename for leaf in leaves(error) for code, _ in _frames(leaf)]
    first = next((name for name in frames if not _is_library(name)), "")
    return any(name.startswith("<") and not name.startswith("<frozen") and name != first for name in frames)


def raised_in_own_file(error: BaseException) -> bool:
    """Whether the innermost frame is in a file of the user, neither in a library nor in evaluated text."""
    last = [code.co_filename for code, _ in _frames(error)][-1:]
    return any(not name.startswith("<") and not _is_library(name) for name in last)


def raised_by_statement(error: BaseException) -> bool:
    """Whether a `raise` of user code raised it, rather than a signal or a function in C."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_globals.get("__name__") == "asyncio.runners":
        return False  # where asyncio turns Ctrl-C into an exception
    code = last.tb_frame.f_code.co_code
    return dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"


def _frames(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    """Code and line of each frame, outermost first, without those of `user_code.py`."""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename != _OWN + "user_code.py":
            yield step.tb_frame.f_code, step.tb_lineno
        step = step.tb_next


def _is_library(path: str) -> bool:
    return path.startswith(_LIBRARIES) or "site-packages" in path or "dist-packages" in path


def _short(path: str) -> str:
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return path
    return path if relative.startswith("..") else relative
