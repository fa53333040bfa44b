"""A server that scores prompts as vLLM does: a real socket, real HTTP, a real model's log-probabilities."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web


@dataclass
class ScoringServer:
    """Answers as `vllm serve` does on the routes that a teacher is asked on."""

    model: Any
    tokenizer: Any = None
    context: int | None = 4096
    """What `/v1/models` gives as max_model_len; None: it gives none, as servers other than vLLM."""
    key: str = ""
    troubles: list[int] = field(default_factory=list)
    """Status codes that the next requests for scores are answered with, first to last."""
    asked: list[list[int]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    _loop: asyncio.AbstractEventLoop | None = None

    async def models(self, request: web.Request) -> web.Response:
        context = {} if self.context is None else {"max_model_len": self.context}
        return web.json_response({"data": [{"id": "teacher", **context}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        ids = self.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": self.context})

    async def completions(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        if self.troubles:
            return web.json_response({"error": {"message": "no"}}, status=self.troubles.pop(0))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        ids = body["prompt"]
        self.asked.append(ids)
        with torch.no_grad():
            scores = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        places: list[Any] = [None]
        for at, token in enumerate(ids[1:]):
            places.append({str(token): {"logprob": float(scores[at, token]), "rank": 1, "decoded_token": ""}})
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": places}
        return web.json_response({"model": body["model"], "choices": [choice]})

    async def _serve(self, started: threading.Event) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.completions)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        await self._end.wait()
        await asyncio.sleep(0.1)  # who called at the last moment is let in, and seen to be gone
        await runner.cleanup()

    @contextmanager
    def running(self) -> Iterator[ScoringServer]:
        """Serve from a thread of its own, so that a run in this one can ask it."""
        started = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield self
        finally:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._end.set)
            thread.join(60)
