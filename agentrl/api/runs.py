"""Training from Python: `train`, `resume`, `replay`, and the run that they give back.

All of them block until they are done, in a notebook too, where the interrupt button ends a run cleanly: it
raises `Interrupted`, and `resume` goes on.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.api import keywords
from agentrl.config import loading
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError
from agentrl.storage.metrics import Listener, read_metrics
from agentrl.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from agentrl.algorithms.value_tracker import ValueTracker
    from agentrl.api.episodes import ReadableEpisode
    from agentrl_envs import Env


def load_settings(what: Settings | type[Env] | Path | str | None = None, /, **given: Any) -> Settings:
    """Settings of a run: from a file or an environment, and keywords.

    Args:
        what: a settings file (.toml); or an environment (a class, a file, a registered name); or settings.
        given: `model`, `data`, `eval_data`, `steps`, `name`, `seed` and the other short names of
            `agentrl.config.short_names`; a section with a mapping, `learner={"learning_rate": 1e-5}`; a part,
            `loss=MyLoss`; or any dotted name, `**{"learner.learning_rate": 1e-5}`.

    Raises:
        ConfigError: with every mistake found, and the nearest known name.

    Example:
        >>> settings = load_settings("arithmetic", model="models/demo", steps=2, stream={"batch": 8})
        >>> settings.run.steps, settings.stream.batch, settings.env[0].name
        (2, 8, 'arithmetic')
        >>> load_settings(learner={"learning_rat": 1e-5})
        Traceback (most recent call last):
        agentrl.errors.ConfigError: the settings have a mistake:
          learner.learning_rat: unknown setting 'learner.learning_rat'; did you mean 'learner.learning_rate'?
    """
    return keywords.settings_of(what, given)[0]


def train(
    what: Settings | type[Env] | Path | str | None = None,
    /,
    *,
    listeners: Sequence[Listener] = (),
    quiet: bool = False,
    **given: Any,
) -> Run:
    """Train a model, and return the run.

    Args:
        what: a settings file (.toml); or an environment (a class, a file, a registered name); or settings. Of
            an environment, what is not said is chosen for this machine, as by `agentrl train`: it is printed,
            and written into the run's `config.toml`. A file and settings are taken as they are.
        listeners: functions that are told every row of metrics; they run in the event loop of the run.
        quiet: shows no progress.
        given: as for `load_settings`: `model`, `data` (a file, a name, or a list of rows), `steps`, ...,
            sections, and parts that are handed in ready made: `estimator`, `loss`, `policy`, ...

    Raises:
        ConfigError: settings, model or data cannot be used; nothing was started.
        Interrupted: Ctrl-C, or the interrupt button; `resume` goes on.
        AgentRLError: something could not go on.

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             directory="runs", name="first", quiet=True)
        >>> run.folder.name, run.version, run.summary["episodes"]
        ('first', 1, 8)
    """
    from agentrl.report.terminal import progress
    from agentrl.training import train as training
    from agentrl.training.parts import Options

    settings, said = keywords.settings_of(what, given)
    with progress(quiet=quiet) as live:
        told = Options(listeners=(live.row, *listeners), on_ready=live.line, said=said)
        summary = training.train(settings, told)
    return Run(Path(settings.run.directory) / summary["name"])


def resume(
    folder: PathLike[str] | str,
    /,
    *,
    listeners: Sequence[Listener] = (),
    quiet: bool = False,
    forgive: bool = False,
    **given: Any,
) -> Run:
    """Go on with a run that was stopped, killed or is to take more steps.

    Args:
        folder: of the run.
        listeners, quiet: as for `train`.
        forgive: draw prompts again that were set aside after failures.
        given: settings to change, as for `load_settings`; and the environment and the parts that were handed
            in ready made, where this process does not know them: `resume(folder, env=MyEnv)`.

    Raises:
        ConfigError: there is no run, it is running, or the settings would change what its values mean.
        Interrupted: it was stopped once more.

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             name="resumed", quiet=True)
        >>> resume(run, steps=2, quiet=True).version
        2
    """
    from agentrl.report.terminal import progress
    from agentrl.training import train as training
    from agentrl.training.parts import Options

    path = Path(folder)
    values = keywords.values_of(given, recorded_names(path))
    with progress(quiet=quiet) as live:
        told = Options(listeners=(live.row, *listeners), on_ready=live.line, forgive=forgive)
        training.resume(path, (), told, values)
    return Run(path)


def replay(folder: PathLike[str] | str, weights: Path | str | None = None, /, **given: Any) -> Replayed:
    """Learn again from what a run recorded: same batches, same order, a fresh learner; nothing is played.

    Args:
        folder: of the run.
        weights: folder for the weights that come out; None takes `replayed` in the folder of the run.
        given: the environment and the parts that were handed in ready made, as for `resume`.

    Raises:
        ConfigError: there is no run, or it is running.
        DataError: an episode that was learned from is not kept any more (`run.episodes_kept`).

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             name="replayed", quiet=True)
        >>> replay(run).same
        True
    """
    from agentrl.training import replay as training

    path = Path(folder)
    values = keywords.values_of(given, recorded_names(path))
    target = path / "replayed" if weights is None else Path(weights)
    return Replayed(path, target, training.replay(path, target, values=values))


def recorded_names(path: Path) -> dict[str, str]:
    """What the settings of a run name, by dotted name: environments and parts are among them."""
    config = RunFolder.open(path).config
    try:
        table = tomllib.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {config}: {error}") from error
    envs = table.pop("env", [])
    names = {key: value for key, value in keywords.tables_of(table).items() if isinstance(value, str)}
    return names | {"env.name": envs[0]["name"]} if len(envs) == 1 else names


class Run:
    """A run on disk: what it came to, its metrics, its episodes.

    Args:
        folder: of the run.

    Raises:
        ConfigError: there is no run in it.

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             name="looked-at", quiet=True)
        >>> again = Run("runs/looked-at")
        >>> [row["step"] for row in again.metrics if row["kind"] == "step"], len(list(again.episodes()))
        ([1], 8)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files = RunFolder.open(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, version {self.version} of {self.settings.run.steps})"

    @cached_property
    def settings(self) -> Settings:
        """The settings in force."""
        return loading.load_settings(self._files.config)

    @property
    def summary(self) -> Mapping[str, Any]:
        """Totals, as `summary.json` has them; empty before the first attempt has ended."""
        return json.loads(self._files.summary.read_text()) if self._files.summary.exists() else {}

    @property
    def version(self) -> int:
        """Policy versions that were learned."""
        return self.summary.get("policy_versions", 0)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics, in order; `kind` says what a row is: `step`, `eval`, ..."""
        return read_metrics(self._files.metrics) if self._files.metrics.exists() else []

    @property
    def weights(self) -> Path:
        """A Hugging Face folder with the newest weights."""
        from agentrl.inference.run_weights import run_weights

        return run_weights(self.folder)

    @property
    def best(self) -> Path | None:
        """A Hugging Face folder with the weights of the best held-out score; None where none are kept."""
        return self._files.best if self._files.best_version() is not None else None

    @property
    def report(self) -> Path:
        """The page of the run, one file."""
        return self._files.report

    def episodes(self) -> Iterator[ReadableEpisode]:
        """The recorded episodes, in order of their end."""
        from agentrl.api.episodes import episodes

        return episodes(self.folder)


class Replayed:
    """What came out of a replay.

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             name="played-again", quiet=True)
        >>> replayed = replay(run, "weights")
        >>> replayed.same, sorted(path.name for path in replayed.weights.iterdir())[:1]
        (True, ['config.json'])
    """

    def __init__(self, run: Path, weights: Path, tracker: ValueTracker) -> None:
        self._run = run
        self.weights = weights
        """Folder of the weights."""
        self.tracker = tracker
        """The values of the prompts."""

    def __repr__(self) -> str:
        return (
            f"Replayed({str(self.weights)!r}, {'the same as' if self.same else 'other than'} the run's own)"
        )

    @property
    def same(self) -> bool:
        """Whether the weights equal the run's own newest ones, bit for bit."""
        from agentrl.inference.run_weights import run_weights
        from agentrl.weights.fingerprint import fingerprint

        return fingerprint(str(self.weights)) == fingerprint(str(run_weights(self._run)))
