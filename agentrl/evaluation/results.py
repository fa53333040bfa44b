"""One record per episode of an evaluation, and the folder they are kept in.

::

    results.jsonl    one line per episode, appended as they finish; a killed evaluation goes on from it
    rows.jsonl       the rows as they were played: what scoring again, tables by column and exports need
    eval.json        what is evaluated and how, written first: a resumed evaluation must agree with it
    summary.json     the table, and everything needed to repeat it, written last

Knows nothing of policies and environments.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.episode import Episode
from agentrl.errors import ConfigError, DataError
from agentrl.storage.durable import LineFile, read_lines, write_file
from agentrl_envs import prompt_id
from agentrl_envs.plain import write_json

REFUSED = "RequestRefused"
"""Name of the failure of an episode whose endpoint declined to answer: asked again, it would again."""
SAME_SEED_ATTEMPTS = 2
"""Attempts of an episode with its own seed; a further one has another."""
_FENCE = re.compile(r"```(?:python|py)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one episode."""

    problem: str
    """Key of the row."""
    draw: int
    """Which of the k episodes of its problem, from 0."""
    seed: int
    score: float | None
    """Reward mapped to [0, 1]; None exactly when the episode failed."""
    reward: float | None
    reward_range: tuple[float, float]
    verdict: str | None
    stated: str | None
    """The answer it voted for; None abstains."""
    gold: str | tuple[str, ...] | None
    """The gold answer, or several of which any will do."""
    strict: bool | None
    """Right by the rule published with SPO (exact text of the last box); None without a gold answer."""
    stop_reason: str
    truncated: bool
    failure: tuple[str, str, str] | None
    """Boundary, error and message."""
    turns: int
    tool_calls: int
    tool_errors: int
    sampled_tokens: int
    prompt_tokens: int
    """Tokens read, over all requests of the episode."""
    seconds: float
    tool_seconds: float
    confidence: float | None
    """Mean log-probability of the sampled tokens, nats; None where the policy gives none."""
    cost: float
    attempts: int
    """Times it was played; more than 1 after infrastructure failures."""
    version: int
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    transcript: tuple[Mapping[str, Any], ...] = ()
    lenient: bool | None = None
    """Right when the answer may also stand outside of a box; None where that was not looked at."""
    answer: str | None = None
    """The text that was graded where it is not the last message."""
    fenced: bool = False
    """Python stands in a plain code fence, and no tool was called."""
    judge: Mapping[str, Any] | None = None
    """What a judge said: its verdict, and the grader's before it."""

    @property
    def key(self) -> tuple[str, int]:
        """Problem and draw."""
        return self.problem, self.draw

    @property
    def failed(self) -> bool:
        """Whether infrastructure failed: not an answer, neither right nor wrong."""
        return self.failure is not None

    @property
    def refused(self) -> bool:
        """Whether it failed because the endpoint declined: a filter, or a refusal of its own."""
        return self.failure is not None and self.failure[1] == REFUSED

    @property
    def resampled(self) -> bool:
        """Whether its own seed failed again and again, so that it was played with another."""
        return self.attempts > SAME_SEED_ATTEMPTS and not self.failed

    @property
    def final_text(self) -> str | None:
        """The text that is graded; None where none was kept."""
        if self.answer is not None:
            return self.answer
        if self.transcript:
            return str(self.transcript[-1]["text"])
        return None if self.stated is None else f"\\boxed{{{self.stated}}}"

    @property
    def right(self) -> bool:
        """Whether it got the full reward."""
        return self.score is not None and self.score >= 1.0 - 1e-9

    def to_json(self) -> dict[str, Any]:
        """The form on disk."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "right": None if self.failed else self.right
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read the form on disk.

        Raises:
            DataError: fields are missing.
        """
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise DataError(f"a line of results.jsonl has no {', '.join(sorted(missing))}")
        values = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        values["gold"] = tuple(data["gold"]) if isinstance(data["gold"], list) else data["gold"]
        values["reward_range"] = tuple(values["reward_range"])
        values["failure"] = None if values["failure"] is None else tuple(values["failure"])
        values["transcript"] = tuple(values["transcript"])
        return cls(**values)


_REQUIRED = tuple(
    f.name
    for f in dataclasses.fields(Record)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
)


def golds_of(row: Mapping[str, Any]) -> str | tuple[str, ...] | None:
    """The gold answer of a row as text, or its several ones; None where it has none of these."""
    gold = row.get("answer")
    if isinstance(gold, list | tuple) and gold and all(isinstance(one, str | int | float) for one in gold):
        return tuple(str(one) for one in gold)
    return str(gold) if isinstance(gold, str | int | float) and not isinstance(gold, bool) else None


def make_record(
    episode: Episode,
    *,
    draw: int,
    seed: int,
    attempts: int,
    stated: str | None,
    gold: str | tuple[str, ...] | None,
    strict: bool | None,
    tools: bool = False,
    reasoning: Sequence[str] = (),
    prompt_tokens: int | None = None,
    sampled_tokens: int | None = None,
    cost: float = 0.0,
    keep_text: bool = True,
) -> Record:
    """The record of an episode.

    `tools`: whether it had any. `reasoning`: of each turn, where it came apart from the text. Counts of
    tokens default to those of its segments.
    """
    calls = episode.tool_calls
    failure = episode.failure
    return Record(
        problem=episode.prompt_id,
        draw=draw,
        seed=seed,
        score=None if failure is not None else episode.score,
        reward=episode.reward,
        reward_range=episode.reward_range,
        verdict=episode.verdict,
        stated=stated,
        gold=gold,
        strict=None if failure is not None else strict,
        stop_reason=episode.stop_reason.value,
        truncated=episode.stop_reason.truncated,
        failure=None if failure is None else (failure.boundary, failure.error, failure.message),
        turns=len(episode.turns),
        tool_calls=len(calls),
        tool_errors=sum(not call.ok for call in calls),
        sampled_tokens=episode.num_sampled if sampled_tokens is None else sampled_tokens,
        prompt_tokens=sum(turn.start for turn in episode.turns) if prompt_tokens is None else prompt_tokens,
        seconds=round(episode.seconds, 4),
        tool_seconds=round(episode.tool_seconds, 4),
        confidence=_confidence(episode),
        cost=cost,
        attempts=attempts,
        version=episode.first_version,
        parts=dict(episode.reward_parts),
        transcript=_transcript(episode, reasoning) if keep_text else (),
        answer=episode.answer if episode.turns and episode.answer != episode.turns[-1].text else None,
        fenced=tools and not calls and any(_FENCE.search(turn.text) for turn in episode.turns),
    )


