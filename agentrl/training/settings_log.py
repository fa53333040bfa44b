"""What a run's settings were, attempt by attempt, and which of them a resumed run may not change.

`settings.jsonl` in the run's folder has a line for the start, with what the tasks were, and one for every
resumption. It knows nothing of what settings do.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrl.config import loading, tree
from agentrl.config.secrets import is_secret, without_secrets
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError
from agentrl.storage.checkpoint import checkpoint_folders
from agentrl.storage.durable import LineFile, read_lines
from agentrl.storage.provenance import command, versions
from agentrl.storage.run_folder import RunFolder
from agentrl.tasks.task import Task
from agentrl.weights.fingerprint import fingerprint

logger = logging.getLogger(__name__)

FIXED = {
    "rollout.format": "the model has learned to call tools in this format",
    "estimator.kind": "episodes that wait were played for it",
    "tracker.kind": "values were kept by it",
    "estimator.group_size": "groups under way have this size",
    "tracker.drift": "values are stamped in its unit",
}
"""Settings that a resumed run keeps, and why."""
FIXED_ONCE_BEGUN = {
    "tracker.initial_rollouts": "initial values were set, and are not set again",
    "tracker.initial_file": "initial values were set, and are not set again",
}


def describe_tasks(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """What each environment of a run is: settings in force, rows, source; equal for equal tasks."""
    return [
        {
            "name": task.name,
            "settings": {
                name: repr(without_secrets(task.settings.get(name, getattr(task.env, name, None)), name))
                for name in sorted(task.env.setting_types())
            },
            "rows": _digest(json.dumps(row, sort_keys=True, default=repr) for row in task.rows),
            "source": _source(task),
        }
        for task in tasks
    ]


def _digest(parts: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def _source(task: Task) -> str:
    try:
        return _digest(iter(Path(inspect.getfile(task.env)).read_text(encoding="utf-8").splitlines()))
    except (OSError, TypeError, ValueError):
        return ""


def log_start(
    folder: RunFolder, settings: Settings, tasks: Sequence[Task], chosen: Mapping[str, Any] | None = None
) -> None:
    """Write what the run begins with, and which of its settings were chosen for the machine."""
    parts = {str(part): part.source for part in tree.parts_of(settings)}
    row = {"kind": "start", "tasks": describe_tasks(tasks), "parts": parts}
    _append(folder, row | ({"chosen": dict(chosen)} if chosen else {}))


def check_changes(folder: RunFolder, settings: Settings, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a resumption changes, as `log_resumption` takes it.

    Raises:
        ConfigError: it would change what the values and episodes of the run mean.
    """
    changed = dict(_changes(loading.load_settings(folder.config), settings))
    fixed = FIXED | (FIXED_ONCE_BEGUN if checkpoint_folders(folder.checkpoints) else {})
    refused = [
        f"{key} = {new!r} (it had {old!r}): {fixed[key]}"
        for key, (old, new) in changed.items()
        if key in fixed
    ]
    if "model.path" in changed and _other_model(*changed["model.path"]):
        old, new = changed["model.path"]
        refused.append(f"model.path = {new!r} (it had {old!r}): the weights there are others")
    started = next((row for row in read_lines(_path(folder)) if row["kind"] == "start"), None)
    now = describe_tasks(tasks)
    if started is not None:
        refused += _other_tasks(started["tasks"], now)
        for before, after in zip(started["tasks"], now, strict=False):
            if before["source"] != after["source"]:
                changed[f"source of {after['name']}"] = (before["source"], after["source"])
                logger.warning("the source of %s has changed since the run began", after["name"])
        for part in tree.parts_of(settings):
            before = started.get("parts", {}).get(str(part), part.source)
            if before != part.source:
                changed[f"source of {part}"] = (before, part.source)
                logger.warning("the source of %s has changed since the run began", part)
    if refused:
        raise ConfigError(
            f"{folder.path} cannot go on with other settings than these, which say what its values and "
            "episodes mean; resume with what it had, or begin a new run:\n  " + "\n  ".join(refused)
        )
    return changed


def log_resumption(folder: RunFolder, changed: dict[str, Any]) -> None:
    """Write by which command and with which versions a run goes on, and what that changed of its settings."""
    _append(folder, {"kind": "resume", "changed": changed, "command": command(), "versions": versions()})


def _other_tasks(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = [[task["name"] for task in tasks] for tasks in (before, now)]
    if names[0] != names[1]:
        yield f"environments {', '.join(names[1])} (it had {', '.join(names[0])})"
        return
    for old, new in zip(before, now, strict=True):
        for key in sorted({*old["settings"], *new["settings"]}):
            values = old["settings"].get(key), new["settings"].get(key)
            if values[0] != values[1] and not is_secret(key):
                yield f"env.settings.{key} = {values[1]} of {new['name']} (it had {values[0]})"
        if old["rows"] != new["rows"]:
            yield f"the rows of {new['name']} (data.train, data.map, data.limit) or their order are others"


def _changes(old: Settings, new: Settings) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted name, (before, now)) of settings that differ; those of environments count as tasks."""
    before: dict[str, Any] = asdict(old)
    now: dict[str, Any] = asdict(new)
    for section, values in now.items():
        if section == "env":
            if before["env"] != values:
                yield "env", (before["env"], values)
            continue
        for key, value in _flat(values).items():
            earlier = _flat(before[section]).get(key)
            if earlier != value:
                yield f"{section}.{key}", (earlier, value)
        for key, earlier in _flat(before[section]).items():
            if key not in _flat(values):
                yield f"{section}.{key}", (earlier, None)


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """A section with the settings of its part among its own."""
    return {key: value for key, value in section.items() if key != "own"} | section.get("own", {})


def _other_model(old: str, new: str) -> bool:
    """Whether two folders hold other weights; a folder that was moved is the same model."""
    prints = fingerprint(old), fingerprint(new)
    return all(prints) and prints[0] != prints[1]


def _path(folder: RunFolder) -> Path:
    return folder.path / "settings.jsonl"


def _append(folder: RunFolder, row: dict[str, Any]) -> None:
    file = LineFile(_path(folder), "settings")
    try:
        file.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **row})
    finally:
        file.close()
