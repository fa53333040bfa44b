"""Tools: how methods become tools, what their arguments may be, and how calls of them run."""

from .decorator import BoundTool, bind_arguments, describe_tool, tool, tools_of
from .foreign import SchemaTool, schema_tool, schema_tools, tool_name

__all__ = [
    "BoundTool",
    "SchemaTool",
    "bind_arguments",
    "describe_tool",
    "schema_tool",
    "schema_tools",
    "tool",
    "tool_name",
    "tools_of",
]
