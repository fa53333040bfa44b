"""Tables of evaluations and comparisons, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from agentrl.evaluation.comparison import Comparison, Excluded
from agentrl.evaluation.run import Progress
from agentrl.evaluation.statistics.estimators import ks_up_to
from agentrl.evaluation.statistics.intervals import Interval
from agentrl.storage.cost import Cost

_HEAD = ("", "value", "95% new problems", "95% same problems")


def evaluation_table(summary: Mapping[str, Any]) -> str:
    """What an evaluation found."""
    table = summary["table"]
    tools = "" if summary["tools"] else " without tools"
    lines = [
        f"{_name(summary)}: {table['problems']} problems x {summary['samples']}{_uneven(table)}",
        f"{summary['environment']}{tools}, {_policy(summary['policy'])}",
        *training_lines(summary),
        *_missing(table),
        *_set_aside(summary),
        *_rescored(summary),
    ]
    if not summary.get("complete", True):
        lines.append(
            f"INCOMPLETE: {table['episodes']} of {table['problems']} x {summary['samples']} episodes"
        )
    if "avg@k" not in table:
        return "\n".join([*lines, "no episode was answered", *_trouble(table)])
    lines += ["", *_grid([_HEAD, *_estimates(table)]), ""]
    for column, values in table.get("by", {}).items():
        rows = [_row(value, entry["avg@k"], entry["problems"]) for value, entry in values.items()]
        head = (f"avg@{table['k']} by {column}", *_HEAD[1:], "problems")
        lines += [*_grid([head, *rows]), ""]
    lines += [*_trouble(table), *_judged(table), *_tools(table), *_calibration(table), _effort(summary)]
    return "\n".join(lines)


def suite_table(suite: Mapping[str, Any]) -> str:
    """Several tasks and their mean."""
    rows = [
        _row(f"{task['task']} avg@{task['samples']}", task["avg@k"], task["problems"])
        for task in suite["tasks"]
        if task["avg@k"] is not None
    ]
    if suite["mean"] is not None:
        rows.append(_row(f"mean of {len(rows)} tasks", suite["mean"], ""))
    return "\n".join(_grid([(*_HEAD, "problems"), *rows]))


def _name(summary: Mapping[str, Any]) -> str:
    task, data = str(summary.get("task", summary["data"])), str(summary["data"])
    return data if task in data else f"{task} ({data})"


def _uneven(table: Mapping[str, Any]) -> str:
    """How many answers each problem really has, where that differs."""
    sizes = table.get("answers_per_problem", {})
    if len(sizes) < 2:
        return ""
    return f" (answers per problem: {', '.join(f'{size} for {count}' for size, count in sizes.items())})"


def _missing(table: Mapping[str, Any]) -> list[str]:
    counts = table["counts"]
    lines: list[str] = []
    if counts["failed"]:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in counts["failures"].items())
        refused = f", {counts['refused']} of them refused by the endpoint" if counts.get("refused") else ""
        lines.append(
            f"infrastructure failures, not counted as answers: {counts['failed']} of {table['episodes']}"
            f"{refused} ({kinds})"
        )
    if counts.get("resampled"):
        lines.append(f"answers with another seed, because their own failed twice: {counts['resampled']}")
    if lines:
        lines.append("intervals of avg@k and pass@k reach from all of these wrong to all of them right")
    if table["problems_without_answers"]:
        lines.append(f"problems without any answer, left out: {table['problems_without_answers']}")
    return lines


def _set_aside(summary: Mapping[str, Any], shown: int = 5) -> list[str]:
    rows = summary.get("data_set", {}).get("set_aside", [])
    if not rows:
        return []
    lines = [f"rows set aside, because nothing can be compared with their gold answer: {len(rows)}"]
    lines += [f"  {row['problem']}: {row['answer']!r:.80}: {row['why']}" for row in rows[:shown]]
    return lines + [f"  and {len(rows) - shown} more (summary.json)"] * (len(rows) > shown)


def _rescored(summary: Mapping[str, Any]) -> list[str]:
    changes = summary.get("rescored")
    if changes is None:
        return []
    return [
        (
            f"scored again from {summary['rescored_from']} with {summary['grader']}: "
            f"{changes['same']} of {changes['answers']} answers as before, "
            f"{changes['now_right']} now right, {changes['now_wrong']} now wrong"
        )
    ]


def _judged(table: Mapping[str, Any]) -> list[str]:
    judge = table.get("judge")
    if judge is None:
        return []
    text = f"judge: asked about {judge['asked']} answers, made {judge['made_right']} right"
    text += f"; {judge['unsure']} unsure, {judge['failed']} without a reply"
    if judge["agreement"] is None:
        return [text, "judge and grader: no answer that both decided (--judge-share)"]
    agreed = f"judge and grader agree on {judge['agreement']:.1%} of {judge['compared']} that both decided"
    alone = f"{judge['grader_wrong_judge_right']} right for the judge alone, "
    return [text, f"{agreed} ({alone}{judge['grader_right_judge_wrong']} for the grader alone)"]


def training_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the run cost whose weights were evaluated, rollouts for initial values included."""
    if not summary.get("training"):
        return []
    cost = Cost(**{field.name: summary["training"][field.name] for field in fields(Cost)})
    return [f"trained for {cost.version} versions on {cost.sentence()}; {cost.seconds:,.0f} s"]


