"""A server of tools in plain Python: the protocol of 2025-06-18 over standard streams, without any package."""

import json
import sys

ECHO = {
    "name": "python",
    "description": "Say it again.",
    "inputSchema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "plain", "version": "1"},
}

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    method, given = message["method"], message.get("params", {})
    if method == "initialize":
        answer["result"] = HELLO
    elif method == "tools/list":
        answer["result"] = {"tools": [ECHO]}
    elif method == "tools/call":
        answer["result"] = {"content": [{"type": "text", "text": given["arguments"]["code"]}]}
    else:
        answer["error"] = {"code": -32601, "message": f"no method {method}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
