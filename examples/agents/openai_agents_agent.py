"""A program of the OpenAI Agents SDK as an agent under training: it knows nothing of agentrl.

agentrl train --env.name "program:python examples/agents/openai_agents_agent.py" --data rows.jsonl --model ...
"""

import contextlib
import io
import sys

from agents import Agent, Runner, function_tool
from agents.exceptions import MaxTurnsExceeded


@function_tool
def python(code: str) -> str:
    """Run Python and return what it prints."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            exec(code, {})
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return shown.getvalue().strip()


agent = Agent(name="solver", instructions="Use Python.", tools=[python], model="policy")
try:
    print(Runner.run_sync(agent, sys.stdin.read(), max_turns=5).final_output)
except MaxTurnsExceeded:
    print("no answer")
