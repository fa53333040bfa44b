"""The folder of one run: which files are where, and which run a name means.

::

    config.toml metrics.jsonl summary.json ledger.jsonl credit.jsonl run.json
    episodes/ steps/ checkpoints/ weights/step_N/ best/ report.html logs/

It knows nothing of what the files say.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import IO, Any

from agentrl.errors import ConfigError
from agentrl.storage.durable import write_file
from agentrl.storage.provenance import command, versions

FORMAT = 2
"""Of the files of a run. A folder without a number is of format 1."""


HELD_OUT = "held_out.json"
"""Beside the best weights: their version and its score."""


class _Inside:
    """A path inside of the folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: type) -> Path:
        return folder.path / self._name


class RunFolder:
    """Paths of one run, and the lock that keeps a second process out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, directory: Path, name: str) -> RunFolder:
        """Make a new folder; an empty name takes the first free number.

        Raises:
            ConfigError: the folder exists and holds a run.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if name:
            path = directory / name
            if (path / "run.json").exists():
                raise ConfigError(
                    f"{path} already holds a run; continue it with `agentrl train --resume {path}`, "
                    "or choose another --run.name"
                )
            path.mkdir(exist_ok=True)
            # Of two that begin at once, one gets it.
            folder = cls(path)
            folder.lock()
            if (path / "run.json").exists():
                folder.unlock()
                return cls.create(directory, name)  # raises
        else:
            number = 1
            while True:
                path = directory / f"{number:03d}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
            folder = cls(path)
        identity = {
            "format": FORMAT,
            "run_id": uuid.uuid4().hex[:12],
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command(),
            "versions": versions(),
        }
        write_file(path / "run.json", json.dumps(identity).encode(), "run")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            ConfigError: there is no run in it, or one of another format.
        """
        if not (path / "run.json").exists():
            raise ConfigError(f"{path} holds no run (it has no run.json)")
        folder = cls(path)
        try:
            folder.identity["run_id"]
            found = folder.identity.get("format")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path / 'run.json'} is damaged ({error}); write "
                f'{{"format": {FORMAT}, "run_id": "{uuid.uuid4().hex[:12]}"}} into it to go on (a tracking '
                "service will show a new run)"
            ) from error
        if found != FORMAT:
            raise ConfigError(
                f"{path} is a run of format {found or 1}, and this agentrl reads format {FORMAT}: go on with "
                "the agentrl that wrote it, or begin a new run"
            )
        return folder

    def remove_unstarted(self) -> None:
        """Delete the folder if its run never began: nothing was dispatched, and nothing was logged."""
        self.unlock()
        written = [self.ledger, self.metrics, *self.logs.glob("*")]
        if not any(path.exists() and path.stat().st_size for path in written):
            shutil.rmtree(self.path, ignore_errors=True)

    def lock(self) -> None:
        """Keep other processes out until `unlock` or the end of this process; idempotent.

        Raises:
            ConfigError: another process runs in this folder.
        """
        if self._lock is not None:
            return
        file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigError(
                f"another process runs in {self.path}{self._holder()}; wait for it, stop it, or take another "
                "folder"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed process was writing; nobody reads it."""
        for old in [
            *self.checkpoints.glob(".*.old"),
            *self.weights.glob(".*.old"),
            *self.path.glob(f".{self.best.name}.old"),
        ]:
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not final.exists():  # killed between two renames: the old one is the newest whole one
                old.rename(final)
        for path in (self.path, self.episodes, self.steps, self.checkpoints, self.weights):
            for torn in [*path.glob(".*.tmp"), *path.glob(".*.old")]:
                if torn.is_dir():
                    shutil.rmtree(torn, ignore_errors=True)
                else:
                    torn.unlink(missing_ok=True)

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f" (process {int((self.path / '.lock').read_text())})"
        return ""

    def unlock(self) -> None:
        """Let others in; idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def identity(self) -> dict[str, Any]:
        """`run_id` and the time of creation; the run id also names the run in tracking services."""
        return json.loads((self.path / "run.json").read_text())

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    config = _Inside("config.toml")
    """The resolved settings."""
    metrics = _Inside("metrics.jsonl")
    """One JSON line per learner step, evaluation and phase."""
    summary = _Inside("summary.json")
    """Totals, written at the end."""
    ledger = _Inside("ledger.jsonl")
    """What became of every episode."""
    episodes = _Inside("episodes")
    """Recorded episodes."""
    steps = _Inside("steps")
    """What each step changed, and the values of its tokens."""
    checkpoints = _Inside("checkpoints")
    """What can be resumed."""
    weights = _Inside("weights")
    """Hugging Face weights, one folder per version."""
    best = _Inside("best")
    """Hugging Face weights of the version with the best held-out score, which `held_out.json` names."""
    logs = _Inside("logs")
    """Logs and stacks of stalls."""
    report = _Inside("report.html")
    """The page with the curves."""

    def best_version(self) -> dict[str, Any] | None:
        """`version` and held-out `score` of the weights in `best`, None where there are none."""
        try:
            return json.loads((self.best / HELD_OUT).read_text())
        except (OSError, ValueError):
            return None

    def newest_weights(self) -> Path | None:
        """The weights of the highest version, None when there are none."""
        found = [path for path in self.weights.glob("step_*") if (path / "config.json").exists()]
        return max(found, key=lambda path: int(path.name.removeprefix("step_")), default=None)
