"""A server of one tool by the package mcp, over standard streams or HTTP: says what it is given.

usage: python_server.py [PORT]
"""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("echo")


@server.tool()
async def python(code: str) -> str:
    """Say it again."""
    return code


if __name__ == "__main__" and len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
elif __name__ == "__main__":
    server.run("stdio")
