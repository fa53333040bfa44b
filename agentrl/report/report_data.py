"""Which part of a run its report file holds: everything of the whole, and at most 500 episodes and 30 MB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.report.evaluations import PAIRS, Compare, comparison, evaluation_rows, pairs
from agentrl.report.run_data import read_run
from agentrl.report.run_view import RunView

EPISODES = 500
BYTES = 28 << 20
"""Of episodes with their tokens; curves and libraries need the rest of 30 MB."""
PROMPTS = 500
ATTEMPTS = 20_000
RULE = (
    "the newest 150, the first 50, the 100 with the largest advantages, the first 50 that failed or were "
    "discarded, and the rest evenly over the run; those for which 30 MB have no "
    "room are left out"
)

_CHOICES = (
    ("SELECT id FROM episodes WHERE file IS NOT NULL ORDER BY dispatch DESC LIMIT 150", ()),
    ("SELECT id FROM episodes WHERE state IN ('failed', 'discarded') ORDER BY dispatch LIMIT 50", ()),
    ("SELECT id FROM episodes WHERE file IS NOT NULL ORDER BY dispatch LIMIT 50", ()),
    ("SELECT id FROM episodes WHERE file IS NOT NULL ORDER BY abs(advantage) DESC LIMIT 100", ()),
)
_EVENLY = (
    "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY dispatch) AS place FROM episodes "
    "WHERE file IS NOT NULL) WHERE place % ? = 0"
)
_ATTEMPT = (
    "id", "version", "place", "start_version", "score", "reward", "baseline", "count", "advantage", "state",
    "reason", "said", "error", "dispatch",
)  # fmt: skip


def choose_episodes(view: RunView) -> list[str]:
    """Ids of at most 500 episodes, by `RULE`."""
    chosen: dict[str, None] = {}
    for query, values in _CHOICES:
        chosen |= dict.fromkeys(row["id"] for row in view.index.query(query, values))
    (count,) = view.index.query("SELECT count(*) AS n FROM episodes WHERE file IS NOT NULL")
    every = max(1, count["n"] // EPISODES)
    for row in view.index.query(_EVENLY, (every,)):
        chosen.setdefault(row["id"])
    return list(chosen)[:EPISODES]


def report_parts(
    folder: Path,
    others: Sequence[Path] = (),
    compare: Compare | None = None,
    reference: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Any]]:
    """(name of the block, plain values): the data of the whole, then each episode."""
    view = RunView(folder)
    try:
        view.index.update()
        overviews = {
            run["name"]: run for run in (view.overview(), *(read_compared(other) for other in others))
        }
        episodes = list(_episodes(view))
        held = [identity for identity, _ in episodes]
        marks = ", ".join("?" * len(held))
        rows = view.index.query(f"SELECT * FROM episodes WHERE id IN ({marks}) ORDER BY dispatch", held)
        prompts = view.prompts({"limit": str(PROMPTS)})["rows"]
        yield (
            "data",
            {
                "mode": "file",
                "overviews": overviews,
                "rows": rows,
                "rule": RULE,
                "prompts": prompts,
                "attempts": _attempts(view, [row["prompt"] for row in prompts]),
                "comparisons": _comparisons(folder, compare),
                "reference": reference,
            },
        )
        yield from ((f"episode-{identity}", episode) for identity, episode in episodes)
    finally:
        view.close()


def _comparisons(folder: Path, compare: Compare | None) -> list[dict[str, Any]]:
    """The evaluations beside the run, each against the oldest of its problems."""
    if compare is None:
        return []
    found = list(pairs(evaluation_rows(folder)))[-PAIRS:]
    return [one for a, b in found if (one := comparison(folder, a, b, compare)) is not None]


def read_compared(folder: Path) -> dict[str, Any]:
    """Another run, for its curves and evaluations only."""
    run = read_run(folder)
    return {**run, "episodes": 0, "episode_environments": [], "damaged": 0, "reasons": [], "saved": []}


def _episodes(view: RunView) -> Iterator[tuple[str, dict[str, Any]]]:
    room = BYTES
    identities = choose_episodes(view)
    # In order of their steps: the file of a step is read once.
    for identity in sorted(identities, key=lambda name: (name[0], len(name), name)):
        episode = view.episode(identity)
        if episode is None or not episode["kept"]:
            continue
        room -= (size := len(json.dumps(episode)))
        if room < 0:
            room += size
            continue
        yield identity, episode


def _attempts(view: RunView, prompts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Attempts at the prompts that the file lists, while there is room."""
    found: dict[str, list[dict[str, Any]]] = {}
    room = ATTEMPTS
    for prompt in prompts:
        rows = view.prompt(prompt)["attempts"]
        room -= len(rows)
        if room < 0:
            break
        found[prompt] = [{name: row[name] for name in _ATTEMPT} for row in rows]
    return found
