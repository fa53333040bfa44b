"""The one type that flows: what an agent saw, said and was rewarded for.

An `Episode` is frozen and checked on construction. The dispatcher makes it, the buffer holds it,
the learner learns from it, and on disk it is one line of JSON. This module knows nothing of
tokenizers, environments, engines or losses; it needs the standard library only.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, cast

import numpy as np

from agentrl.errors import DataError

FORMAT = 1
"""Version of the form on disk."""


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    """The last message called no tool and the environment had nothing to add."""
    FINISHED = "finished"
    """The environment raised `Finish`."""
    MAX_TURNS = "max_turns"
    """The policy used all its turns and still called a tool."""
    MAX_TOKENS = "max_tokens"
    """The token budget of the episode or of a turn ran out in mid-sentence."""
    CONTEXT_FULL = "context_full"
    """What had to be appended no longer fits the context."""
    FAILED = "failed"
    """Something broke that is not the policy's doing; see `Episode.failure`."""
    CANCELLED = "cancelled"
    """The run stopped while the episode was in flight."""

    @property
    def truncated(self) -> bool:
        """Whether the policy was cut off rather than ending by itself."""
        return self in (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL)


Boundary = Literal["policy", "env", "sandbox", "renderer", "teacher"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Which boundary broke, and how. A failed episode is data; it is never a reward."""

    boundary: Boundary
    error: str
    """Class name of the error."""
    message: str


@dataclass(frozen=True, slots=True)
class ToolCallRecord:
    """One tool call and its result, for people and metrics, never for the loss."""

    name: str
    arguments: Mapping[str, Any] | None
    result: str
    status: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the tool answered without an error."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class Turn:
    """The span [start, end) of one sampled message in its segment, and what it called."""

    segment: int
    start: int
    end: int
    text: str
    tool_calls: tuple[ToolCallRecord, ...] = ()
    reward: float | None = None
    """What the environment's `reward_turn` gave this turn alone; None where it gave nothing."""


def _int_array(values: Iterable[int]) -> array[int]:
    return values if isinstance(values, array) and values.typecode == "i" else array("i", values)


def _float_array(values: Iterable[float]) -> array[float]:
    return values if isinstance(values, array) and values.typecode == "f" else array("f", values)


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence of T tokens, to which tokens were only ever appended.

    The arrays have one length T and take 13 bytes a token together; the k likeliest tokens, where a loss asks
    for them, another 8 k for each of the S tokens that were sampled, and what a served teacher says 4. The
    hidden state of a prompt, where an estimator asks for it, takes 4 bytes for each of D numbers.
    """

    token_ids: array[int]
    """[T] everything the model saw or said, exactly as sampled; never tokenised again."""
    loss_mask: bytes
    """[T] 1 only where the policy sampled the token."""
    logprobs: array[float]
    """[T] nats, under the distribution actually sampled from; 0.0 where not sampled."""
    policy_versions: array[int]
    """[T] version that sampled the token; -1 where not sampled."""
    agent: str = "agent"
    model: str = "policy"
    trainable: bool = True
    top_ids: array[int] = field(default_factory=lambda: array("i"))
    """[S k] the likeliest tokens of the sampler where a token was sampled; empty where nobody asked."""
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))
    """[S k] and their log-probabilities, the largest of a place first."""
    teacher_logprobs: array[float] = field(default_factory=lambda: array("f"))
    """[S] nats, of the sampled tokens by a served teacher; empty where none was asked."""
    prompt_features: array[float] = field(default_factory=lambda: array("f"))
    """[D] mean hidden state of the sampler over the last tokens before its first one, in an episode's first
    segment; empty where nobody asked."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", _int_array(self.token_ids))
        object.__setattr__(self, "loss_mask", bytes(self.loss_mask))
        object.__setattr__(self, "logprobs", _float_array(self.logprobs))
        object.__setattr__(self, "policy_versions", _int_array(self.policy_versions))
        object.__setattr__(self, "top_ids", _int_array(self.top_ids))
        object.__setattr__(self, "top_logprobs", _float_array(self.top_logprobs))
        object.__setattr__(self, "teacher_logprobs", _float_array(self.teacher_logprobs))
        object.__setattr__(self, "prompt_features", _float_array(self.prompt_features))
        lengths = {
            len(self.token_ids),
            len(self.loss_mask),
            len(self.logprobs),
            len(self.policy_versions),
        }
        if len(lengths) != 1:
            raise DataError(f"the arrays of a segment must have one length, got {sorted(lengths)}")
        _check_segment(self)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_sampled(self) -> int:
        """Number of tokens the policy sampled."""
        return self.loss_mask.count(1)

    def until(self, end: int) -> Segment:
        """The segment of the first `end` tokens."""
        sampled = self.loss_mask[:end].count(1)
        return replace(
            self,
            token_ids=self.token_ids[:end],
            loss_mask=self.loss_mask[:end],
            logprobs=self.logprobs[:end],
            policy_versions=self.policy_versions[:end],
            top_ids=self.top_ids[: sampled * self.top_k],
            top_logprobs=self.top_logprobs[: sampled * self.top_k],
            teacher_logprobs=self.teacher_logprobs[:sampled],
        )

    @property
    def top_k(self) -> int:
        """Likeliest tokens that are known of each sampled one; 0 where nobody asked for them."""
        return len(self.top_ids) // max(1, self.num_sampled)

    @property
    def first_version(self) -> int:
        """Version of the first sampled token, -1 when none was sampled."""
        at = self.loss_mask.find(1)
        return self.policy_versions[at] if at >= 0 else -1


