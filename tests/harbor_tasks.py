"""A small task in the format of Harbor, written into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TOML = """
schema_version = "1.4"
[task]
name = "tests/greeting"
[agent]
timeout_sec = 60.0
[verifier]
timeout_sec = 30.0
[verifier.env]
WANTED = "hello"
[environment]
cpus = 1
memory_mb = 256
workdir = "/app"
network_mode = "no-network"
[solution.env]
SAID = "hello"
"""
FILES = {
    "task.toml": TOML,
    "instruction.md": "<!-- canary 26f1 -->\n\nWrite the word hello into the file greeting.txt.\n",
    "environment/Dockerfile": "FROM agentrl-test:shell\nUSER root\nWORKDIR /app\nCOPY data.txt /app/\n",
    "environment/data.txt": "some data\n",
    "tests/test.sh": (
        "#!/bin/bash\n"
        'if [ "$(cat /app/greeting.txt)" = "$WANTED" ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n'
    ),
    "solution/solve.sh": '#!/bin/bash\necho "$SAID" > greeting.txt\n',
}


def write_task(folder: Path, changes: Mapping[str, str | None] | None = None) -> Path:
    """The folder, with the task in it.

    Args:
        folder: it is made.
        changes: files that are other than those of FILES; None leaves one out.
    """
    for name, text in {**FILES, **(changes or {})}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder
