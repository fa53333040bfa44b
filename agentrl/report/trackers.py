"""Sends a run's numbers to tracking services: wandb, trackio, tensorboard, mlflow (`run.trackers`).

A tracker is a listener of `metrics.jsonl`: what it gets is in that file too. A resumed run goes on under the
same id. A service that fails is told once and left out from then on; it never ends a run. No package is
imported unless it is named.
"""

from __future__ import annotations

import importlib
import logging
import math
import queue
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from agentrl.config.secrets import without_secrets
from agentrl.errors import ConfigError
from agentrl.report.record_files import newest_records
from agentrl.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

LIMIT_S = 60.0
"""Longest wait for a service to start, and to take the last rows."""
TABLE_EVERY = 10
"""Steps between two tables of episodes."""
TABLE_ROWS = 8
COLUMNS = ("episode", "prompt", "reward", "stop", "conversation")
TEXT = 4000
"""Characters of a conversation in a table."""


class Service(Protocol):
    """What a tracking service can do."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take numbers of a step."""

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Take sampled episodes, rows of `COLUMNS`."""

    def close(self) -> None:
        """Flush and end; the run can go on later."""


class Tracker:
    """A listener that hands rows of metrics to a service, on a thread of its own.

    Listeners are told in the event loop of the run, and services speak over networks: neither a slow nor a
    silent one may hold up episodes. (mlflow also keeps its current run by thread.)

    Args:
        name: of the service, as in `run.trackers`.
        folder: of the run; its id names the run at the service too.
        project: where the service files it.
        limit_s: longest wait for the service to start, and to end.

    Raises:
        ConfigError: the package is not installed, or does not start.
    """

    def __init__(self, name: str, folder: RunFolder, project: str, limit_s: float = LIMIT_S) -> None:
        self._name, self._folder, self._project, self._limit_s = name, folder, project, limit_s
        self._rows: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(started,), name=f"agentrl-tracker-{name}", daemon=True
        )
        self._thread.start()
        try:
            started.result(limit_s)
        except ModuleNotFoundError as error:
            raise ConfigError(f"run.trackers names {name!r}: pip install {PACKAGES[name]}") from error
        except TimeoutError as error:
            raise ConfigError(
                f"the tracker {name!r} did not start within {limit_s:g} s: is its server reachable? leave it "
                "out of run.trackers to go on without it"
            ) from error
        except Exception as error:
            raise ConfigError(f"the tracker {name!r} does not start: {error}") from error

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Send one row; returns at once."""
        if row.get("kind") in ("step", "eval") and row.get("version") is not None:
            self._rows.put(dict(row))

    def close(self) -> None:
        """Send what is left and end; idempotent."""
        if self._thread.is_alive():
            self._rows.put(None)
            self._thread.join(self._limit_s)
            if self._thread.is_alive():
                logger.warning(
                    "the tracker %s did not take the last rows within %g s; metrics.jsonl has them all",
                    self._name,
                    self._limit_s,
                )

    def _work(self, started: Future[None]) -> None:
        try:
            service = SERVICES[self._name](self._folder, self._project, public_settings(self._folder.config))
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while (row := self._rows.get()) is not None:
                self._send(service, row)
        except Exception as error:  # whatever a service does, the run goes on
            logger.warning("the tracker %s failed and is left out from now on: %r", self._name, error)
            return
        try:
            service.close()
        except Exception as error:  # the run is over and on disk
            logger.warning("the tracker %s did not close: %r", self._name, error)

    def _send(self, service: Service, row: Mapping[str, Any]) -> None:
        kind, step = row["kind"], row["version"]
        service.log(step, numbers_of(row, "train" if kind == "step" else "eval"))
        if kind == "eval" or step % TABLE_EVERY == 0:
            service.table(step, episode_rows(self._folder.episodes))


def numbers_of(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Finite numbers of a row as `train/loss`, nested ones as `train/environments/sums/score_mean`."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}/{name}"] = value
    return found


def public_settings(path: Path) -> dict[str, Any]:
    """The settings of a run without secrets."""
    try:
        return without_secrets(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def episode_rows(folder: Path) -> list[list[Any]]:
    """The newest recorded episodes as rows of `COLUMNS`."""
    rows: list[list[Any]] = []
    for record in newest_records(folder, TABLE_ROWS):
        said = [part for turn in record.get("turns") or [] for part in _lines(turn)]
        row = [record.get(name) for name in ("episode_id", "prompt_id", "reward", "stop_reason")]
        rows.append([*row, "\n".join(said)[:TEXT]])
    return rows


def _lines(turn: Mapping[str, Any]) -> list[str]:
    results = [f"[{call[0]}] {call[2]}" for call in turn.get("tool_calls") or []]
    return [str(turn.get("text") or ""), *results]


class Wandb:
    """Weights & Biases; `WANDB_MODE=offline` writes files only."""

    def __init__(self, folder: RunFolder, project: str, settings: dict[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        identity = folder.identity["run_id"]
        self._run = self._wandb.init(
            project=project,
            id=identity,
            name=folder.name,
            resume="allow",
            config=settings,
            dir=str(folder.path),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Service`; a step of its own, because steps done again go back."""
        self._run.log({**numbers, "version": step})

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """See `Service`."""
        table = self._wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._run.log({"episodes": table, "version": step})

    def close(self) -> None:
        """See `Service`."""
        self._run.finish()


class Trackio:
    """trackio: local, with the interface of wandb; `trackio show` opens it."""

    def __init__(self, folder: RunFolder, project: str, settings: dict[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        name = f"{folder.name}-{folder.identity['run_id']}"
        self._trackio.init(project=project, name=name, resume="allow", config=settings, embed=False)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Service`."""
        self._trackio.log(dict(numbers), step=step)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """See `Service`."""
        table = self._trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._trackio.log({"episodes": table}, step=step)

    def close(self) -> None:
        """See `Service`."""
        self._trackio.finish()


class Tensorboard:
    """Event files in `tensorboard/` of the run."""

    def __init__(self, folder: RunFolder, project: str, settings: dict[str, Any]) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._tensor = importlib.import_module("tensorboard.compat.proto.tensor_pb2").TensorProto
        self._writer = writer.EventFileWriter(str(folder.path / "tensorboard"))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Service`."""
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add(step, values)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """See `Service`; as text, one episode after the other."""
        texts = [f"{row[0]} ({row[1]}), reward {row[2]}, {row[3]}\n\n{row[4]}".encode() for row in rows]
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor(dtype=7, string_val=texts)  # 7: DT_STRING
        tensor.tensor_shape.dim.add(size=len(texts))
        metadata = self._summary.SummaryMetadata(plugin_data=plugin)
        self._add(step, [self._summary.Summary.Value(tag="episodes", metadata=metadata, tensor=tensor)])

    def _add(self, step: int, values: Sequence[Any]) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=self._summary.Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """See `Service`."""
        self._writer.close()


class Mlflow:
    """MLflow, at `MLFLOW_TRACKING_URI`."""

    def __init__(self, folder: RunFolder, project: str, settings: dict[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        identity = folder.identity["run_id"]
        self._mlflow.set_experiment(project)
        found = self._mlflow.search_runs(
            filter_string=f"tags.agentrl_run = '{identity}'", output_format="list", max_results=1
        )
        if found:
            self._mlflow.start_run(run_id=found[0].info.run_id)
        else:
            self._mlflow.start_run(run_name=folder.name, tags={"agentrl_run": identity})
            self._mlflow.log_dict(settings, "settings.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Service`."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """See `Service`."""
        columns = {name: [str(row[at]) for row in rows] for at, name in enumerate(COLUMNS)}
        if rows:
            self._mlflow.log_table(columns, f"episodes/step_{step:06d}.json")

    def close(self) -> None:
        """See `Service`."""
        self._mlflow.end_run()


SERVICES: dict[str, Callable[[RunFolder, str, dict[str, Any]], Service]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": Tensorboard,
    "mlflow": Mlflow,
}
PACKAGES = {name: name for name in SERVICES}
