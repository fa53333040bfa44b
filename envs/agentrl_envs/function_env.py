"""Environments from plain functions: `function_env(tools=[f], reward=g)` makes the class a user would have
written.

Knows nothing that `Env` does not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .env import Env
from .errors import EnvError
from .tools import tool
from .tools.decorator import mark_of

__all__ = ["function_env"]


def function_env(
    *,
    tools: Sequence[Callable[..., Any]] = (),
    reward: Callable[..., Any],
    prompt: Callable[..., Any] | str = "{problem}",
    name: str = "FunctionEnv",
    **attributes: Any,
) -> type[Env]:
    """An `Env` class from functions.

    Args:
        tools: functions (sync or async) that the model may call, marked with `@tool(...)` or not.
        reward: `reward(row, answer)` or `reward(row, answer, episode)`.
        prompt: `prompt(row)`, or a format string over the fields of the row.
        name: of the class.
        attributes: of the class: `max_turns=4`, `reward_range=(-1, 1)`, `required_fields=("problem",)`, ...

    Raises:
        EnvError: a function has no name that a model could call, or one that is taken.

    Example:
        >>> def double(number: int) -> int:
        ...     "Twice a number."
        ...     return 2 * number
        >>> def right(row, answer):
        ...     return answer == str(2 * row["number"])
        >>> Doubles = function_env(tools=[double], prompt="Twice {number}?", reward=right)
        >>> Doubles.tool_specs()[0].name
        'double'
    """
    body: dict[str, Any] = {"reward": staticmethod(reward), "__doc__": inspect.getdoc(reward), **attributes}
    body["prompt"] = _from_template(prompt) if isinstance(prompt, str) else staticmethod(prompt)
    for function in tools:
        key = getattr(function, "__name__", "")
        if not key.isidentifier():
            raise EnvError(
                f"tools: {function!r} has no name a model could call; use `def`, not lambda or partial"
            )
        if key in body or hasattr(Env, key) or key == "reply":
            raise EnvError(f"tools: the name {key!r} is taken; rename the function")
        body[key] = staticmethod(function if mark_of(function) else tool(function))
    # A class belongs to the module that asked for it, so that `my_env.py` is seen to define it.
    body["__module__"] = sys._getframe(1).f_globals.get("__name__", __name__)
    return type(name, (Env,), body)


def _from_template(template: str) -> Callable[..., str]:
    def prompt(self: Env, row: Any) -> str:
        try:
            return template.format_map(row)
        except KeyError as error:
            raise EnvError(
                f"prompt template: the row has no field {error}; it has {', '.join(row)}"
            ) from None

    return prompt
