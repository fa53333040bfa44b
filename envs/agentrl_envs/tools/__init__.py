"""Tools: how methods become tools, what their arguments may be, and how calls of them run."""

from .decorator import BoundTool, bind_arguments, describe_tool, tool, tools_of
from .foreign import schema_tool, tool_name

__all__ = [
    "BoundTool",
    "bind_arguments",
    "describe_tool",
    "schema_tool",
    "tool",
    "tool_name",
    "tools_of",
]
