#!/bin/sh
# A shell script as an agent under training: curl asks, the shell's Python runs what the model calls.
#
#   agentrl train --env.name "program:sh examples/agents/curl_agent.sh" --data rows.jsonl --model ...
set -eu
tool='{"type": "function", "function": {"name": "python", "description": "Run Python.",
  "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}}}'

messages=$(python3 -c 'import json, sys; print(json.dumps([{"role": "user", "content": sys.stdin.read()}]))')
for turn in 1 2 3 4 5; do
  reply=$(printf '{"model": "policy", "messages": %s, "tools": [%s]}' "$messages" "$tool" |
    curl -sS --fail-with-body "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \
      -H 'Content-Type: application/json' -d @-)
  said=$(printf '%s' "$reply" | python3 -c 'import json, sys
print(json.dumps(json.load(sys.stdin)["choices"][0]["message"]))')
  code=$(printf '%s' "$said" | python3 -c 'import json, sys
for call in json.load(sys.stdin).get("tool_calls") or []:
    print(json.loads(call["function"]["arguments"]).get("code", ""))')
  if [ -z "$code" ]; then
    printf '%s' "$said" | python3 -c 'import json, sys; print(json.load(sys.stdin)["content"])'
    exit 0
  fi
  result=$(printf '%s' "$code" | timeout 10 python3 - 2>&1 || true)
  messages=$(python3 -c 'import json, sys
messages, said, result = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
results = [{"role": "tool", "tool_call_id": c["id"], "content": result} for c in said["tool_calls"]]
print(json.dumps([*messages, said, *results]))' "$messages" "$said" "$result")
done
echo "no answer"
