"""Line charts with bands, as SVG without dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 360, 56, 48, 26, 250
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `low` and `high` are the edges of its band (equal to `y` for none)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, note: str = "") -> str:
    """Curves of values between 0 and 1 over x from 0 on."""
    right = max(max(line.x) for line in lines)

    def at(x: float, y: float) -> str:
        y = min(max(y, 0.0), 1.0)
        return (
            f"{LEFT + (WIDTH - LEFT - RIGHT) * x / right:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - y):.1f}"
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for fifth in range(6):
        _, y = at(0.0, fifth / 5).split(",")
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#4b5563">{fifth / 5:.1f}</text>'
        )
        x, _ = at(right * fifth / 5, 0.0).split(",")
        parts.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#4b5563">{right * fifth / 5:,.0f}</text>'
        )
    for place, line in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)]
        edge = [at(x, y) for x, y in zip(line.x, line.high, strict=True)]
        edge += [at(x, y) for x, y in zip(line.x, line.low, strict=True)][::-1]
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity="0.08"/>')
        points = " ".join(at(x, y) for x, y in zip(line.x, line.y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        y = TOP + 12 + 20 * place
        parts.append(f'<circle cx="{WIDTH - RIGHT + 22}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 34}" y="{y}" fill="#111827">{escape(line.name)}</text>')
    y = TOP + 20 + 20 * len(lines)
    parts.append(
        f'<text x="{WIDTH - RIGHT + 16}" y="{y}" fill="#6b7280" font-size="11">{escape(note)}</text>'
    )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle" fill="#111827">{escape(x_label)}</text>'
    )
    parts.append(f'<text x="{LEFT}" y="{TOP - 10}" fill="#111827">{escape(y_label)}</text></svg>')
    return "\n".join(parts)
