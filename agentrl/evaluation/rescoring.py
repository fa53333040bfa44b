"""Scores stored results again, with another grader, a tolerance or a judge; nothing is sampled.

The environment's reward is asked anew with the text that was graded, so partial credit and graders of one's
own come out as in an evaluation. Knows nothing of policies.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agentrl.cluster import event_loop
from agentrl.config.ranges import Share
from agentrl.errors import ConfigError, DataError
from agentrl.evaluation.results import (
    Record,
    ResultFolder,
    golds_of,
    read_plan,
    read_records,
    read_rows,
    read_summary,
)
from agentrl.evaluation.run import equivalence_of
from agentrl.evaluation.scoring import Scoring, open_judge
from agentrl.evaluation.settings import JudgeSettings
from agentrl.evaluation.summary import effort, summarise
from agentrl.evaluation.task import column_labels, make_grader
from agentrl.tasks.datasets import load_data_set
from agentrl_envs import (
    Env,
    EnvError,
    Grader,
    ToolCall,
    ToolResult,
    Transcript,
    asks_grader,
    last_answer,
    load_env,
    prompt_id,
)

AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class RescoreSettings:
    """`[eval]`: how stored answers are scored again."""

    grader: str = ""
    """`equivalence`, `strict` or `file.py:function`; empty takes the one they were scored with."""
    tolerance: Share | None = None
    """Relative difference up to which numbers are equal; by default the one they were scored with."""
    conventions: dict[str, object] = field(default_factory=dict)
    """How answers of this data set are read."""
    by: tuple[str, ...] = ()
    """Columns by whose values accuracy is broken down."""
    votes: Literal["equivalence", "canonical", "text", "none"] = "equivalence"
    """Which answers count as one in a vote."""
    out: str = ""
    """Folder of the new results."""


@dataclass(frozen=True, slots=True)
class RescoreEnvSettings:
    """`[env]`: whose reward is asked."""

    name: str = ""
    """Another environment; empty takes the one they were played in."""


@dataclass(frozen=True, slots=True)
class Rescoring:
    """How stored results are scored again."""

    eval: RescoreSettings = field(default_factory=RescoreSettings)
    env: RescoreEnvSettings = field(default_factory=RescoreEnvSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)


@dataclass(frozen=True, slots=True)
class Stored:
    """The files of an evaluation."""

    records: list[Record]
    rows: dict[str, Mapping[str, Any]]
    plan: Mapping[str, Any]
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Stored:
        """Read them; rows that an older evaluation did not keep come from its data again.

        Raises:
            DataError: the folder holds no evaluation, or its rows cannot be found.
        """
        records, plan, summary = read_records(folder), read_plan(folder), read_summary(folder)
        rows = read_rows(folder) or load_data_set(str(plan.get("data")), columns=plan.get("data_map")).rows
        known = {prompt_id(row): row for row in rows}
        place = {problem: index for index, problem in enumerate(known)}
        missing = next((record.problem for record in records if record.problem not in known), None)
        if missing is not None:
            raise DataError(f"{folder}: no row has the id {missing!r} of a result")
        records = sorted(records, key=lambda record: (place[record.problem], record.draw))
        return cls(records, known, plan, summary)


def rescore(folder: Path, out: Path, options: Rescoring) -> dict[str, Any]:
    """Score the results of a folder again, write them to another one, and return its summary.

    Raises:
        ConfigError, DataError: the folder, the grader or the environment cannot be used.
    """
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out} is the folder that is scored again; give another")
    stored, scoring = Stored.read(folder), options.eval
    plan = dict(stored.plan)
    name = scoring.grader or plan.get("grader", "equivalence")
    tolerance = plan.get("tolerance", 0.0) if scoring.tolerance is None else scoring.tolerance
    env_name = options.env.name or plan["environment"]
    try:
        env = load_env(env_name)
    except EnvError as error:
        raise ConfigError(f"--env {env_name}: {error}") from error
    regraded = scoring.grader or scoring.tolerance is not None or scoring.conventions
    if regraded and not asks_grader(env):
        env = _against_gold(env, stored)
    conventions = plan.get("conventions", {}) | scoring.conventions
    grader = make_grader(name, tolerance, conventions, choices=bool(plan.get("choices")))
    about = {
        "rescored_from": str(folder),
        "grader": name,
        "tolerance": tolerance,
        "conventions": conventions,
        "judge": options.judge.model or None,
    }
    try:
        return event_loop.run(_rescore(options, out, stored, env, grader, plan | about))
    finally:
        grader.close()


def _against_gold(env: type[Env], stored: Stored) -> type[Env]:
    """An environment without a grader of its own, whose answers the grader compares with the gold ones.

    Raises:
        ConfigError: a row has none.
    """
    without = next((key for key, row in stored.rows.items() if golds_of(row) is None), None)
    if without is not None:
        raise ConfigError(
            f"{env.__name__}.reward asks no grader (self.grade), and the row {without!r} has no gold answer "
            "(`answer`) to compare with"
        )

    def reward(self: Env, row: Mapping[str, Any], answer: str | None) -> Any:
        return self.grade(answer, row["answer"])

    return type(env.__name__, (env,), {"reward": reward, "reward_range": (0.0, 1.0)})


def report(folder: Path, by: Sequence[str] = ()) -> dict[str, Any]:
    """The summary of a folder, its table made anew from the results, by columns of its rows.

    Raises:
        DataError: the folder holds no evaluation, or its rows have no such column.
    """
    stored = Stored.read(folder)
    rows = list(stored.rows.values())
    table = event_loop.run(
        summarise(stored.records, None, {column: column_labels(rows, column) for column in by})
    )
    # Votes are counted by the grader, which is not asked here.
    table = stored.summary.get("table", {}) | table
    unfinished = {"samples": max(record.draw for record in stored.records) + 1, "complete": False}
    finished = {
        "wall_s": 0.0,
        "effort": effort(stored.records),
        **unfinished,
        **stored.plan,
        **stored.summary,
    }
    return finished | {"table": table}


async def _rescore(
    options: Rescoring, out: Path, stored: Stored, env: type[Env], grader: Grader, plan: dict[str, Any]
) -> dict[str, Any]:
    slots = asyncio.Semaphore(AT_ONCE)
    settings = plan.get("environment_settings", {}) if not options.env.name else {}
    folder = ResultFolder(out)
    try:
        if folder.open(plan):
            raise ConfigError(f"{out} holds results already; give another --out")
        folder.keep_rows(stored.rows.values())
        async with open_judge(options.judge, AT_ONCE) as judge:
            scoring = Scoring(grader, judge)

            async def again(record: Record) -> Record:
                async with slots:
                    row = stored.rows[record.problem]
                    scored = await _scored(record, row, env, settings, grader, plan)
                    return await scoring(scored, row, scored.final_text)

            records = await asyncio.gather(*(again(record) for record in stored.records))
        for record in records:
            folder.append(record)
        labels = {column: column_labels(list(stored.rows.values()), column) for column in options.eval.by}
        equivalence = None if options.eval.votes == "none" else equivalence_of(grader, options.eval.votes)
        summary = {
            **stored.summary,
            **plan,
            "table": await summarise(records, equivalence, labels),
            "effort": effort(records),
            "rescored": _changes(stored.records, records),
        }
        folder.write_summary(summary)
        return summary
    finally:
        folder.close()


async def _scored(
    record: Record,
    row: Mapping[str, Any],
    env: type[Env],
    settings: Mapping[str, Any],
    grader: Grader,
    plan: Mapping[str, Any],
) -> Record:
    """The record with the reward that its text gets now.

    Kept as it is: what has no text, was cut off where that is worth nothing, or got its reward from a tool.
    """
    graded = record.failure is None or record.failure[1] == "GraderFailure"
    text = record.final_text
    cut_off = record.truncated and plan.get("rollout", {}).get("truncated", "zero") == "zero"
    if not graded or text is None or cut_off or (record.stop_reason == "finished" and record.answer is None):
        return record
    instance = env(grader=grader, rng=random.Random(record.seed), **settings)
    try:
        reward = await instance.score(row, text, _transcript(record, text))
    except EnvError as error:
        failure = ("env", type(error).__name__, f"scored again: {error}"[:2000])
        return replace(record, failure=failure, score=None, reward=None, verdict=None, stated=None)
    finally:
        await instance.aclose()
    low, high = env.reward_range
    return replace(
        record,
        reward=reward.value,
        reward_range=(low, high),
        score=(reward.value - low) / (high - low),
        verdict=reward.verdict,
        parts=dict(reward.parts),
        stated=last_answer(text),
        failure=None,
        stop_reason="answered" if record.failed else record.stop_reason,
        judge=None,
    )


def _transcript(record: Record, text: str) -> Transcript:
    messages = [{"role": "assistant", "content": turn["text"]} for turn in record.transcript]
    stored = [call for turn in record.transcript for call in turn["tool_calls"]]
    calls = [ToolCall(f"call_{i}", c["name"], c["arguments"], "") for i, c in enumerate(stored)]
    results = [
        ToolResult(call.id, call.name, str(c["result"]), c["status"] == "ok", 0.0, c["status"])
        for call, c in zip(calls, stored, strict=True)
    ]
    return Transcript(
        messages=tuple(messages or [{"role": "assistant", "content": text}]),
        tool_calls=tuple(calls),
        tool_results=tuple(results),
        turns=record.turns,
        stop_reason=record.stop_reason,
    )


def _changes(before: Sequence[Record], after: Sequence[Record]) -> dict[str, Any]:
    """How the verdicts of two scorings of the same answers differ."""
    both = [(b, a) for b, a in zip(before, after, strict=True) if not (b.failed or a.failed)]
    changed = [(b, a) for b, a in both if b.right != a.right]
    return {
        "answers": len(both),
        "same": len(both) - len(changed),
        "now_right": sum(a.right for _, a in changed),
        "now_wrong": sum(b.right for b, _ in changed),
        "changed": [
            {"problem": a.problem, "draw": a.draw, "right": a.right, "stated": a.stated, "gold": a.gold}
            for _, a in changed[:100]
        ],
    }
