"""A teacher that is a vLLM server: what it says of each token that an episode's policy sampled.

The orchestrator asks, so that the learner does no HTTP; the answers travel with the episode, as the
log-probabilities of its sampler do. It knows nothing of losses.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.episode import Episode, Failure, Segment, StopReason
from agentrl.errors import ConfigError, PolicyError, PolicyUnavailable
from agentrl.inference.vllm.client import ServerRefused, VLLMClient

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 15.0
"""Wait before the second try of a request, doubled for each further one, and the longest."""
TEXTS = (
    "Compute 7*8+1, then print(x) in Python:\n\tfor i in range(10):\n\t\tx += i  # 1234567890\n",
    'Grüße, señor — naïve café; "quotes" \\boxed{57} 日本語 привет 🙂 <tag attr="1">&amp;</tag>',
)
"""Encoded by both sides before a run, besides the text of every token."""
IDS_AT_ONCE = 1024
"""Tokens whose text is encoded in one request."""


class ServedTeacher:
    """Scores the sampled tokens of episodes on one vLLM server.

    Args:
        url: `http://host:port`.
        key: what its routes ask for.
        at_once: segments scored at the same time.
        limit_s: how long one may take, tries included, in seconds.
    """

    def __init__(self, url: str, key: str = "", *, at_once: int = 8, limit_s: float = 300.0) -> None:
        self._client = VLLMClient(url.rstrip("/").removesuffix("/v1"), key, name="the teacher")
        self._slots, self._limit_s = asyncio.Semaphore(at_once), limit_s
        self._model = ""

    async def start(self, tokenizer: Any, context_tokens: int) -> None:
        """Prove that the server can score what the policy samples.

        Args:
            tokenizer: of the policy; the server must encode the text of each of its tokens alike.
            context_tokens: length of the longest episode.

        Raises:
            PolicyUnavailable: the server does not answer.
            ConfigError: it has another tokenizer, too short a context, or gives no log-probabilities.
        """
        limit_s = self._limit_s
        self._model, context = await self._client.model(limit_s=limit_s)
        if context <= context_tokens:
            raise ConfigError(
                f"the teacher at {self._client.url} reads {context} tokens, and it scores an episode of "
                f"{context_tokens} in {context_tokens + 1}: start it with --max-model-len "
                f"{context_tokens + 1}, or lower engine.context_tokens"
            )
        for text in (*TEXTS, *_texts(tokenizer)):
            # Not verbose: no model reads these texts, however long they are.
            own = list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
            theirs = await self._encode(text)
            if theirs != own:
                at = next(i for i, token in enumerate([*own, None]) if [token] != theirs[i : i + 1])
                raise ConfigError(
                    f"the teacher at {self._client.url} has another tokenizer than model.path: of "
                    f"{text[:40]!r}... it makes {theirs[at : at + 4]} at place {at}, where the model has "
                    f"{own[at : at + 4]}; a teacher must have the same token ids"
                )
        await self._ask(tokenizer.encode(TEXTS[0], add_special_tokens=False))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def score(self, episode: Episode) -> Episode:
        """The episode with what the teacher says of its sampled tokens; failed where it says nothing.

        Nothing is asked of failed episodes, nor of segments that are not learned from.
        """
        if episode.failure is not None:
            return episode
        asked = [asyncio.ensure_future(self._scored(segment)) for segment in episode.segments]
        try:
            segments = await asyncio.gather(*asked)
        except PolicyError as error:
            for one in asked:  # nobody wants the rest, and it would keep others waiting
                one.cancel()
            # A connection under way is closed by its task alone.
            await asyncio.gather(*asked, return_exceptions=True)
            failure = Failure("teacher", type(error).__name__, str(error))
            return replace(episode, failure=failure, reward=None, stop_reason=StopReason.FAILED)
        return replace(episode, segments=tuple(segments))

    async def _scored(self, segment: Segment) -> Segment:
        if not segment.trainable or not segment.num_sampled:
            return segment
        end = segment.loss_mask.rindex(1) + 1
        async with self._slots:
            logprobs = await self._patiently(segment.token_ids[:end].tolist())
        kept = [value for value, sampled in zip(logprobs, segment.loss_mask, strict=False) if sampled]
        return replace(segment, teacher_logprobs=array("f", kept))

    async def _patiently(self, token_ids: Sequence[int]) -> list[float]:
        """`_ask`, again while the server is gone or busy and time is left."""
        delay, loop = FIRST_DELAY_S, asyncio.get_running_loop()
        deadline = loop.time() + self._limit_s
        while True:
            try:
                return await self._ask(token_ids, max(0.1, deadline - loop.time()))
            except PolicyError as error:
                passing = isinstance(error, PolicyUnavailable) or (
                    isinstance(error, ServerRefused) and (error.status == 429 or error.status >= 500)
                )
                if not passing or loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)

    async def _ask(self, token_ids: Sequence[int], limit_s: float | None = None) -> list[float]:
        """[T] log-probabilities of T tokens, each given those before it; 0.0 for the first.

        Raises:
            PolicyUnavailable: no answer in time.
            PolicyError: the answer is none.
        """
        body = {
            "model": self._model,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        answer = await self._client.post("/v1/completions", body, limit_s=limit_s or self._limit_s)
        try:
            (choice,) = answer["choices"]
            return _of_tokens(token_ids, choice["prompt_logprobs"])
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(
                f"the teacher at {self._client.url} gave no log-probabilities of the {len(token_ids)} tokens "
                f"of a prompt ({error!r:.200}); a vLLM server does (prompt_logprobs of /v1/completions)"
            ) from error

    async def _encode(self, text: str) -> list[int]:
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        try:
            answer = await self._client.post("/tokenize", body, limit_s=self._limit_s)
            return [int(token) for token in answer["tokens"]]
        except (ServerRefused, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the teacher at {self._client.url} does not tell how it encodes text, so nothing shows that "
                f"it has the model's token ids: /tokenize of a vLLM server does ({error!r:.200})"
            ) from error


def _texts(tokenizer: Any) -> Iterator[str]:
    """The texts of all tokens of a tokenizer, many at once."""
    for start in range(0, len(tokenizer), IDS_AT_ONCE):
        yield tokenizer.decode(list(range(start, min(start + IDS_AT_ONCE, len(tokenizer)))))


def _of_tokens(token_ids: Sequence[int], places: Sequence[Mapping[str, Any] | None]) -> list[float]:
    """[T] of vLLM's answer: nothing of the first token, then a table by token id for each place.

    Raises:
        ValueError: a place is missing, or of another token.
    """
    if len(places) != len(token_ids):
        raise ValueError(f"{len(places)} places for {len(token_ids)} tokens")
    found = [0.0]
    for token, place in zip(token_ids[1:], places[1:], strict=True):
        if place is None or str(token) not in place:
            raise ValueError(f"a place of token {token} has {list(place or ())[:4]}")
        found.append(float(place[str(token)]["logprob"]))
    return found