def _confidence(episode: Episode) -> float | None:
    logprobs = [
        logprob
        for segment in episode.segments
        for logprob, mask in zip(segment.logprobs, segment.loss_mask, strict=True)
        if mask
    ]
    return sum(logprobs) / len(logprobs) if logprobs else None


def _transcript(episode: Episode, reasoning: Sequence[str]) -> tuple[dict[str, Any], ...]:
    thoughts = [{"reasoning": thought} if thought else {} for thought in reasoning]
    thoughts += [{}] * (len(episode.turns) - len(thoughts))
    return tuple(
        thought
        | {
            "text": turn.text,
            "tool_calls": [
                {"name": c.name, "arguments": c.arguments, "result": c.result, "status": c.status}
                for c in turn.tool_calls
            ],
        }
        for turn, thought in zip(episode.turns, thoughts, strict=False)
    )


class ResultFolder:
    """The files of one evaluation, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"another process evaluates into {path}") from error
        self._file: LineFile | None = None

    def open(self, plan: Mapping[str, Any], *, retry_failures: bool = False) -> list[Record]:
        """Begin, or go on: the records that are there already.

        Args:
            plan: what is evaluated and how; must equal that of an earlier attempt.
            retry_failures: plays episodes again whose infrastructure failed.

        Raises:
            ConfigError: the folder holds another evaluation.
        """
        plan_file = self.path / "eval.json"
        plan = json.loads(json.dumps(plan))
        if plan_file.exists():
            self._compare(read_plan(self.path), plan)
        else:
            write_file(plan_file, json.dumps(plan, indent=2).encode(), "eval")
        self._file = LineFile(self.path / "results.jsonl", "results")
        records = read_records(self.path)
        return [r for r in records if not r.failed] if retry_failures else records

    def _compare(self, before: Any, now: Any) -> None:
        before.get("policy", {}).pop("url", None)  # where an endpoint stands is not what it is
        different = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{self.path} holds another evaluation: its {key} is {before.get(key)!r}, now it is "
                f"{now.get(key)!r}; give another --out, or the same settings to go on"
            )

    def keep_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows that are played, beside those of an earlier attempt."""
        known = {prompt_id(row): row for row in [*read_rows(self.path), *rows]}
        lines = "".join(
            write_json({**row, "id": key}, ensure_ascii=False) + "\n" for key, row in known.items()
        )
        write_file(self.path / "rows.jsonl", lines.encode(), "rows")

    def append(self, record: Record) -> None:
        """Keep one record; survives a kill from here on."""
        assert self._file is not None
        self._file.append(record.to_json())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the table."""
        write_file(self.path / "summary.json", write_json(summary, indent=2).encode(), "summary")

    def close(self) -> None:
        """Let others in; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()


def task_folders(path: Path) -> list[Path]:
    """The folder of an evaluation, or, of a folder of several tasks, those of its tasks."""
    tasks = [] if (path / "results.jsonl").exists() else sorted(path.glob("*/results.jsonl"))
    return [file.parent for file in tasks] or [path]


def read_records(path: Path) -> list[Record]:
    """Records of an evaluation, one per problem and draw: the last one written.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    file = path / "results.jsonl" if path.is_dir() else path
    if not file.is_file():
        several = sorted(one.parent.name for one in path.glob("*/results.jsonl"))
        hint = f"it holds those of several tasks: {', '.join(several)}" if several else ""
        hint = hint or "`agentrl eval --out` writes one"
        raise DataError(f"{path} holds no evaluation (no results.jsonl); {hint}")
    records: dict[tuple[str, int], Record] = {}
    try:
        for data in read_lines(file):
            record = Record.from_json(data)
            records[record.key] = record
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    return list(records.values())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an evaluation; none where it was made before they were kept."""
    file = path / "rows.jsonl"
    return [dict(row) for row in read_lines(file)] if file.is_file() else []


def read_plan(path: Path) -> dict[str, Any]:
    """What was evaluated and how.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    file = path / "eval.json"
    if not file.is_file():
        raise DataError(f"{path} holds no evaluation (no eval.json); `agentrl eval --out` writes one")
    try:
        plan = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}): evaluate anew with another --out") from error
    if not isinstance(plan, dict):
        raise DataError(f"{file} is damaged (it holds no object): evaluate anew with another --out")
    return plan


def read_summary(path: Path) -> dict[str, Any]:
    """Summary of an evaluation; empty where it has none yet (it is written last)."""
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        return {}  # a power cut left half of it
    return summary if isinstance(summary, dict) else {}


def by_problem(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each problem in order of their draws, failures included; problems in the order given."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.problem, []).append(record)
    return {problem: sorted(rows, key=lambda r: r.draw) for problem, rows in found.items()}
