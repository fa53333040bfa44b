"""A server of tools by the package mcp, over standard streams or HTTP: keeps notes, and fails in every way on demand.

usage: notes.py [PORT]; NOTES_WITHOUT names a tool that it does not have.
"""

import contextlib
import os
import sys
import time
from typing import Literal

from mcp.server.mcpserver import Image, MCPServer
from pydantic import BaseModel

server = MCPServer("notes")
notes: list[str] = []
OUTPUT = os.readlink("/proc/self/fd/1")


class Tree(BaseModel):
    name: str
    below: list["Tree"] = []


@server.tool()
def add(text: str) -> str:
    """Keep a note."""
    notes.append(text)
    return f"{len(notes)} notes"


@server.tool()
def total(numbers: list[int], sign: Literal["plus", "minus"] = "plus") -> int:
    """Add numbers."""
    return sum(numbers) if sign == "plus" else -sum(numbers)


@server.tool()
def count(tree: Tree) -> int:
    """Count the nodes of a tree."""
    return 1 + sum(count(one) for one in tree.below)


@server.tool()
def refuse() -> str:
    """Say no."""
    raise ValueError("no such page")


@server.tool()
def big(characters: int) -> str:
    """Answer at length."""
    return "x" * characters


@server.tool()
def picture() -> list[str | Image]:
    """Show a picture."""
    return ["a dot", Image(data=b"\x89PNG\r\n\x1a\n", format="png")]


@server.tool()
async def hang(seconds: float) -> str:
    """Take a while, and let others be answered."""
    import anyio

    await anyio.sleep(seconds)
    return "done"


@server.tool()
async def freeze(seconds: float) -> str:
    """Take a while, and let nobody be answered."""
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose
    return "done"


@server.tool()
def die() -> str:
    """End the server."""
    print("out of memory", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def noise() -> str:
    """Write what is no message."""
    # The package gives its messages a descriptor of their own.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == OUTPUT:
                os.write(int(name), b"\xff\xfe\x00 binary \x80\n{not json\n")
                return "written"
    raise ValueError("no standard output")


@server.tool()
def vanish(name: str) -> str:
    """Take a tool away."""
    server.remove_tool(name)
    return f"{name} is gone"


if without := os.environ.get("NOTES_WITHOUT"):
    server.remove_tool(without)
if __name__ == "__main__" and len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
elif __name__ == "__main__":
    server.run("stdio")
