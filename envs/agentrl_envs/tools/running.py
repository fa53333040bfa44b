"""Running one tool call: arguments checked, limit kept, every outcome turned into a ToolResult.

What a tool raises is the model's to read, as what its arguments caused; a service out of reach and a bug fail
the episode. Knows nothing of the order in which calls run.
"""

from __future__ import annotations

import difflib
import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from ..errors import SandboxFailure, ToolError, ToolFailure
from ..infrastructure import is_infrastructure
from ..messages import ToolCall, ToolResult, is_content_part
from ..plain import clean_text, plain
from ..raised import (
    Raised,
    chain,
    error_text,
    message_of,
    place,
    raised_in_own_file,
    wrote_text,
)
from ..sessions import checked, recorded_results
from ..user_code import CallThread, LimitExceeded, call
from . import BoundTool, bind_arguments
from .schema import BadValue

__all__ = ["run_tool"]


async def run_tool(
    env: Any, tools: Mapping[str, BoundTool], request: ToolCall, thread: CallThread
) -> ToolResult:
    """Run one call of `env`. Raises Finish, or an EnvError when the machinery or the environment broke."""
    started = time.perf_counter()
    bound = tools.get(request.name)
    if request.error is not None:
        return _refused(request, "bad_arguments", request.error)
    if bound is None:
        near = difflib.get_close_matches(request.name, list(tools), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        names = ", ".join(tools) or "(none)"
        return _refused(request, "unknown_tool", f"there is no tool {request.name!r}.{hint} Tools: {names}")
    try:
        arguments = bind_arguments(bound, request.arguments)
    except BadValue as error:
        return _refused(request, "bad_arguments", str(error))
    status, value = await _outcome(env, bound, arguments, thread)
    text, parts = _as_text(bound.spec.name, value)
    seconds = time.perf_counter() - started
    return ToolResult(request.id, request.name, text, status == "ok", seconds, status, parts=parts)


def _refused(request: ToolCall, status: str, reason: str) -> ToolResult:
    return ToolResult(request.id, request.name, f"ToolError: {reason}", False, 0.0, status)


async def _outcome(
    env: Any, bound: BoundTool, arguments: dict[str, Any], thread: CallThread
) -> tuple[str, Any]:
    """Status and value of a call whose arguments are good."""
    name, limit = bound.spec.name, bound.spec.timeout_s
    who = f"{type(env).__name__}.{bound.attribute}"
    results: list[Any] = []
    token = recorded_results.set(results)
    try:
        value = await call(partial(getattr(env, bound.attribute), **arguments), thread, limit)
        if hasattr(value, "infrastructure_failure") and hasattr(
            value, "text"
        ):  # a sandbox Result, returned whole
            value = checked(value).text
        return (str(results[-1].status) if results else "ok"), value
    except LimitExceeded:
        return "timeout", f"ToolError: {name} did not finish within {limit:g} s and was stopped"
    except ToolError as error:
        return "error", f"ToolError: {message_of(error)}"
    except Raised as raised:
        return "error", _told(env, who, raised.error)
    finally:
        recorded_results.reset(token)


def _told(env: Any, who: str, error: BaseException) -> str:
    """What the model is told of an exception; SandboxFailure or ToolFailure where it is not the model's."""
    text = error_text(error)
    own = any(_is_sandbox_error(one) for one in chain(error))
    if own:
        raise SandboxFailure(f"{who}: {text} ({place(error)})") from error
    if not isinstance(error, env.told_errors):
        reason = _not_the_models(env, error)
        if reason:
            raise ToolFailure(f"{who} {reason}: {text} ({place(error)})") from error
    return f"ToolError: {text}"


def _not_the_models(env: Any, error: BaseException) -> str:
    """Why an exception fails the episode; "" when it is the model's to read."""
    if isinstance(error, env.failing_errors):
        return "raised what fails an episode"
    if wrote_text(error):
        return ""  # the text that was evaluated is the model's, and whatever it raises
    if is_infrastructure(error):
        return "could not reach what it needs"
    if any(not isinstance(one, Exception | BaseExceptionGroup) for one in chain(error)):
        return "raised"
    # No argument makes a name or a module of the tool's own file appear.
    return "has a bug" if isinstance(error, NameError | ImportError) and raised_in_own_file(error) else ""


def _is_sandbox_error(error: BaseException) -> bool:
    from agentrl_sandbox import SandboxError

    return isinstance(error, SandboxError)


def _as_text(name: str, value: Any) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Text for the model, and the content parts when the tool returned any."""
    if isinstance(value, str):
        return clean_text(value), ()
    if value is None:
        return "(no output)", ()
    if isinstance(value, list) and value and all(map(is_content_part, value)):
        return _text_of_parts(value), tuple(plain(part) for part in value)
    if _tells_nothing(value):
        raise ToolFailure(
            f"tool {name!r} returned {type(value).__name__}; return text, JSON-like data or content parts"
        )
    written = plain(value)
    return written if isinstance(written, str) else json.dumps(written, ensure_ascii=False), ()


def _tells_nothing(value: Any) -> bool:
    """Whether a value was surely not meant to be read: a function that was not called, an iterator, what has
    no text of its own."""
    kind = type(value)
    if hasattr(kind, "tolist"):
        return False
    unnamed = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return (
        unnamed or callable(value) or inspect.isawaitable(value) or isinstance(value, Iterator | ModuleType)
    )


def _text_of_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    """The text among content parts, with a note where a part cannot be shown as text."""
    shown = [part["text"] if part["type"] == "text" else f"[{part['type']} not shown]" for part in parts]
    return clean_text("".join(shown))
