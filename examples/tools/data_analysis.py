"""Questions about files, answered with Python; pictures that the program saves are kept for people.

A row has `question`, `answer` and `files`: {name: text}.

    agentrl train examples/tools/data_analysis.py --env.settings.pictures pictures --data questions.jsonl
"""

import base64
import uuid
from pathlib import Path

from agentrl import Env, tool

FILES = {"rain.csv": "month,rain\nJanuary,81\nFebruary,60\nMarch,72\nApril,35\n"}
READ = """import base64
with open({name!r}, "rb") as _file:
    _file.seek({start})
    print(base64.b64encode(_file.read(30_000)).decode())"""


def save(folder, name, data):
    """Write a picture under a name of its own."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{uuid.uuid4().hex[:8]}_{Path(name).name}").write_bytes(data)


class DataAnalysis(Env):
    """Answer a question about files."""

    pictures: str = "pictures"
    picture_kb: int = 512
    required_fields = ("question", "answer", "files")
    example_rows = ({"question": "What was the mean rain of a month?", "answer": "62", "files": FILES},)

    async def prompt(self, row):
        self.session = await self.sandbox.open()
        for name, text in row["files"].items():
            await self.session.run(f"open({name!r}, 'w').write({text!r}); None")
        return f"Files: {', '.join(row['files'])}\n{row['question']}\nPut the answer in \\boxed{{}}."

    @tool
    async def python(self, code: str) -> str:
        "Run Python; state is kept between calls. A picture that is saved as .png or .svg is kept."
        result = await self.session.run(code)
        drawn = [file for file in result.files if file.name.endswith((".png", ".svg"))][:8]
        return "\n".join([result.text, *[await self.keep(file) for file in drawn]])

    async def keep(self, file):
        if file.size > self.picture_kb * 1000:
            return f"[{file.name}: larger than {self.picture_kb} kB, not kept]"
        reads = [READ.format(name=file.name, start=start) for start in range(0, file.size, 30_000)]
        parts = [(await self.session.run(read)).stdout for read in reads]  # a call's output has a limit
        save(self.pictures, file.name, b"".join(map(base64.b64decode, parts)))
        return f"[{file.name}: kept]"

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
