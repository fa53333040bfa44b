"""Signs that a run is not well, in words. Each rule looks at the newest steps only.

The rules are rough and say what they saw; they change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from agentrl.storage.metrics import Row

NEWEST = 10
FAILED_SHARE = 0.05
"""Share of failed episodes above which a run is warned."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that a healthy run keeps."""

    stated: str
    """In words, as a page lists it."""
    evidence: str
    """The number of a step that it looks at."""
    broken: Callable[[Sequence[Row]], str | None]
    """From the steps to what was seen; None where the rule is kept, or cannot be judged yet."""


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else None


def _entropy(steps: Sequence[Row]) -> str | None:
    now, first = _mean(steps[-NEWEST:], "entropy"), _mean(steps[:3], "entropy")
    reward = _mean(steps[-NEWEST:], "score_mean")
    if now is None or first is None or reward is None or reward > 0.8:
        return None
    if now < 0.1 * first:
        return f"entropy fell from {first:.3f} to {now:.3f} nats while the score is only {reward:.2f}"
    return None


def _above(name: str, limit: float, stated: str, text: str, sign: int = 1) -> Rule:
    def broken(steps: Sequence[Row]) -> str | None:
        value = _mean(steps[-NEWEST:], name)
        return text.format(value) if value is not None and sign * value > sign * limit else None

    return Rule(stated.format(limit), name, broken)


def _below(name: str, limit: float, stated: str, text: str) -> Rule:
    return _above(name, limit, stated, text, sign=-1)


def _flat(steps: Sequence[Row]) -> str | None:
    newest = steps[-NEWEST:]
    if len(newest) < NEWEST or any(row.get("score_mean") is None for row in newest):
        return None
    scores = {row["score_mean"] for row in newest}
    if scores == {0.0}:
        return f"no episode of the last {NEWEST} steps was rewarded: there is nothing to learn from"
    return None


def _set_aside(steps: Sequence[Row]) -> str | None:
    counts = steps[-1].get("set_aside") if steps else None
    if not counts:
        return None
    each = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return (
        f"prompts set aside after failures in a row: {each} (each is tried again now and then; "
        "`agentrl train --resume RUN --forgive` brings all of them back)"
    )


def _failing(steps: Sequence[Row]) -> str | None:
    share = _mean(steps[-NEWEST:], "failed_share")
    if share is None or share <= FAILED_SHARE:
        return None
    first = next((row["first_failure"] for row in steps if row.get("first_failure")), "")
    return f"{share:.0%} of the episodes failed, which biases what is learned; the first one: {first}"


RULES: tuple[Rule, ...] = (
    Rule("entropy stays above a tenth of its first value until the score is above 0.8", "entropy", _entropy),
    Rule("some episode of the newest steps is rewarded", "score_mean", _flat),
    Rule("no prompt is set aside after failures", "failures", _set_aside),
    Rule(f"at most {FAILED_SHARE:.0%} of the episodes fail", "failed_share", _failing),
    _above(
        "truncated_share", 0.2,
        "at most {:.0%} of the episodes are cut off", "{:.0%} of the episodes were cut off by a token limit",
    ),
    _above(
        "undecided_share", 0.05, "at most {:.0%} of the answers cannot be compared",
        "{:.0%} of the answers could not be compared, and were graded as wrong",
    ),
    _above(
        "tool_error_share", 0.5, "at most {:.0%} of the tool calls fail", "{:.0%} of the tool calls failed"
    ),
    _above(
        "excess_share", 0.3, "at most {:.0%} of the episodes are staler than allowed",
        "{:.0%} of the episodes were staler than allowed",
    ),
    _above(
        "behaviour_gap", 0.2, "engine and learner differ by at most {} nats a token",
        "engine and learner differ by {:.2f} nats a token",
    ),
    _below(
        "effective_share", 0.5, "importance weights leave at least {:.0%} of the tokens effective",
        "importance weights leave only {:.0%} of the tokens effective",
    ),
    _above(
        "kl_reference", 1.0, "the policy is at most {} nats a token away from its reference",
        "the policy is {:.1f} nats a token away from its reference",
    ),
    _above(
        "clip_low", 0.3, "at most {:.0%} of the tokens that should become rarer are clipped",
        "{:.0%} of the tokens that should become rarer are clipped",
    ),
    _above(
        "clip_high", 0.3, "at most {:.0%} of the tokens that should become likelier are clipped",
        "{:.0%} of the tokens that should become likelier are clipped",
    ),
)  # fmt: skip


def find_warnings(steps: Sequence[Row]) -> list[str]:
    """One sentence for each rule that is broken by the newest steps."""
    return [text for rule in RULES if (text := rule.broken(steps)) is not None]


def judge(steps: Sequence[Row]) -> list[dict[str, str | None]]:
    """Every rule: how it is stated, the number that is its evidence, and what was seen where it is broken."""
    return [
        {"stated": rule.stated, "evidence": rule.evidence, "broken": rule.broken(steps)} for rule in RULES
    ]
