"""The weights of a run as a Hugging Face folder, wherever the run keeps them.

A run writes `weights/step_N` at its end and when it is stopped; until then, and after a kill, the newest
version is in a checkpoint only. Whoever wants weights gets the newest version of both.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from agentrl.config import loading
from agentrl.errors import ConfigError
from agentrl.storage.checkpoint import checkpoint_folders
from agentrl.storage.durable import whole_folder
from agentrl.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)


def run_weights(run: Path, version: int | None = None) -> Path:
    """The folder of a run's weights; made from a checkpoint where only that has the version.

    Args:
        run: folder of the run.
        version: policy version; None takes the newest.

    Raises:
        ConfigError: the run has no such version; says which it has.
        CheckpointError: the checkpoint cannot be read.
    """
    folder = RunFolder.open(run)
    written = {
        _version(path): path for path in folder.weights.glob("step_*") if (path / "config.json").exists()
    }
    saved = {_version(path): path for path in checkpoint_folders(folder.checkpoints)}
    versions = sorted({*written, *saved})
    if not versions:
        base = loading.load_settings(folder.config).model.path
        raise ConfigError(
            f"{run} has neither weights nor a checkpoint yet; the model that it starts from is {base!r}"
        )
    wanted = versions[-1] if version is None else version
    if wanted in written:
        return written[wanted]
    if wanted not in saved:
        have = ", ".join(map(str, versions))
        raise ConfigError(f"{run} has no weights of version {wanted}; it has the versions {have}")
    return _write(folder, saved[wanted], wanted)


def best_weights(run: Path) -> Path:
    """The folder of the weights with the best held-out score.

    Raises:
        ConfigError: the run keeps none; says why.
    """
    folder = RunFolder.open(run)
    if folder.best_version() is not None:
        return folder.best
    settings = loading.load_settings(folder.config)
    if not (settings.checkpoint.best and settings.eval.every):
        why = "it was not asked to (checkpoint.best, with eval.every and held-out rows)"
    else:
        why = "no version has been measured to be better than the model it began with"
    raise ConfigError(f"{run} keeps no best version: {why}; without --best the newest is exported")


def _version(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _write(folder: RunFolder, checkpoint: Path, version: int) -> Path:
    """Load a checkpoint into a learner of its own, and let it write its weights."""
    from agentrl.learner.learner import Learner

    settings = loading.load_settings(folder.config)
    target = folder.weights / f"step_{version}"
    logger.warning("version %d of %s is in a checkpoint only; writing %s", version, folder.path, target)
    # Neither a reference nor compiled layers nor other ranks: it takes no step.
    one = replace(settings.learner, compile=False, place="thread", ranks=1, sequence_parallel=1)
    learner = Learner(replace(settings.model, device="cpu"), one, seed=settings.run.seed)
    learner.load(checkpoint / "learner")
    with whole_folder(target) as written:
        learner.save_weights(written)
    return target
