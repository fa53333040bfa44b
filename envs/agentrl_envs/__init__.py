"""Tool environments in Python, and graders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .dataset import load_rows, prompt_id
from .env import Env
from .errors import (
    DatasetError,
    EnvError,
    EnvNotFound,
    GraderFailure,
    RewardError,
    RowError,
    SandboxFailure,
    SettingsError,
    ToolError,
    ToolFailure,
)
from .function_env import function_env
from .golds import asks_grader, usable_rows
from .graders import Grader, Verdict, last_answer
from .messages import Finish, Message, Reward, ToolCall, ToolResult, ToolSpec, Transcript, text_of
from .registry import get_env, load_env, register, registered
from .sessions import checked
from .tools import tool

if TYPE_CHECKING:
    from .arithmetic import Arithmetic, arithmetic_rows
    from .countdown import Countdown
    from .math_with_python import MathWithPython
    from .program import ProgramEnv

__all__ = [
    "Arithmetic",
    "Countdown",
    "DatasetError",
    "Env",
    "EnvError",
    "EnvNotFound",
    "Finish",
    "Grader",
    "GraderFailure",
    "MathWithPython",
    "Message",
    "ProgramEnv",
    "Reward",
    "RewardError",
    "RowError",
    "SandboxFailure",
    "SettingsError",
    "ToolCall",
    "ToolError",
    "ToolFailure",
    "ToolResult",
    "ToolSpec",
    "Transcript",
    "Verdict",
    "arithmetic_rows",
    "asks_grader",
    "checked",
    "function_env",
    "get_env",
    "last_answer",
    "load_env",
    "load_rows",
    "prompt_id",
    "register",
    "registered",
    "text_of",
    "tool",
    "usable_rows",
]

_SHIPPED = {
    "Arithmetic": ".arithmetic",
    "arithmetic_rows": ".arithmetic",
    "Countdown": ".countdown",
    "MathWithPython": ".math_with_python",
    "ProgramEnv": ".program",
}


def __getattr__(name: str) -> Any:
    """Shipped environments are imported when they are first named."""
    if name in _SHIPPED:
        return getattr(import_module(_SHIPPED[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
