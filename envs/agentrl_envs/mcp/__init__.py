"""MCP: servers of tools as environments, and environments as servers. Needs the package `mcp`."""
