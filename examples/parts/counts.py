"""A metric and a listener: right answers for each tool call, and a line a step in a file.

agentrl train run.toml --run.metrics examples/parts/counts.py:right_per_call
agentrl train run.toml --run.listeners examples/parts/counts.py:Lines
"""

from pathlib import Path


def right_per_call(batch):
    """Numbers that are logged with the step of a batch."""
    calls = sum(len(episode.tool_calls) for episode in batch.episodes)
    return {"right_per_call": float(batch.scores.sum()) / max(calls, 1)}


class Lines:
    """Writes a line for every step."""

    def __init__(self):
        self.path = Path("steps.txt")

    def __call__(self, row):
        """Told every row of metrics."""
        if row["kind"] == "step":
            with self.path.open("a") as file:
                file.write(f"{row['version']} {row['reward_mean']:.3f}\n")
