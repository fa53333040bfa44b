"""What each step leaves on disk: what its episodes were credited with, light state, values of tokens.

`credit.jsonl` has a line for each step, for good: scores, baselines and advantages of its episodes.
`steps/000007.npz` has what changed of the light state (everything a resumed run needs besides weights and
episodes) and the values of each token that the step learned from; old files are deleted. Both are on disk
before the ledger says that the step was taken. It knows nothing of what the light state holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.errors import DataError
from agentrl.storage import nested
from agentrl.storage.durable import LineFile, read_lines, write_file

FloatArray = NDArray[np.float64]

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValues:
    """What the learner knew of the N tokens that a step learned from: 6 bytes a token, 6 for each of top k.

    They stand in the order of episodes, segments and positions.
    """

    segments: NDArray[np.int32]
    """[S, 2] of every segment of the learned episodes: place of its episode among them, tokens."""
    runs: NDArray[np.int32]
    """[R, 3] tokens that follow each other: row of `segments`, first position, how many."""
    logprobs: NDArray[np.float32]
    """[N] log-probabilities of the weights before the step, nats."""
    entropies: NDArray[np.float16]
    """[N] of the same weights, nats."""
    top_ids: NDArray[np.int32] | None = None
    """[N, k] the likeliest tokens, where `learner.top_k` asks for them."""
    top_logprobs: NDArray[np.float16] | None = None
    """[N, k] and their log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step on B episodes."""

    version: int
    """Of the policy after it."""
    attempt: int
    episode_ids: list[str]
    """[B] in the order of the batch."""
    scores: FloatArray
    """[B]"""
    baselines: FloatArray
    """[B] values of the prompts, read before any of these scores was folded."""
    counts: FloatArray | None = None
    """[B] effective number of scores that each of these values rests on."""
    advantages: FloatArray
    """[B] nan for episodes that were folded but not learned from; where tokens had advantages of their own,
    the mean over the episode's sampled tokens."""
    of_tokens: list[list[NDArray[np.float32]]] | None = None
    """Advantages [T] of each learned episode and segment, where tokens had their own."""
    values: Mapping[str, float]
    """Settings in force during the step that a controller may change."""
    light: nested.Difference
    """What changed of the light state since the step before."""
    progress: dict[str, Any]
    """How far the run is after the step."""
    tokens: TokenValues | None = None
    """Of the learned episodes."""
    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of metrics: a power cut may take it from its own file."""

    @property
    def learned(self) -> list[int]:
        """Places of the episodes that were learned from."""
        return np.flatnonzero(np.isfinite(self.advantages)).tolist()

    def given(self) -> FloatArray | list[list[NDArray[np.float32]]]:
        """The advantages of the learned episodes, as the learner was given them."""
        return self.advantages[self.learned] if self.of_tokens is None else self.of_tokens


class StepFiles:
    """The files of the steps of one run.

    Args:
        folder: of the run.
        keep: newest learned episodes whose values of tokens are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        self._credit, self._folder, self._keep = folder / "credit.jsonl", folder / "steps", keep

    def path(self, version: int) -> Path:
        """The file of the step that led to a version."""
        return self._folder / f"{version:06d}.npz"

    def write(self, record: StepRecord) -> int:
        """Write a step; returns its bytes. The ledger makes it count.

        Raises:
            DiskError: the disk does not take it.
        """
        if not self._keep:
            record = dataclasses.replace(record, tokens=None)
        tokens = record.tokens and _fields(record.tokens)
        data = nested.to_bytes({**_fields(record), "format": FORMAT, "tokens": tokens})
        write_file(self.path(record.version), data, "step")
        file = LineFile(self._credit, "credit")
        try:
            before = file.size
            file.append(
                {
                    "v": record.version,
                    "a": record.attempt,
                    "ks": record.episode_ids,
                    "s": _plain(record.scores),
                    "b": _plain(record.baselines),
                    "A": _plain(record.advantages),
                    **({} if record.counts is None else {"n": _plain(record.counts.round(2))}),
                    **({"c": dict(record.values)} if record.values else {}),
                }
            )
            return len(data) + file.size - before
        finally:
            file.close()

    def read(self, version: int) -> StepRecord:
        """The step that led to a version.

        Raises:
            DataError: its file is missing or damaged.
        """
        path = self.path(version)
        try:
            fields = nested.read(path)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            tokens = fields.pop("tokens")
            return StepRecord(**fields, tokens=tokens and TokenValues(**tokens))
        except Exception as error:  # zlib, zipfile, struct: damaged bytes raise almost anything
            raise DataError(f"{path} is damaged or missing ({type(error).__name__}: {error})") from error

    def delete_old(self, needed: int, batch: int) -> None:
        """Delete the oldest beyond what is kept, but none after version `needed`.

        Args:
            needed: of the oldest checkpoint.
            batch: episodes of a step.
        """
        files = sorted(self._folder.glob("[0-9]*.npz"), reverse=True)
        for path in files[-(-self._keep // batch) :]:
            if int(path.stem) <= needed:
                path.unlink()


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _plain(values: FloatArray) -> list[float | None]:
    """As JSON has them, rounded to seven digits: what is computed with is in the other file."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]


@dataclass(frozen=True, slots=True)
class SegmentValues:
    """What a step used of the T tokens of a segment; nan (-1 for ids) where it did not learn from a token."""

    advantages: NDArray[np.float32]
    """[T]"""
    logprobs: NDArray[np.float32]
    """[T] of the learner before the step, nats."""
    entropies: NDArray[np.float32]
    """[T] of the learner before the step, nats."""
    top_ids: NDArray[np.int32] | None = None
    """[T, k]"""
    top_logprobs: NDArray[np.float32] | None = None
    """[T, k]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedEpisode:
    """What a step made of an episode."""

    episode_id: str
    version: int
    """Of the policy after the step."""
    score: float
    baseline: float
    advantage: float | None
    """The mean over its tokens where each had its own; None where it was not learned from."""
    segments: list[SegmentValues] | None = None
    """In the order of the episode's own; None where they are not kept any more."""


def read_credit(folder: Path | str) -> list[dict[str, Any]]:
    """What each step of a run credited its episodes with, oldest first.

    Each has `version`, `attempt`, the lists `episode_ids`, `scores`, `baselines`, `advantages` and
    `counts` (the effective number of scores that a baseline rests on), and `controlled`, the
    values in force of settings that a controller steers.
    """
    names = {"v": "version", "a": "attempt", "ks": "episode_ids", "s": "scores", "b": "baselines"}
    rows: dict[int, dict[str, Any]] = {}
    for line in read_lines(Path(folder) / "credit.jsonl", skip_damaged=True):
        rows[line["v"]] = {
            {**names, "A": "advantages", "c": "controlled", "n": "counts"}[name]: value
            for name, value in line.items()
        }
    return [rows[version] for version in sorted(rows)]  # of a step that was done again, the last


def read_learned(folder: Path | str, episode_id: str) -> LearnedEpisode:
    """What a run's learner made of an episode: its advantage, and the values of its tokens while kept.

    Args:
        folder: of the run.
        episode_id: as the recorded episode has it.

    Raises:
        DataError: no step learned from it (yet).
    """
    folder = Path(folder)
    for row in reversed(read_credit(folder)):
        if episode_id in row["episode_ids"]:
            break
    else:
        raise DataError(f"no step of {folder} was made of episode {episode_id!r} (yet)")
    place, files = row["episode_ids"].index(episode_id), StepFiles(folder)
    segments = None
    if row["advantages"][place] is not None and files.path(row["version"]).exists():
        segments = segment_values(files.read(row["version"]), place)
    return LearnedEpisode(
        episode_id=episode_id,
        version=row["version"],
        score=row["scores"][place],
        baseline=row["baselines"][place],
        advantage=row["advantages"][place],
        segments=segments,
    )


def segment_values(record: StepRecord, place: int) -> list[SegmentValues] | None:
    """Values of the tokens of the episode at a place of the batch; None where none were kept."""
    tokens = record.tokens
    if tokens is None:
        return None
    member = record.learned.index(place)
    ends = np.cumsum(tokens.runs[:, 2])
    result: list[SegmentValues] = []
    for number, segment in enumerate(np.flatnonzero(tokens.segments[:, 0] == member)):
        runs = np.flatnonzero(tokens.runs[:, 0] == segment)
        at = [np.arange(first, first + count) for _, first, count in tokens.runs[runs]]
        of = [np.arange(ends[run] - tokens.runs[run, 2], ends[run]) for run in runs]
        positions, values = (np.concatenate([*some, np.zeros(0, int)]) for some in (at, of))
        given = record.advantages[place] if record.of_tokens is None else record.of_tokens[member][number]
        size = int(tokens.segments[segment, 1])
        result.append(_spread(tokens, positions, values, np.broadcast_to(given, size)))
    return result


def _spread(
    tokens: TokenValues, positions: NDArray[np.int64], values: NDArray[np.int64], advantages: NDArray[Any]
) -> SegmentValues:
    """Values of tokens at their positions in a segment of T tokens."""

    def fill(given: NDArray[Any], nothing: float, dtype: type) -> NDArray[Any]:
        array = np.full((len(advantages), *given.shape[1:]), nothing, dtype=dtype)
        array[positions] = given
        return array

    top_ids, top_logprobs = tokens.top_ids, tokens.top_logprobs
    return SegmentValues(
        advantages=fill(advantages[positions], np.nan, np.float32),
        logprobs=fill(tokens.logprobs[values], np.nan, np.float32),
        entropies=fill(tokens.entropies[values], np.nan, np.float32),
        top_ids=None if top_ids is None else fill(top_ids[values], -1, np.int32),
        top_logprobs=None if top_logprobs is None else fill(top_logprobs[values], np.nan, np.float32),
    )
