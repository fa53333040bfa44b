"""The agent: any program that speaks OpenAI's protocol. It knows nothing of training.

The problem comes on standard input; what is printed is the answer. Base URL and key are where every client of
OpenAI looks for them, so the package `openai` or an agent library works in place of the standard library.
"""

import json
import os
import sys
import urllib.request


def ask(messages):
    """The model's next message."""
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps({"model": "policy", "messages": messages}).encode(),
        {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]


messages = [{"role": "user", "content": sys.stdin.read()}]
for _ in range(2):
    message = ask(messages)
    messages.append(message)
    if "boxed" in (message["content"] or ""):
        break
    messages.append({"role": "user", "content": "Put the answer in \\boxed{}."})
print(message["content"])
