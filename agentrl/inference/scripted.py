"""An engine that says what a script tells it to, for tests: exact log-probabilities, no torch.

A script is a list of replies, or a function from the request to a reply. A reply is a text, a list
of token ids, or a distribution `{text: probability}` that is really sampled from; its
log-probabilities are exact token by token (the mass of the replies that go on with this token,
relative to the mass of those that agree so far). Knows nothing of messages, tools or environments.
"""

from __future__ import annotations

import asyncio
import math
import random
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import ContextOverflow, PolicyUnavailable
from agentrl.inference.policy import FinishReason, Generation, Sampling
from agentrl.weights.handle import WeightHandle

Reply = str | Sequence[int] | Mapping[str, float]
"""A text, token ids, or texts with their probabilities."""


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What a script may look at when it decides on a reply."""

    prompt_ids: tuple[int, ...]
    prompt: str
    session: str
    turn: int
    """Messages this session has sampled before, from 0."""
    call: int
    """Calls of `generate` before this one, over all sessions."""
    version: int
    sampling: Sampling


Script = Callable[[ScriptedRequest], Reply] | Sequence[Reply]


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, and one end-of-text token, 256.

    Enough of the interface of a Hugging Face tokenizer for renderers and `ScriptedPolicy`.
    """

    eos_token = "<|end|>"
    eos_token_id = 256
    bos_token_id: int | None = None
    chat_template: str | None = None

    def __len__(self) -> int:
        return 257

    def get_added_vocab(self) -> dict[str, int]:
        """Texts that are encoded as one token of their own."""
        return {self.eos_token: self.eos_token_id}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        pieces = text.split(self.eos_token)
        ids = list(pieces[0].encode())
        for piece in pieces[1:]:
            ids += [self.eos_token_id, *piece.encode()]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Text of token ids; bytes that are not UTF-8 become replacement characters."""
        if self.eos_token_id not in token_ids:
            return bytes(list(token_ids)).decode(errors="replace")  # an array would give its memory
        end = b"" if skip_special_tokens else self.eos_token.encode()
        pieces = (end if token == self.eos_token_id else bytes((token,)) for token in token_ids)
        return b"".join(pieces).decode(errors="replace")


class ScriptedPolicy:
    """A `Policy` that follows a script.

    Args:
        script: replies, used in order over all calls and repeated when they run out, or a function
            of the request.
        tokenizer: turns replies into tokens; bytes by default.
        context_tokens: longest sequence.
        seconds: how long a call takes: seconds, or a function of the request and the number of
            tokens of its reply.
        sleep: waits that long; inject a fake clock's here.
        seed: of the replies drawn from distributions whose request has no seed.
    """

    def __init__(
        self,
        script: Script,
        *,
        tokenizer: Any = None,
        context_tokens: int = 1 << 20,
        seconds: float | Callable[[ScriptedRequest, int], float] = 0.0,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        seed: int = 0,
        version: int = 0,
    ) -> None:
        self._script = script
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.context_tokens = context_tokens
        self._seconds = seconds
        self._sleep = sleep
        self._seed = seed
        self.version = version
        self.attempt = 0
        self._calls = 0
        self._turns: dict[str, int] = {}
        self._closed = asyncio.Event()
        self._counters = dict.fromkeys(("requests", "sampled_tokens", "prefilled_tokens", "cancelled"), 0)
        self._running = 0

    async def start(self) -> None:
        """Nothing to start."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        """Follow the script. Half of the tokens get the version before the wait, half that after it."""
        if self._closed.is_set():
            raise PolicyUnavailable("the scripted policy was closed")
        room = self.context_tokens - len(prompt_ids)
        if room < 1:
            raise ContextOverflow(len(prompt_ids), self.context_tokens)
        request = self._request(prompt_ids, sampling, session)
        tokens, logprobs = self._reply(request)
        tokens, logprobs, reason = self._cut(tokens, logprobs, sampling, room)
        before = self.version
        await self._wait(request, len(tokens))
        half = (len(tokens) + 1) // 2
        versions = [before] * half + [self.version] * (len(tokens) - half)
        self._counters["sampled_tokens"] += len(tokens)
        return Generation(array("i", tokens), array("f", logprobs), array("i", versions), reason)

    async def release(self, session: str) -> None:
        """Forget a session."""
        self._turns.pop(session, None)

    async def load(self, weights: WeightHandle) -> None:
        """Take a version; there are no weights."""
        self.version, self.attempt = weights.version, weights.attempt

    async def close(self) -> None:
        """Fail the calls in flight."""
        self._closed.set()

    def statistics(self) -> dict[str, float]:
        """Counters since the start."""
        return {**self._counters, "running": float(self._running)}

    def _request(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> ScriptedRequest:
        turn = self._turns.get(session, 0)
        call = self._calls
        self._turns[session] = turn + 1
        self._calls += 1
        self._counters["requests"] += 1
        self._counters["prefilled_tokens"] += len(prompt_ids)
        prompt = self.tokenizer.decode(list(prompt_ids), skip_special_tokens=False)
        return ScriptedRequest(tuple(prompt_ids), prompt, session, turn, call, self.version, sampling)

    async def _wait(self, request: ScriptedRequest, tokens: int) -> None:
        seconds = self._seconds(request, tokens) if callable(self._seconds) else self._seconds
        self._running += 1
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._closed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._counters["cancelled"] += 1
            raise
        finally:
            self._running -= 1
            for wait in waits:
                wait.cancel()
        if self._closed.is_set():
            raise PolicyUnavailable("the scripted policy was closed while this message was sampled")

    def _reply(self, request: ScriptedRequest) -> tuple[list[int], list[float]]:
        if callable(self._script):
            reply = self._script(request)
        else:
            reply = self._script[request.call % len(self._script)]
        if isinstance(reply, str):
            reply = {reply: 1.0}
        if not isinstance(reply, Mapping):
            return list(reply), [0.0] * len(reply)
        choices = [(self.tokenizer.encode(text, add_special_tokens=False), p) for text, p in reply.items()]
        seed = request.sampling.seed
        key = f"{self._seed}:{request.call}" if seed is None else f"{seed}:{len(request.prompt_ids)}"
        chosen = random.Random(key).choices(range(len(choices)), [p for _, p in choices])[0]
        return choices[chosen][0], _chain(choices, chosen)

    def _cut(
        self, tokens: list[int], logprobs: list[float], sampling: Sampling, room: int
    ) -> tuple[list[int], list[float], FinishReason]:
        """Cut at the first stop text or token, or at the limit. A reply that ends by itself has stopped."""
        limit = min(sampling.max_new_tokens, room)
        for n in range(1, min(len(tokens), limit) + 1):
            text = self.tokenizer.decode(tokens[:n], skip_special_tokens=False) if sampling.stop else ""
            if tokens[n - 1] in sampling.stop_token_ids or any(stop in text for stop in sampling.stop):
                return tokens[:n], logprobs[:n], FinishReason.STOP
        reason = FinishReason.LENGTH if len(tokens) > limit else FinishReason.STOP
        return tokens[:limit], logprobs[:limit], reason


def _chain(choices: Sequence[tuple[list[int], float]], chosen: int) -> list[float]:
    """Log-probability of each token of the chosen reply, given the tokens before it. [N] nats."""
    tokens = choices[chosen][0]
    alive = [(ids, p) for ids, p in choices if p > 0.0]
    logprobs: list[float] = []
    for at, token in enumerate(tokens):
        mass = sum(p for _, p in alive)
        alive = [(ids, p) for ids, p in alive if len(ids) > at and ids[at] == token]
        logprobs.append(min(0.0, math.log(sum(p for _, p in alive) / mass)))
    return logprobs
