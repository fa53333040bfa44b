"""Programs in several languages in one sandbox: Python keeps its variables, all share the files.

agentrl train examples/tools/interpreters.py --data questions.jsonl
"""

from typing import Literal

from agentrl import Env, ToolError, tool

QUESTION = "Write the squares of 1 to 20 to a file with one language, and add them up with another."
COMMANDS = {"sh": ["sh"], "awk": ["awk", "-f"], "perl": ["perl"], "javascript": ["node"]}
RUN = """
import os, shutil, subprocess, sys, tempfile
with tempfile.NamedTemporaryFile("w", suffix=".program", delete=False) as _file:
    _file.write(sys.stdin.read())
if shutil.which(COMMAND[0]) is None:
    print("NOT INSTALLED")
else:
    _done = subprocess.run([*COMMAND, _file.name], capture_output=True, text=True, errors="replace", input="")
    print(_done.stdout + _done.stderr + (f"[status {_done.returncode}]" if _done.returncode else ""))
os.unlink(_file.name)
"""


class Interpreters(Env):
    """Answer a question by programs in a language of one's choice."""

    required_fields = ("question", "answer")
    example_rows = ({"question": QUESTION, "answer": "2870"},)

    async def setup(self):
        self.session = await self.sandbox.open()

    def prompt(self, row):
        return f"{row['question']}\nRun programs, then put the answer in \\boxed{{}}."

    @tool
    async def run(self, language: Literal["python", "sh", "awk", "perl", "javascript"], code: str) -> str:
        "Run a program. All languages share the working folder; variables are kept in python alone."
        if language == "python":
            return (await self.session.run(code)).text
        result = await self.session.run(f"COMMAND = {COMMANDS[language]}\n{RUN}", stdin=code)
        if result.stdout == "NOT INSTALLED\n":
            raise ToolError(f"{language} is not installed in the sandbox")
        return result.text

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