def _policy(policy: Mapping[str, Any]) -> str:
    return str(policy.get("weights") or policy.get("model") or policy.get("script") or policy.get("kind"))


def _estimates(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    k = table["k"]
    rows = [_row(f"avg@{k}", table["avg@k"])]
    strict = table.get("avg@k_strict")
    if strict is not None and strict["value"] > 0.0:  # always 0 for models that do not write </think>
        rows.append(_row(f"avg@{k} by SPO's own rule", strict))
    lenient = table.get("avg@k_lenient")
    if lenient is not None and lenient["value"] != table["avg@k"]["value"]:
        rows.append(_row(f"avg@{k} without a box", lenient))
    if "score" in table:
        rows.append(_row("mean score", table["score"]))
    bootstrap = table.get("verl_bootstrap", {}).get("maj@k", {})
    for size, entry in table.get("maj@k", {}).items():
        if int(size) > 1:
            rows.append(_row(f"maj@{size}{_part(entry)}", entry))
            rows.append((f"  verl's bootstrap maj@{size}", f"{bootstrap[size]:.3f}", "", ""))
    passes = table["pass@k"]
    for size in ks_up_to(len(passes)):
        if size > 1:
            entry = passes[str(size)]
            rows.append(_row(f"pass@{size}{_part(entry)}", entry))
    return rows


def _part(entry: Mapping[str, Any]) -> str:
    """On how many problems an estimate stands, where not on all."""
    return f" ({entry['problems']} of {entry['of_problems']} problems)" if "problems" in entry else ""


def _row(name: str, entry: Mapping[str, Any], *more: object) -> tuple[str, ...]:
    bounds = _bounds(entry["new_problems"]), _bounds(entry.get("same_problems"))
    return name, f"{entry['value']:.3f}", *bounds, *map(str, more)


def _bounds(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    mark = " *" if entry["method"] == "gaffke" else ""
    return f"[{entry['low']:.3f}, {entry['high']:.3f}]{mark}"


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if any(" *" in cell for row in rows for cell in row):
        lines.append("* near 0 or 1: Gaffke's skew-aware bounds")
    return lines


def _trouble(table: Mapping[str, Any]) -> list[str]:
    counts = table["counts"]
    answered = max(1, counts["answered"])
    truncated, silent = counts["truncated"] / answered, counts["no_vote"] / answered
    text = f"answers: {counts['answered']}, of them {counts['right']} right"
    lines = [f"{text}, {truncated:.1%} truncated, {silent:.1%} without an answer"]
    if undecided := counts.get("undecided"):
        kinds = ", ".join(f"{count} x {kind}" for kind, count in undecided.items())
        lines.append(f"wrong, because they cannot be compared: {sum(undecided.values())} ({kinds})")
    if counts.get("fenced"):
        lines.append(
            f"{counts['fenced']} episodes wrote Python in a plain ``` fence and called no tool: "
            "the model does not know the format (--format or --tool-format, --system, --shots)"
        )
    return lines


def _tools(table: Mapping[str, Any]) -> list[str]:
    tools = table["tools"]
    if not tools["calls_per_episode"]:
        return [f"tools: no calls; {tools['turns_per_episode']:.2f} turns per episode"]
    calls, errors = tools["calls_per_episode"], tools["error_share"]
    text = f"tools: {calls:.2f} calls per episode, {errors:.1%} of them errors"
    return [f"{text}; {tools['episodes_with_calls']:.0%} of the episodes call one"]


def _calibration(table: Mapping[str, Any]) -> list[str]:
    found = table.get("calibration")
    if not found:
        return []
    within = found["auc_within_problems"]
    bounds = f"[{found['auc_low']:.2f}, {found['auc_high']:.2f}]"
    text = f"confidence against correctness: AUC {found['auc']:.2f} {bounds}"
    return [text + (f", within problems {within:.2f}" if within is not None else "")]


def _effort(summary: Mapping[str, Any]) -> str:
    spent = summary["effort"]
    cost = f", cost {spent['cost']:.4f}" if spent["cost"] else ""
    return (
        f"tokens: {spent['sampled_tokens']} sampled ({spent['sampled_tokens_mean']:.0f} per episode), "
        f"{spent['prompt_tokens']} read; {spent['episode_seconds_p50']:.1f} s per episode (median), "
        f"{summary['wall_s']:.0f} s in all{cost}"
    )


def progress_line(progress: Progress) -> str:
    """One line on where an evaluation stands."""
    text = f"{progress.task}: " * bool(progress.task) + f"{progress.done}/{progress.total}"
    if progress.mean is not None and progress.interval is not None:
        text += f"  avg {progress.mean:.3f} [{progress.interval.low:.3f}, {progress.interval.high:.3f}]"
    if progress.failed:
        text += f"  failed {progress.failed}"
    text += f"  {progress.sampled_tokens} tokens"
    return text + (f"  cost {progress.cost:.4f}" if progress.cost else "")


def comparison_table(
    comparison: Comparison,
    names: tuple[str, str],
    shown: int = 10,
    summaries: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    problems: Mapping[str, str] | None = None,
) -> str:
    """What a comparison found.

    `summaries` of the two evaluations say what each training cost; `problems` what stands behind the keys.
    """
    lines: list[str] = []
    for letter, name, summary in zip("AB", names, summaries, strict=True):
        lines += [f"{letter}: {text}" for text in (name, *training_lines(summary))]
        lines += [f"{letter} {text}" for text in _excluded(comparison.excluded[letter.lower()], summary)]
    lines += [
        f"{comparison.problems} problems in both"
        + (f", {len(comparison.only_a)} only in A" if comparison.only_a else "")
        + (f", {len(comparison.only_b)} only in B" if comparison.only_b else ""),
        "",
    ]
    rows = [
        ("", "A", "B", "B - A", *_HEAD[2:]),
        (
            "avg@k",
            f"{comparison.mean_a:.3f}",
            f"{comparison.mean_b:.3f}",
            f"{comparison.difference:+.3f}",
            _signed(comparison.new_problems),
            _signed(comparison.same_problems),
        ),
    ]
    if comparison.scores is not None:
        a, b, difference, interval = comparison.scores
        rows.append(("mean score", f"{a:.3f}", f"{b:.3f}", f"{difference:+.3f}", _signed(interval), ""))
    rows += [
        (f"pass@{k}", "", "", f"{value:+.3f}", _signed(interval), "")
        for k, (value, interval) in comparison.pass_differences.items()
    ]
    lines += [*_grid(rows), ""]
    lines.append(
        f"sign-flip test ({comparison.test}): p = {comparison.p_value:.4g}; "
        f"{comparison.better} problems better, {comparison.worse} worse, {comparison.equal} equal"
    )
    changed = [change for change in comparison.changes if change.difference][:shown]
    if changed:
        lines += ["", "largest changes (! = stands out among all problems, 10% false discoveries):"]
        lines += _grid(
            [
                (
                    "!" if c.flagged else " ",
                    c.problem,
                    f"{c.right_a}/{c.drawn_a}",
                    f"{c.right_b}/{c.drawn_b}",
                    f"p = {c.p_value:.3g}",
                    " ".join((problems or {}).get(c.problem, "").split())[:60],
                )
                for c in changed
            ]
        )
    return "\n".join(lines)


def _excluded(excluded: Excluded, summary: Mapping[str, Any]) -> list[str]:
    """What of one side does not take part."""
    parts: list[str] = []
    if excluded.failed:
        refused, failed = excluded.refused, excluded.failed - excluded.refused
        kinds = [f"{refused} refused by the endpoint"] * bool(refused) + [f"{failed} failed"] * bool(failed)
        parts.append(f"{excluded.failed} of {excluded.answers} answers ({', '.join(kinds)})")
    if excluded.problems:
        parts.append(f"{excluded.problems} problems without any")
    aside = len(summary.get("data_set", {}).get("set_aside", ()))
    if aside:
        parts.append(f"{aside} rows set aside for their gold answer")
    lines = [f"left out: {', '.join(parts) or 'nothing'}"]
    if excluded.undecided:
        lines.append(f"counted as wrong: {excluded.undecided} that cannot be compared")
    if excluded.resampled:
        lines.append(f"has {excluded.resampled} answers with another seed, because their own failed twice")
    return lines


def _signed(interval: Interval) -> str:
    return f"[{interval.low:+.3f}, {interval.high:+.3f}]"
