"""Tools: how methods become tools, what their arguments may be, and how calls of them run."""

from .decorator import BoundTool, bind_arguments, describe_tool, tool, tools_of

__all__ = [
    "BoundTool",
    "bind_arguments",
    "describe_tool",
    "tool",
    "tools_of",
]
