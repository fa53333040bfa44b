"""What a row says of its batch, from three episodes counted by hand."""

from __future__ import annotations

import pytest

from agentrl.episode import Episode, SegmentBuilder, StopReason, ToolCallRecord, Turn
from agentrl.storage.metrics import describe_batch


def episode(number: int, reward: float, messages: list[tuple[int, tuple[str, ...]]]) -> Episode:
    """Messages are (tokens sampled, statuses of their calls)."""
    builder, turns = SegmentBuilder(), []
    for count, statuses in messages:
        builder.append_given([1] * 5)
        start, end = builder.append_sampled([2] * count, [-1.0] * count, [0] * count)
        calls = tuple(ToolCallRecord("python", {}, "", status, 0.0) for status in statuses)
        turns.append(Turn(0, start, end, "", calls))
    return Episode(
        episode_id=f"e{number}",
        dispatch_index=number,
        prompt_id="p",
        segments=(builder.build(),),
        turns=tuple(turns),
        reward=reward,
        stop_reason=StopReason.ANSWERED,
        start_version=0,
        temperature=1.0,
        reward_parts={"correct": reward, "format": 1.0} if number else {"correct": reward},
    )


def test_what_tools_were_worth() -> None:
    batch = [
        episode(0, 1.0, [(10, ()), (4, ("ok", "failed")), (3, ())]),
        episode(1, 1.0, [(7, ())]),
        episode(2, 0.0, [(6, ("ok",)), (2, ("ok",))]),
    ]
    row = describe_batch(batch)
    # Two right answers, four calls, of which one failed.
    assert (row["right_per_call"], row["calls_per_right"], row["tool_error_share"]) == (0.5, 2.0, 0.25)
    # The first calls came after 10 + 4 and 6 sampled tokens; prompts and tool output do not count.
    assert row["first_call_tokens_mean"] == 10.0
    assert row["reward_parts"] == pytest.approx({"correct": 2 / 3, "format": 1.0})


def test_without_calls_or_right_answers_there_is_no_number() -> None:
    row = describe_batch([episode(0, 0.0, [(3, ())])])
    assert row["right_per_call"] is row["calls_per_right"] is row["first_call_tokens_mean"] is None
    assert describe_batch([episode(0, 1.0, [(3, ())])])["calls_per_right"] == 0.0
