"""An MCP server: a Python notebook whose cells run in agentrl's sandbox and share their variables.

agentrl check "mcp:python examples/agents/mcp_server.py" --data rows.jsonl
agentrl train "mcp:python examples/agents/mcp_server.py" --data rows.jsonl --model Qwen/Qwen3-1.7B
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.mcpserver import Context, MCPServer

from agentrl_sandbox import Session, open_sandbox


@asynccontextmanager
async def notebook(server: MCPServer) -> AsyncIterator[Session]:
    """One session for one server: each episode has a server of its own."""
    async with open_sandbox("local") as sandbox:
        session = await sandbox.open()
        yield session
        await session.close()


server = MCPServer("notebook", lifespan=notebook)


@server.tool()
async def python(code: str, context: Context[Session]) -> str:
    """Run Python. What it prints comes back; variables stay for the next call."""
    result = await context.request_context.lifespan_context.run(code)
    return result.text


if __name__ == "__main__":
    server.run("stdio")
