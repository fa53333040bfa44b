"""Checkpoints: everything a run needs to go on as if it had not been interrupted.

`checkpoints/step_000010/` holds `learner/` (weights, optimizer, random state), `state.json`,
`arrays.npz` (tracker and samplers), `buffer.jsonl.gz` (finished episodes that wait) and
`previous.jsonl.gz` (drift `replay` only). The folder gets this name only when all of it is on disk.
It knows nothing of what the states mean.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.episode import Episode
from agentrl.errors import CheckpointError
from agentrl.storage.durable import replace_folder
from agentrl_envs.plain import write_json

FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint holds besides the learner."""

    version: int
    attempt: int
    run_id: str
    ledger_position: int
    """Bytes of the ledger at the moment of the checkpoint."""
    clocks: list[float]
    """Drift clock when each version began, by version."""
    pool: dict[str, Any]
    """Tracker, samplers and shares; arrays and plain values."""
    totals: dict[str, Any]
    episodes: Sequence[Episode] = ()
    """Finished episodes that wait for their batch."""
    previous: Sequence[Episode] = ()
    """`replay`: the newest episode of each prompt, with the log-probabilities after its step."""
    extra: dict[str, Any] = field(default_factory=dict)


def write_state(folder: Path, state: RunState) -> None:
    """Write a state into a folder (which is given its final name by `commit`)."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    plain = {
        "format": FORMAT,
        "version": state.version,
        "attempt": state.attempt,
        "run_id": state.run_id,
        "ledger_position": state.ledger_position,
        "clocks": state.clocks,
        "pool": _split(state.pool, "pool", arrays),
        "totals": state.totals,
        "extra": state.extra,
    }
    (folder / "state.json").write_text(json.dumps(plain))
    np.savez(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
    _write_episodes(folder / "buffer.jsonl.gz", state.episodes)
    _write_episodes(folder / "previous.jsonl.gz", state.previous)


def commit(temporary: Path, final: Path, keep: int) -> None:
    """Give a written checkpoint its name and delete all but the newest `keep`."""
    replace_folder(temporary, final, "checkpoint")
    for old in checkpoint_folders(final.parent)[: -max(1, keep)]:
        shutil.rmtree(old)


def set_damaged_aside(folder: Path) -> str:
    """Give a checkpoint that cannot be read a name under which nobody takes it for one; returns the name."""
    name = f"damaged_{folder.name}"
    shutil.rmtree(folder.with_name(name), ignore_errors=True)
    folder.rename(folder.with_name(name))
    return name


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_state(folder: Path) -> RunState:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: something is missing or of another format.
    """
    try:
        plain = json.loads((folder / "state.json").read_bytes())
        if plain["format"] != FORMAT:
            raise CheckpointError(f"{folder} is a checkpoint of format {plain['format']}, expected {FORMAT}")
        # Opened here: of a damaged file numpy leaves its own descriptor open.
        with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pool = _join(plain["pool"], arrays)
        return RunState(
            version=plain["version"],
            attempt=plain["attempt"],
            run_id=plain["run_id"],
            ledger_position=plain["ledger_position"],
            clocks=plain["clocks"],
            pool=pool,
            totals=plain["totals"],
            episodes=_read_episodes(folder / "buffer.jsonl.gz"),
            previous=_read_episodes(folder / "previous.jsonl.gz"),
            extra=plain["extra"],
        )
    except CheckpointError:
        raise
    except Exception as error:  # zlib, zipfile, pickle, struct: damaged bytes raise almost anything
        raise CheckpointError(f"{folder} is damaged ({type(error).__name__}: {error})") from error


def _split(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Replace arrays in a nested value by references into `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, Mapping):
        return {key: _split(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}/{place}", arrays) for place, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays[value["__array__"]]
        return {key: _join(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays) for item in value]
    return value


def _write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    with gzip.open(path, "wt", compresslevel=5, encoding="utf-8") as file:
        for episode in episodes:
            file.write(write_json(episode.to_json()) + "\n")


def _read_episodes(path: Path) -> list[Episode]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Episode.from_json(json.loads(line)) for line in file]
