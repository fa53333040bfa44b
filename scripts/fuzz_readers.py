"""Fuzz what reads text of models, tools and endpoints: renderers, JSON, terminal output, answers, cells.

Coverage-guided, by atheris (needs `pip install atheris`, Linux, Python 3.11 to 3.13). A reader may raise nothing
(what the benchmark's own wrappers do not already take for a refusal) and must be done soon, and what comes of
text must be text that can be written and read again::

    PYTHONPATH=.:envs:sandbox python scripts/fuzz_readers.py -max_total_time=3600 -max_len=2000 corpus/

An input that breaks a rule is written to the working directory by libFuzzer and is the start of a test.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import asdict, is_dataclass
from typing import Any

atheris: Any = importlib.import_module("atheris")  # no stubs, and not a dependency of the project

with atheris.instrument_imports(
    include=[
        "agentrl.renderers",
        "agentrl.inference.endpoint.replies",
        "agentrl.evaluation.scoring",
        "agentrl_envs.plain",
        "agentrl_envs.graders.extraction",
        "agentrl_sandbox.result",
        "agentrl_sandbox.inside.cells",
    ]
):
    from agentrl_envs.plain import write_json
    from benchmarks.readers import READERS, fragments

LIMIT_S = 1.0
"""CPU seconds for all readers of one input of some thousand characters."""
FRAGMENTS = fragments()


def text_of(data: Any) -> str:
    """Fragments that mean something to a reader mixed with arbitrary text, some of them many times over."""
    parts: list[str] = []
    for _ in range(data.ConsumeIntInRange(0, 16)):
        kind = data.ConsumeIntInRange(0, 4)
        if kind == 0:
            parts.append(data.ConsumeUnicode(data.ConsumeIntInRange(0, 16)))
        else:
            piece = FRAGMENTS[data.ConsumeIntInRange(0, len(FRAGMENTS) - 1)]
            parts.append(piece * (data.ConsumeIntInRange(2, 200) if kind == 1 else 1))
    return "".join(parts)


def check(raw: bytes) -> None:
    """The rules, on one input."""
    text = text_of(atheris.FuzzedDataProvider(raw))
    began = time.process_time()
    for name, (prepare, read) in READERS.items():
        found = read(prepare(text))
        value = asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
        written = write_json({name: value})
        written.encode("ascii")
        json.loads(written)
    spent = time.process_time() - began
    if spent > LIMIT_S:
        raise AssertionError(f"{spent:.1f} CPU seconds for {len(text)} characters")


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
