"""A smolagents program as an agent under training: it knows nothing of agentrl.

    agentrl train --env.name "program:python examples/agents/smolagents_agent.py" --data rows.jsonl

Rows have `problem` and `answer`; what the program prints is its answer.
"""

import copy
import sys

from smolagents import CodeAgent, OpenAIServerModel
from smolagents.agents import EMPTY_PROMPT_TEMPLATES

# Templates of one's own keep the prompt short; leave them out for smolagents' 2,000 words.
templates = copy.deepcopy(EMPTY_PROMPT_TEMPLATES)
templates["system_prompt"] = "Write Python between <code> and </code>. End with final_answer(...)."

agent = CodeAgent(
    tools=[],
    model=OpenAIServerModel(model_id="policy"),  # URL and key come from the environment
    prompt_templates=templates,
    max_steps=4,
    verbosity_level=0,
)
print(agent.run(sys.stdin.read()))
