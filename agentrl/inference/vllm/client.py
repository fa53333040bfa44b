"""HTTP client of one vLLM server: tokens in, tokens out, and the routes that change its weights.

It knows the server's routes and error texts. It does not know sessions, replicas or the order of an
update; those belong to `engine.py` and `transfer.py`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrl.errors import ContextOverflow, PolicyError, PolicyUnavailable

if TYPE_CHECKING:
    import aiohttp

CONNECT_LIMIT_S = 10.0
NEEDED = "VLLM_SERVER_DEV_MODE=1 vllm serve ... --enable-scale-out --logprobs-mode processed_logprobs"


class ServerRefused(PolicyError):
    """A server answered with an error: the request is wrong, not the server.

    Args:
        message: what it said.
        status: of the HTTP answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Received:
    """One message as it arrives: N tokens so far."""

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    labels: list[tuple[str, int, int]] = field(default_factory=list)
    """Spans (weight label, start, end) over the tokens; known when the message has ended."""
    finish_reason: str | None = None
    top_ids: array[int] = field(default_factory=lambda: array("i"))
    """[N k]"""
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))
    """[N k]"""


class VLLMClient:
    """Talks to one server.

    Args:
        url: `http://host:port`.
        key: what every route asks for.
        name: how errors call the server.
        silence_limit_s: longest time without a byte before the server counts as dead.
    """

    def __init__(self, url: str, key: str, *, name: str, silence_limit_s: float = 600.0) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.name = name
        self.silence_limit_s = silence_limit_s
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            # Each message holds a connection of its own for as long as it is sampled: no limit here. None
            # is used twice: the server closes idle ones, and a request may be on its way just then.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_LIMIT_S),
            )
        return self._session

    async def close(self) -> None:
        """Close the connections; messages in flight fail."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _lost(self, what: str, error: BaseException) -> PolicyUnavailable:
        import aiohttp

        if isinstance(error, TimeoutError):
            reason = "did not answer within its limit"
        elif isinstance(error, aiohttp.ClientConnectorError):
            reason = "refused the connection: it is not running (any more)"
        else:
            reason = f"broke the connection ({type(error).__name__}: {error})"
        return PolicyUnavailable(f"{self.name} ({self.url}) {reason} while {what}")

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, what: str, *, limit_s: float | None, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; connection errors become `PolicyUnavailable`, error answers `ServerRefused`."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=limit_s, sock_connect=CONNECT_LIMIT_S, sock_read=self.silence_limit_s
        )
        try:
            async with self._open().request(
                method, self.url + path, timeout=timeout, **arguments
            ) as response:
                if response.status >= 400:
                    raise _refusal(self.name, path, response.status, await response.text())
                yield response
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._lost(what, error) from error

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        limit_s: float,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """Post to a control route.

        Raises:
            PolicyUnavailable: no answer within `limit_s`.
            ServerRefused: the server answered with an error.
        """
        what = f"waiting for {path}"
        async with self._request(
            "POST", path, what, limit_s=limit_s, json=body or {}, params=query or {}
        ) as response:
            text = await response.text()
        try:
            return json.loads(text)
        except ValueError:
            return text  # some routes answer a sentence

    async def get(self, path: str, *, limit_s: float) -> Any:
        """Get a control route; see `post`."""
        async with self._request("GET", path, f"waiting for {path}", limit_s=limit_s) as response:
            text = await response.text()
            return json.loads(text) if text else None

    async def healthy(self, *, limit_s: float = 5.0) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            await self.get("/health", limit_s=limit_s)
        except PolicyError:
            return False
        return True

    async def model(self, *, limit_s: float = 10.0) -> tuple[str, int]:
        """Name the model is served under, and its context in tokens.

        Raises:
            PolicyError: it serves no model, or does not say how long its context is; vLLM does both.
        """
        answer = await self.get("/v1/models", limit_s=limit_s)
        try:
            first = answer["data"][0]
            return first["id"], int(first["max_model_len"])
        except (LookupError, TypeError, ValueError) as error:
            raise PolicyError(
                f"{self.name} ({self.url}) answers /v1/models without a model and its max_model_len, which a "
                f"vLLM server (`vllm serve MODEL`) gives: {str(answer)[:200]}"
            ) from error

    async def root(self, *, limit_s: float = 10.0) -> str:
        """The model the server was started with: a path or a hub id."""
        first = (await self.get("/v1/models", limit_s=limit_s))["data"][0]
        return str(first.get("root") or first["id"])

    async def paused(self, *, limit_s: float = 10.0) -> bool:
        """Whether somebody paused the server and did not resume it."""
        return bool((await self.get("/is_paused", limit_s=limit_s))["is_paused"])

    async def label(self, *, limit_s: float = 10.0) -> str:
        """The label of the weights the server holds.

        Raises:
            PolicyError: the server was not started with the routes training needs.
        """
        try:
            return str((await self.get("/weight_info", limit_s=limit_s))["weight_version"])
        except ServerRefused as error:
            raise PolicyError(
                f"{self.name} ({self.url}) cannot take weights; start it as: {NEEDED}"
            ) from error

    async def generate(self, body: Mapping[str, Any], received: Received, top: int = 0) -> None:
        """Sample one message into `received`, as it arrives, with the `top` likeliest tokens of each place.

        Raises:
            PolicyUnavailable: the server died; `received` keeps what came before.
            ServerRefused: the request is wrong.
            ContextOverflow: the prompt does not fit.
        """
        async with self._request(
            "POST", "/inference/v1/generate", "sampling a message", limit_s=None, json=body
        ) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    self._take(json.loads(line[6:]), received, top)
        if received.finish_reason is None:
            raise PolicyUnavailable(f"{self.name} ({self.url}) ended a message in the middle")

    def _take(self, chunk: dict[str, Any], received: Received, top: int) -> None:
        if "error" in chunk:
            raise PolicyUnavailable(f"{self.name} ({self.url}) failed in a message: {chunk['error']}")
        for choice in chunk["choices"]:
            token_ids = choice["token_ids"] or []
            content = (choice["logprobs"] or {}).get("content") or []
            if len(content) != len(token_ids):
                raise PolicyError(f"{self.name} sent {len(token_ids)} tokens with {len(content)} log-probs")
            received.token_ids.extend(token_ids)
            received.logprobs.extend(item["logprob"] for item in content)
            for item in content if top else ():
                likeliest = _likeliest(item, top)
                if len(likeliest) < top:
                    raise PolicyError(f"{self.name} sent {len(likeliest)} of {top} log-probs of a place")
                received.top_ids.extend(token for _, token in likeliest)
                received.top_logprobs.extend(logprob for logprob, _ in likeliest)
            if choice["finish_reason"] is not None:
                received.finish_reason = choice["finish_reason"]
                received.labels = [_span(item) for item in choice["weight_versions"] or []]


def _likeliest(item: Mapping[str, Any], top: int) -> list[tuple[float, int]]:
    """The `top` likeliest tokens of a place.

    A server lists the sampled token first, likely or not, and the likeliest after it: one more was asked for.
    """
    found = {int(entry["token_id"]): float(entry["logprob"]) for entry in item["top_logprobs"]}
    return sorted(((logprob, token) for token, logprob in found.items()), key=lambda one: -one[0])[:top]


def _span(item: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(item["version"]), int(item["start"]), int(item["end"])


_TOO_LONG = re.compile(
    r"(?:length|tokens?)[^0-9]{0,40}(\d+).*?(?:maximum|max_model_len|context)[^0-9]{0,60}(\d+)", re.S
)


def _refusal(name: str, path: str, status: int, text: str) -> PolicyError:
    """The typed error of an error answer."""
    found = _TOO_LONG.search(text)
    if status == 400 and found:
        return ContextOverflow(int(found[1]), int(found[2]))
    if status == 401:
        return ServerRefused(f"{name} refuses the key", status)
    if status >= 500 and "EngineDead" in text:
        return PolicyUnavailable(f"the engine of {name} died: {text[:300]}")
    return ServerRefused(f"{name} answered {path} with {status}: {text[:500]}", status)
