"""One key of the gateway: one episode, with the conversations that its programs have.

Requests are answered one by one, in the order they came in, so that each has its own place in the episode's
random stream. A message that could not be delivered is given again to whoever asks for the same, and is
not learned from where nobody does. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from agentrl.episode import StopReason
from agentrl.rollout.completer import Exhausted, Reply
from agentrl.rollout.episode_model import EpisodeModel
from agentrl.rollout.gateway.history import History
from agentrl.rollout.gateway.request import Answer, ChatRequest, Kept, Refused, count_request, told_calls
from agentrl_envs import Message, ToolCall, ToolResult
from agentrl_envs.model import ModelFailure

REFUSALS = 20
"""Requests in a row that are refused for a limit before the program is taken to go on for ever."""


@dataclass(slots=True)
class Session:
    """What one key stands for, while its episode lasts."""

    speaker: EpisodeModel
    key: str = field(default_factory=lambda: f"agentrl-{secrets.token_urlsafe(24)}")
    reward_key: str = field(default_factory=lambda: f"reward-{secrets.token_urlsafe(24)}")
    history: History = field(default_factory=History)
    model: str = ""
    """The name under which the program asks for the policy: the first it asks for."""
    limit: StopReason | None = None
    """Why no request is answered any more."""
    kept: Kept = field(default_factory=Kept)
    _undelivered: list[tuple[ChatRequest, list[Message], Answer]] = field(default_factory=list)
    _calls: dict[str, Reply] = field(default_factory=dict[str, Reply])
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _reward: asyncio.Future[Any] | None = None
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    _refusals: int = 0

    async def ended(self) -> None:
        """Wait until nothing more can be answered."""
        await self._ended.wait()

    async def answer(self, request: ChatRequest) -> Answer:
        """The next message.

        Raises:
            Refused: a limit of the episode is reached, another model is asked for, or the model broke.
        """
        count = self.speaker.count
        count_request(self.speaker.conversation.counts, request)
        self._check_model(request.model)
        if self._busy.locked():
            count("gateway/overlapping")
        async with self._busy:
            messages = self.history.known(request.messages)
            again = self._again(request, messages)
            if again is not None:
                count("gateway/delivered_again")
                return again
            self._record_results(messages)
            reply = await self._ask(messages, request)
        count("gateway/extended" if reply.extends else "gateway/opened")
        return self._told(request, messages, reply)

    def hung_up(self) -> None:
        """The program was gone before its message was sampled: nothing was added to the conversation."""
        self.speaker.count("gateway/hung_up")
        self.speaker.conversation.speaking = False

    def undelivered(self, request: ChatRequest, answer: Answer) -> None:
        """The program was gone when its answer came."""
        self.speaker.count("gateway/undelivered")
        self._undelivered.append((request, self.history.known(request.messages), answer))

    def close(self) -> None:
        """The episode is over: what was never delivered is not learned from."""
        for _, _, answer in self._undelivered:
            self.speaker.count("gateway/unread")
            self.speaker.conversation.unread(answer.reply)
        self._undelivered.clear()

    def hand_in(self, reward: Any) -> None:
        """Take the reward that a grader hands in.

        Raises:
            Refused: there is one already.
        """
        future = self._future()
        if future.done():
            raise Refused("second_reward", "this episode has its reward already", 409)
        future.set_result(reward)

    async def reward(self) -> Any:
        """Wait for the reward that a grader hands in."""
        return await asyncio.shield(self._future())

    def _future(self) -> asyncio.Future[Any]:
        if self._reward is None:
            self._reward = asyncio.get_running_loop().create_future()
        return self._reward

    def _check_model(self, name: str) -> None:
        self.model = self.model or name
        if name != self.model:
            raise Refused(
                "other_model",
                f"this episode trains the model it asked for first, {self.model!r}; {name!r} is another: "
                "give its client the URL and key of whoever serves it",
                404,
            )

    def _again(self, request: ChatRequest, messages: list[Message]) -> Answer | None:
        """The answer to the same request, if it was never delivered."""
        for at, (earlier, known, answer) in enumerate(self._undelivered):
            if known == messages and (earlier.tools, earlier.options) == (request.tools, request.options):
                del self._undelivered[at]
                return answer
        return None

    async def _ask(self, messages: list[Message], request: ChatRequest) -> Reply:
        if self.limit is not None:
            self._refuse_for(self.limit)
        turns, most = len(self.speaker.conversation.turns), self._most_turns()
        if turns >= most:
            self._refuse_for(StopReason.MAX_TURNS)
        try:
            return await self.speaker.ask(messages, request.tools, request.options)
        except Exhausted as limit:
            self._refuse_for(limit.reason)
        except ModelFailure as error:
            self._ended.set()
            raise Refused("model_failed", str(error), 503) from error

    def _most_turns(self) -> int:
        of = self.speaker.conversation
        return of.settings.max_turns or (8 if of.env is None else of.env.max_turns)

    def _refuse_for(self, reason: StopReason) -> NoReturn:
        """Raise Refused; a program that goes on in spite of it is ended."""
        of = self.speaker.conversation
        self.limit = of.limit = of.limit or reason
        self._refusals += 1
        if self._refusals >= REFUSALS:
            self._ended.set()
        code = "context_length_exceeded" if reason is StopReason.CONTEXT_FULL else reason.value
        said = {
            StopReason.CONTEXT_FULL: "the conversation does not fit the context of the model",
            StopReason.MAX_TOKENS: "the tokens of this episode are used up (rollout.max_tokens)",
            StopReason.MAX_TURNS: f"the {self._most_turns()} messages of this episode are used up",
        }
        raise Refused(code, said.get(reason, reason.value))

    def _record_results(self, messages: list[Message]) -> None:
        """Tool results are what the program says they are; they stand with the turn that called."""
        results: dict[int, dict[str, ToolResult]] = {}
        replies: dict[int, Reply] = {}
        for message in messages:
            reply = self._calls.get(message.get("tool_call_id", ""))
            if message["role"] == "tool" and reply is not None:
                called, text = message["tool_call_id"], message["content"]
                results.setdefault(reply.turn, {})[called] = ToolResult(
                    called, message["name"], text, True, 0.0
                )
                replies[reply.turn] = reply
        for turn, given in results.items():
            calls = replies[turn].tool_calls
            if all(call.id in given for call in calls):
                self.speaker.acted(replies[turn], [given[call.id] for call in calls])
                for call in calls:
                    del self._calls[call.id]

    def _told(self, request: ChatRequest, messages: list[Message], reply: Reply) -> Answer:
        """The reply as programs get it, remembered for when it comes back."""
        calls = reply.tool_calls if request.tools else ()
        text = _told_text(reply, calls, request.options.stop)
        self._calls |= {call.id: reply for call in calls}
        start, end = reply.span
        answer = Answer(
            id=secrets.token_hex(12),
            model=request.model or "policy",
            created=int(time.time()),
            text=text,
            reply=reply,
            tool_calls=calls,
            calls=told_calls(calls),
            prompt_tokens=start,
            completion_tokens=end - start,
        )
        self.history.add(messages, reply.message, (text, reply.text), answer.calls)
        return answer


def _told_text(reply: Reply, calls: Sequence[ToolCall], stop: tuple[str, ...]) -> str:
    """Text of a reply beside its calls, without the text that ended it."""
    text = reply.text
    if calls:
        first = calls[0].raw
        content: Any = reply.message.get("content")
        at = text.find(first) if first else -1
        text = text[:at].rstrip() if at >= 0 else content if isinstance(content, str) else text
    for end in stop:
        if end in text:
            text = text[: text.index(end)]
    return text


def reward_of(body: Mapping[str, Any]) -> Any:
    """The reward in the body of a call-back: a number, or named parts.

    Raises:
        Refused: there is none.
    """
    reward = body.get("reward", body.get("parts"))
    numbers = reward.values() if isinstance(reward, Mapping) and reward else [reward]
    if not all(isinstance(value, int | float) for value in numbers):
        raise Refused("bad_reward", 'want {"reward": NUMBER} or {"parts": {"NAME": NUMBER, ...}}')
    return reward
