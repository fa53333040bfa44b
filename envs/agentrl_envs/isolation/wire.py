"""What passes between an environment's process and the rollout, as JSON and back.

Knows nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .. import errors
from ..errors import EnvError
from ..messages import Finish, Reward, ToolCall, ToolResult, ToolSpec, Transcript
from ..plain import plain
from ..raised import error_text

__all__ = ["call_of", "error_of", "result_of", "spec_of", "told_error", "told_transcript", "transcript_of"]


def call_of(told: Mapping[str, Any]) -> ToolCall:
    """A tool call."""
    return ToolCall(**told)


def result_of(told: Mapping[str, Any]) -> ToolResult:
    """A tool result."""
    given: dict[str, Any] = dict(told, parts=tuple(told["parts"]))
    return ToolResult(**given)


def spec_of(told: Mapping[str, Any]) -> ToolSpec:
    """A tool's description."""
    return ToolSpec(**told)


def told_transcript(one: Transcript) -> Mapping[str, Any]:
    """A transcript as JSON."""
    return plain(asdict(one))


def transcript_of(told: Mapping[str, Any]) -> Transcript:
    """A transcript."""
    return Transcript(
        tuple(told["messages"]),
        tuple(call_of(one) for one in told["tool_calls"]),
        tuple(result_of(one) for one in told["tool_results"]),
        told["turns"],
        told["stop_reason"],
    )


def reward_of(told: Mapping[str, Any]) -> Reward:
    """A checked reward."""
    return Reward(told["value"], told["parts"], told["verdict"])


def told_error(error: BaseException) -> Mapping[str, Any]:
    """What an environment, or the model that it asked, raised, as JSON."""
    if isinstance(error, Finish):
        results = [asdict(result) for result in error.results]
        return {
            "type": "Finish",
            "message": str(error),
            "reward": plain(error.reward),
            "answer": error.answer,
            "text": error.text,
            "results": plain(results),
        }
    ours = isinstance(error, EnvError)
    return {
        "type": type(error).__name__ if ours else "EnvError",
        "message": str(error) if ours else error_text(error),
        "where": error.where if ours else "",
        "infrastructure": ours and error.infrastructure,
    }


def error_of(told: Mapping[str, Any]) -> BaseException:
    """The exception that was told; of a class that is not ours, an EnvError."""
    if told["type"] == "Finish":
        finish = Finish(told["reward"], told["answer"], told["text"])
        finish.results = [result_of(one) for one in told["results"]]
        return finish
    kind = getattr(errors, told["type"], EnvError)
    error = kind(told["message"])
    error.where, error.infrastructure = told["where"], told["infrastructure"]
    return error
