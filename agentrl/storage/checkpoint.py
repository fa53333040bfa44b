"""Checkpoints: everything a run needs to go on as if it had not been interrupted.

`checkpoints/step_000010/` holds `learner/` (weights, optimizer, random state), `state.npz` (light state and
progress), `buffer.jsonl.gz` (finished episodes that wait) and `previous.jsonl.gz` (drift `replay` only). The
folder gets this name only when all of it is on disk. It knows nothing of what the states mean.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.episode import Episode
from agentrl.errors import CheckpointError
from agentrl.storage import nested
from agentrl.storage.durable import replace_folder
from agentrl_envs.plain import write_json

FORMAT = 2


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint holds besides the learner."""

    run_id: str
    light: dict[str, Any]
    """Tracker, samplers and what else each step writes, as the newest step left them; the `ledger_position`
    in it, in bytes, says what happened since."""
    progress: dict[str, Any]
    """How far the run is."""
    episodes: Sequence[Episode] = ()
    """Finished episodes that wait for their batch."""
    previous: Sequence[Episode] = ()
    """`replay`: the newest episode of each prompt, with the log-probabilities after its step."""


def write_state(folder: Path, state: RunState) -> None:
    """Write a state into a folder (which is given its final name by `commit`)."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"format": FORMAT, "run_id": state.run_id, "light": state.light, "progress": state.progress}
    (folder / "state.npz").write_bytes(nested.to_bytes(plain))
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
    return sorted(found, key=checkpoint_version)


def checkpoint_version(folder: Path) -> int:
    """The policy version of a checkpoint, from its folder's name."""
    return int(folder.name.removeprefix("step_"))


def read_state(folder: Path) -> RunState:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: something is missing or of another format.
    """
    if (folder / "state.json").exists():
        raise CheckpointError(f"{folder} is a checkpoint of format 1, expected {FORMAT}")
    try:
        plain = nested.read(folder / "state.npz")
        if plain["format"] != FORMAT:
            raise CheckpointError(f"{folder} is a checkpoint of format {plain['format']}, expected {FORMAT}")
        return RunState(
            run_id=plain["run_id"],
            light=plain["light"],
            progress=plain["progress"],
            episodes=_read_episodes(folder / "buffer.jsonl.gz"),
            previous=_read_episodes(folder / "previous.jsonl.gz"),
        )
    except CheckpointError:
        raise
    except Exception as error:  # zlib, zipfile, pickle, struct: damaged bytes raise almost anything
        raise CheckpointError(f"{folder} is damaged ({type(error).__name__}: {error})") from error


def _write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    with gzip.open(path, "wt", compresslevel=5, encoding="utf-8") as file:
        for episode in episodes:
            file.write(write_json(episode.to_json()) + "\n")


def _read_episodes(path: Path) -> list[Episode]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Episode.from_json(json.loads(line)) for line in file]
