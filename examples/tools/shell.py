"""Tasks for a shell in the sandbox; what stands in the files at the end is the reward.

A row has `task`, `files` ({name: text}) and `check`: a command that succeeds once the task is done.

    agentrl train examples/tools/shell.py --data tasks.jsonl
"""

from agentrl import Env, tool

LISTS = {"a.txt": "pear\napple\n", "b.txt": "fig\napple\n"}
RUN = """
import subprocess, sys
_done = subprocess.run(["sh", "-c", sys.stdin.read()], capture_output=True, text=True, errors="replace")
print(_done.stdout + _done.stderr + f"[status {_done.returncode}]")
"""


class Shell(Env):
    """Do something with files."""

    required_fields = ("task", "files", "check")
    example_rows = (
        {
            "task": "Write the lines of a.txt and b.txt into all.txt, sorted, each line once.",
            "files": LISTS,
            "check": "printf 'apple\\nfig\\npear\\n' | cmp - all.txt",
        },
    )

    async def prompt(self, row):
        self.session = await self.sandbox.open()
        for name, text in row["files"].items():
            await self.session.run(f"open({name!r}, 'w').write({text!r}); None")
        return f"{row['task']}\nThe files are in the working folder. Say when you are done."

    @tool
    async def shell(self, command: str) -> str:
        "Run a command with sh. Files are kept between calls; each call begins in the working folder."
        return (await self.session.run(RUN, stdin=command)).text

    async def reward(self, row, answer):
        # Only now, when the model has no more calls, does the sandbox see how the task is checked.
        result = await self.session.run(RUN, stdin=row["check"])
        return result.stdout.endswith("[status 0]\n")