def _check_segment(segment: Segment) -> None:
    if segment.loss_mask.count(0) + segment.loss_mask.count(1) != len(segment.loss_mask):
        raise DataError("loss_mask holds something other than 0 and 1")
    # In NumPy: this check is made of every token of every episode, in the event loop.
    sampled = np.frombuffer(segment.loss_mask, np.uint8).astype(bool)
    logprobs = np.frombuffer(segment.logprobs, np.float32)
    versions = np.frombuffer(segment.policy_versions, np.int32)
    # A sum of float32 roundings may put a certain token a hair above probability one.
    wrong = sampled & ~(np.isfinite(logprobs) & (logprobs <= 1e-3))
    if wrong.any():
        raise DataError(f"a sampled token has log-probability {float(logprobs[wrong][0])}")
    ids, values, count = len(segment.top_ids), len(segment.top_logprobs), int(sampled.sum())
    if ids != values or ids % max(1, count):
        raise DataError(
            f"{ids} likeliest tokens came with {values} log-probabilities for {count} sampled tokens; each "
            "of those needs the same number"
        )
    if len(segment.teacher_logprobs) not in (0, count):
        raise DataError(
            f"a teacher gave {len(segment.teacher_logprobs)} log-probabilities for {count} sampled tokens"
        )
    if not np.isfinite(np.frombuffer(segment.prompt_features, np.float32)).all():
        raise DataError("the hidden state of a prompt is not finite")
    own = versions[sampled]
    if len(own) and (own[0] < 0 or (np.diff(own) < 0).any()):
        raise DataError("policy versions of sampled tokens must be at least 0 and never fall")
    if (~sampled & ((logprobs != 0.0) | (versions != -1))).any():
        raise DataError("a token that was not sampled must have logprob 0.0 and version -1")


