"""Draws the learning curve of the README from the metrics of some runs, as an SVG without dependencies.

Usage: python scripts/learning_curve.py docs/results/demo/seed0 docs/results/demo/seed1 ... > docs/learning_curve.svg

With `--tokens` the horizontal axis is not the policy version but sampled tokens, those of rollouts for initial
values included: what runs with and without them must be compared along.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agentrl.storage.cost import spent
from agentrl.storage.metrics import Row, read_metrics

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 790, 300, 56, 44, 26, 180
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626")


def main(arguments: list[str]) -> None:
    """Print the drawing."""
    tokens = "--tokens" in arguments
    folders = [argument for argument in arguments if argument != "--tokens"]
    runs = [(Path(folder).name, read_metrics(Path(folder) / "metrics.jsonl")) for folder in folders]

    def reached(rows: list[Row], row: Row) -> int:
        return spent(rows, row["step"]).tokens_total if tokens else row["step"]

    steps = max(reached(rows, row) for _, rows in runs for row in rows if row["kind"] == "step")

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / steps

    def y(reward: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - reward)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#4b5563">{tenth / 10:.1f}</text>'
        )
    for step in range(0, steps + 1, max(1, steps // 8)):
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#4b5563">{step:,}</text>'
        )
    for place, (name, rows) in enumerate(runs):
        colour = COLOURS[place % len(COLOURS)]
        points = " ".join(
            f"{x(reached(rows, row)):.1f},{y(row['reward_mean']):.1f}"
            for row in rows
            if row["kind"] == "step"
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" opacity="0.75"/>'
        )
        for row in rows:
            if row["kind"] == "eval":
                parts.append(
                    f'<circle cx="{x(reached(rows, row)):.1f}" cy="{y(row["reward_mean"]):.1f}" r="5" fill="{colour}"/>'
                )
        at = TOP + 16 + 20 * place
        parts.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{at - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 36}" y="{at}" fill="#111827">{name}</text>')
    note = TOP + 24 + 20 * len(runs)
    evaluated = any(row["kind"] == "eval" for _, rows in runs for row in rows)
    dots = ("dot: 256 held-out", "prompts, temperature 1") if evaluated else ()
    for line, text in enumerate(("line: training batches", *dots)):
        parts.append(
            f'<text x="{WIDTH - RIGHT + 18}" y="{note + 15 * line}" fill="#6b7280" font-size="11">{text}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#111827">{"tokens sampled, initial values included" if tokens else "policy version"}</text>'
    )
    parts.append(f'<text x="{LEFT}" y="{TOP - 10}" fill="#111827">reward</text></svg>')
    print("\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
