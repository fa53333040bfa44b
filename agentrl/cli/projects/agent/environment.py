"""The episode is a run of agent.py; what it prints is graded."""

import shlex
import sys
from pathlib import Path

from agentrl_envs.program import ProgramEnv


class Agent(ProgramEnv):
    """A program works out an expression, and asks a model on the way."""

    system_prompt = ""  # the bundled model has no words to spare
    required_fields = ("problem", "answer")
    example_rows = ({"problem": "123*45+678", "answer": "6213"}, {"problem": "871*32-456", "answer": "27416"})
    command: str = shlex.join([sys.executable, str(Path(__file__).resolve().with_name("agent.py"))])
    time_s: float = 120.0

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