@dataclass(frozen=True, slots=True)
class Episode:
    """One run of an agent in an environment.

    Example:
        >>> episode = run_episode("arithmetic", {"problem": "7*8+1", "answer": "57"}, model="models/demo")
        >>> episode.reward in (0.0, 1.0), episode.num_tokens > episode.num_sampled > 0
        (True, True)
    """

    episode_id: str
    """Unique in its run."""
    dispatch_index: int
    """Order of dispatch, from 0."""
    prompt_id: str
    """Stable key of the value tracker; never the text of the prompt."""
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    reward: float | None
    """Terminal and raw, in the environment's `reward_range`; None exactly when the episode failed."""
    stop_reason: StopReason
    start_version: int
    """Policy version at dispatch."""
    temperature: float
    environment: str = ""
    reward_parts: Mapping[str, float] = field(default_factory=dict[str, float])
    reward_range: tuple[float, float] = (0.0, 1.0)
    verdict: str | None = None
    """What the grader said, in its own words."""
    failure: Failure | None = None
    answer: str | None = None
    seconds: float = 0.0
    """Wall time from dispatch to the reward."""
    tool_seconds: float = 0.0
    grade_seconds: float = 0.0
    """Of `seconds`, the last ones: from the end of the conversation to the reward."""
    group: int | None = None
    """GRPO reference only: which group the episode belongs to."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """What happened how often: requests to the gateway, compactions, and the like."""
    agent_rewards: Mapping[str, float] = field(default_factory=dict[str, float])
    """Raw rewards of single agents of the episode, in the same range; an agent without one has the
    episode's."""

    def __post_init__(self) -> None:
        if (self.failure is not None) != (self.stop_reason in (StopReason.FAILED, StopReason.CANCELLED)):
            raise DataError(f"stop reason {self.stop_reason} contradicts failure {self.failure}")
        if (self.reward is None) != (self.failure is not None):
            raise DataError("an episode has a reward exactly when it did not fail")
        low, high = self.reward_range
        for reward in (*self.agent_rewards.values(), *([] if self.reward is None else [self.reward])):
            if not low <= reward <= high:
                raise DataError(f"reward {reward} lies outside the reward range [{low}, {high}]")
        for turn in self.turns:
            if not (0 <= turn.segment < len(self.segments)):
                raise DataError(f"a turn names segment {turn.segment} of {len(self.segments)}")
            if not 0 <= turn.start <= turn.end <= len(self.segments[turn.segment]):
                raise DataError(f"turn [{turn.start}, {turn.end}) lies outside its segment")

    @property
    def num_tokens(self) -> int:
        """Tokens seen and sampled, over all segments."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_sampled(self) -> int:
        """Tokens the policy sampled, over all segments."""
        return sum(segment.num_sampled for segment in self.segments)

    @property
    def num_trainable(self) -> int:
        """Tokens the learner may learn from."""
        return sum(segment.num_sampled for segment in self.segments if segment.trainable)

    @property
    def first_version(self) -> int:
        """Version of the first sampled token; the version at dispatch when none was sampled."""
        for segment in self.segments:
            if segment.first_version >= 0:
                return segment.first_version
        return self.start_version

    def staleness(self, learner_version: int) -> int:
        """Learner version at the step that uses the episode less that of its first sampled token."""
        return learner_version - self.first_version

    @property
    def score(self) -> float:
        """The reward mapped from `reward_range` to [0, 1], as the value tracker takes it.

        Raises:
            DataError: the episode failed and has no reward.
        """
        if self.reward is None:
            raise DataError(f"episode {self.episode_id} failed and has no score")
        low, high = self.reward_range
        return (self.reward - low) / (high - low)

    @property
    def tool_calls(self) -> tuple[ToolCallRecord, ...]:
        """All tool calls, in order."""
        return tuple(call for turn in self.turns for call in turn.tool_calls)

    @property
    def tokens_to_first_call(self) -> int | None:
        """Sampled tokens up to the end of the first message that called a tool; None where none did."""
        tokens = 0
        for turn in self.turns:
            tokens += turn.end - turn.start
            if turn.tool_calls:
                return tokens
        return None

    def to_json(self) -> dict[str, Any]:
        """The form on disk; `Episode.from_json` is its inverse, bit for bit."""
        return {
            "format": FORMAT,
            "episode_id": self.episode_id,
            "dispatch_index": self.dispatch_index,
            "prompt_id": self.prompt_id,
            "segments": [_segment_to_json(segment) for segment in self.segments],
            "turns": [_turn_to_json(turn) for turn in self.turns],
            "reward": self.reward,
            "reward_parts": dict(self.reward_parts),
            "reward_range": list(self.reward_range),
            "verdict": self.verdict,
            "stop_reason": self.stop_reason.value,
            "failure": None
            if self.failure is None
            else [self.failure.boundary, self.failure.error, self.failure.message],
            "start_version": self.start_version,
            "temperature": self.temperature,
            "environment": self.environment,
            "answer": self.answer,
            "seconds": self.seconds,
            "tool_seconds": self.tool_seconds,
            "grade_seconds": self.grade_seconds,
            "group": self.group,
            **({"counts": dict(self.counts)} if self.counts else {}),
            **({"agent_rewards": dict(self.agent_rewards)} if self.agent_rewards else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Episode:
        """Read the form on disk.

        Raises:
            DataError: the line is of another format, or incomplete, or breaks an invariant.
        """
        if data.get("format") != FORMAT:
            raise DataError(f"episode format {data.get('format')!r} is not {FORMAT}")
        try:
            failure = data["failure"]
            return cls(
                episode_id=data["episode_id"],
                dispatch_index=data["dispatch_index"],
                prompt_id=data["prompt_id"],
                segments=tuple(_segment_from_json(item) for item in data["segments"]),
                turns=tuple(_turn_from_json(item) for item in data["turns"]),
                reward=data["reward"],
                reward_parts=data["reward_parts"],
                reward_range=cast("tuple[float, float]", tuple(data["reward_range"])),
                verdict=data["verdict"],
                stop_reason=StopReason(data["stop_reason"]),
                failure=None if failure is None else Failure(*failure),
                start_version=data["start_version"],
                temperature=data["temperature"],
                environment=data["environment"],
                answer=data["answer"],
                seconds=data["seconds"],
                tool_seconds=data["tool_seconds"],
                grade_seconds=data.get("grade_seconds", 0.0),
                group=data["group"],
                counts=data.get("counts", {}),
                agent_rewards=data.get("agent_rewards", {}),
            )
        except KeyError as error:
            raise DataError(f"a recorded episode has no field {error}") from error


class SegmentBuilder:
    """Appends tokens to one segment; there is no way to change what was appended."""

    def __init__(self, *, agent: str = "agent", model: str = "policy", trainable: bool = True) -> None:
        self._token_ids = array("i")
        self._loss_mask = bytearray()
        self._logprobs = array("f")
        self._versions = array("i")
        self._top_ids, self._top_logprobs = array("i"), array("f")
        self._prompt_features = array("f")
        self._agent, self._model, self._trainable = agent, model, trainable

    def __len__(self) -> int:
        return len(self._token_ids)

    @property
    def token_ids(self) -> array[int]:
        """The tokens so far. Do not change them."""
        return self._token_ids

    @property
    def num_sampled(self) -> int:
        """Tokens sampled so far."""
        return self._loss_mask.count(1)

    def append_given(self, token_ids: Sequence[int]) -> None:
        """Append tokens the policy was given: prompts, tool output, template text."""
        count = len(token_ids)
        self._token_ids.extend(token_ids)
        self._loss_mask.extend(bytes(count))
        self._logprobs.extend([0.0] * count)
        self._versions.extend([-1] * count)

    def append_sampled(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        versions: Sequence[int],
        top_ids: Sequence[int] = (),
        top_logprobs: Sequence[float] = (),
    ) -> tuple[int, int]:
        """Append N tokens the policy sampled; returns their span [start, end).

        Args:
            token_ids: [N]
            logprobs: [N] nats.
            versions: [N]
            top_ids: [N k] the likeliest tokens at each place; every call of a segment has the same k.
            top_logprobs: [N k]

        Raises:
            DataError: the first three sequences differ in length.
        """
        if not len(token_ids) == len(logprobs) == len(versions):
            raise DataError(
                f"{len(token_ids)} tokens came with {len(logprobs)} log-probabilities "
                f"and {len(versions)} versions"
            )
        start = len(self._token_ids)
        self._token_ids.extend(token_ids)
        self._loss_mask.extend(b"\x01" * len(token_ids))
        self._logprobs.extend(logprobs)
        self._versions.extend(versions)
        self._top_ids.extend(top_ids)
        self._top_logprobs.extend(top_logprobs)
        return start, len(self._token_ids)

    def note_prompt(self, features: Sequence[float]) -> None:
        """Keep the hidden state [D] of the tokens before the first sampled one."""
        self._prompt_features = array("f", features)

    def build(self) -> Segment:
        """Freeze the segment."""
        return Segment(
            token_ids=self._token_ids,
            loss_mask=bytes(self._loss_mask),
            logprobs=self._logprobs,
            policy_versions=self._versions,
            agent=self._agent,
            model=self._model,
            trainable=self._trainable,
            top_ids=self._top_ids,
            top_logprobs=self._top_logprobs,
            prompt_features=self._prompt_features,
        )


def replace_reward(episode: Episode, reward: float) -> Episode:
    """The same episode with another reward (the control that shuffles rewards among episodes)."""
    return replace(episode, reward=reward)


def _pack(values: array[int] | array[float]) -> str:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


def _unpack(code: Literal["i", "f"], text: str) -> array[Any]:
    values = array(code, base64.b64decode(text))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    top = {"top_ids": _pack(segment.top_ids), "top_logprobs": _pack(segment.top_logprobs)}
    teacher = {"teacher_logprobs": _pack(segment.teacher_logprobs)}
    prompt = {"prompt_features": _pack(segment.prompt_features)}
    return (
        (top if segment.top_ids else {})
        | (teacher if segment.teacher_logprobs else {})
        | (prompt if segment.prompt_features else {})
        | {
            "token_ids": _pack(segment.token_ids),
            "loss_mask": base64.b64encode(segment.loss_mask).decode("ascii"),
            "logprobs": _pack(segment.logprobs),
            "policy_versions": _pack(segment.policy_versions),
            "agent": segment.agent,
            "model": segment.model,
            "trainable": segment.trainable,
        }
    )


def _segment_from_json(data: Mapping[str, Any]) -> Segment:
    return Segment(
        token_ids=_unpack("i", data["token_ids"]),
        loss_mask=base64.b64decode(data["loss_mask"]),
        logprobs=_unpack("f", data["logprobs"]),
        policy_versions=_unpack("i", data["policy_versions"]),
        agent=data["agent"],
        model=data["model"],
        trainable=data["trainable"],
        top_ids=_unpack("i", data.get("top_ids", "")),
        top_logprobs=_unpack("f", data.get("top_logprobs", "")),
        teacher_logprobs=_unpack("f", data.get("teacher_logprobs", "")),
        prompt_features=_unpack("f", data.get("prompt_features", "")),
    )


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    return {
        "segment": turn.segment,
        "start": turn.start,
        "end": turn.end,
        "text": turn.text,
        "tool_calls": [
            [call.name, call.arguments, call.result, call.status, call.seconds] for call in turn.tool_calls
        ],
        "reward": turn.reward,
    }


def _turn_from_json(data: Mapping[str, Any]) -> Turn:
    return Turn(
        segment=data["segment"],
        start=data["start"],
        end=data["end"],
        text=data["text"],
        tool_calls=tuple(ToolCallRecord(*call) for call in data["tool_calls"]),
        reward=data["reward"],
    )
