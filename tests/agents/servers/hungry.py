"""A server in plain Python, without any package, whose tools use memory and CPU time, by themselves or in a child."""

import json
import subprocess
import sys
import time

MEMORY = "data = bytearray({mb} << 20); data[::4096] = b'x' * len(data[::4096])"
KEPT: list[dict[str, object]] = []
CPU = "import time\nwhile time.process_time() < {seconds}: pass"


def tool(name: str) -> dict[str, object]:
    schema = {"type": "object", "properties": {"much": {"type": "integer"}}, "required": ["much"]}
    return {"name": name, "description": f"{name}.", "inputSchema": schema}


def use(name: str, much: int) -> str:
    work = (MEMORY if "memory" in name else CPU).format(mb=much, seconds=much)
    if name.startswith("child"):
        child = subprocess.Popen([sys.executable, "-c", f"{work}\nimport time; time.sleep(600)"])
        if name.endswith("later"):
            return "started"
        child.wait()
    else:
        KEPT.append({})  # what was taken is kept: a peak between two looks may pass unseen
        exec(work, KEPT[-1])
    return f"used {much}"


HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "hungry", "version": "1"},
}
NAMES = ["memory", "cpu", "child_memory", "child_cpu", "child_memory_later"]

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer: dict[str, object] = {"jsonrpc": "2.0", "id": message["id"]}
    method, given = message["method"], message.get("params", {})
    if method == "initialize":
        answer["result"] = HELLO
    elif method == "tools/list":
        answer["result"] = {"tools": [tool(name) for name in NAMES]}
    elif method == "tools/call":
        text = use(given["name"], given["arguments"]["much"])
        answer["result"] = {"content": [{"type": "text", "text": text}]}
    else:
        answer["error"] = {"code": -32601, "message": f"no method {method}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    time.sleep(0)
