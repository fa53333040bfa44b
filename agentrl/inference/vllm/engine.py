"""vLLM servers as the policy: sessions, messages, versions, and updates while messages are in flight.

Tokens in, tokens out. The version of every token comes from the server itself, which labels what it
samples; labels change only while it is paused, so no token is ambiguous. This module knows nothing of
messages as text, tools or rewards, nothing of how weights travel (`transfer.py`), how a server is
started (`server.py`) or which servers are live (`fleet.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.errors import ContextOverflow, PolicyError, PolicyUnavailable, WeightSyncError
from agentrl.inference.policy import FinishReason, Generation, Sampling
from agentrl.inference.vllm.adapters import AdapterTransfer
from agentrl.inference.vllm.client import Received
from agentrl.inference.vllm.fleet import Fleet, Message, Replica
from agentrl.inference.vllm.server import ServerSpec, VLLMServer
from agentrl.inference.vllm.transfer import FileTransfer, each, make_transfer
from agentrl.weights.fingerprint import fingerprint
from agentrl.weights.handle import WeightHandle

logger = logging.getLogger(__name__)

STREAM_INTERVAL = 32
"""Tokens between two chunks of a message: what is lost at most when a server dies in the middle."""
MAX_LOST = 8
"""Servers a message may lose before it fails."""

_KEEP = {"mode": "keep", "clear_cache": "false"}
_RECOMPUTE = {"mode": "keep", "clear_cache": "true"}


@dataclass(slots=True)
class _Session:
    replica: Replica
    salt: str
    """Label of the weights whose keys the session may meet: those of its first message."""
    messages: int = 0


@dataclass(slots=True)
class _Finished:
    """The tokens of one message, over all servers that sampled some of it."""

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    versions: array[int] = field(default_factory=lambda: array("i"))
    top_ids: array[int] = field(default_factory=lambda: array("i"))
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))
    reason: FinishReason = FinishReason.LENGTH
    lost: int = 0
    """Servers it lost."""

    def add(self, received: Received, versions: Sequence[int]) -> None:
        """Append what one server sampled: the first tokens, as many as have versions."""
        likeliest = len(received.top_ids) // max(1, len(received.token_ids)) * len(versions)
        self.top_ids.extend(received.top_ids[:likeliest])
        self.top_logprobs.extend(received.top_logprobs[:likeliest])
        self.token_ids.extend(received.token_ids[: len(versions)])
        self.logprobs.extend(received.logprobs[: len(versions)])
        self.versions.extend(versions)
        if received.finish_reason == "stop":
            self.reason = FinishReason.STOP


def parse_label(label: str) -> tuple[int, int]:
    """(attempt, version) of a server's weight label, `attempt.version` or `attempt.version+fingerprint`.

    Raises:
        PolicyError: the server holds weights of somebody else.
    """
    attempt, _, version = label.partition("+")[0].partition(".")
    if not (attempt.isdigit() and version.isdigit()):
        raise PolicyError(f"a server holds weights labelled {label!r}, which this run did not put there")
    return int(attempt), int(version)


def token_versions(received: Received) -> list[int]:
    """Version of each token, from the labels of a finished message.

    Raises:
        PolicyError: the labels do not cover all tokens.
    """
    versions = [-1] * len(received.token_ids)
    for label, start, end in received.labels:
        versions[start:end] = [parse_label(label)[1]] * (end - start)
    if -1 in versions or len(versions) != len(received.token_ids):
        raise PolicyError("a server did not say which weights sampled each token")
    return versions


def request_body(
    token_ids: Sequence[int], sampling: Sampling, *, seed: int | None, salt: str, model: str = ""
) -> dict[str, Any]:
    """Body of one request to `/inference/v1/generate`; `model` names an adapter."""
    parameters: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        # One more than asked for: the sampled token takes a place, also where it is none of the likeliest.
        "logprobs": sampling.top_logprobs + 1 if sampling.top_logprobs else 0,
        # Only what `Sampling` names ends a message; special tokens count as text for stop texts.
        "ignore_eos": True,
        "skip_special_tokens": False,
        "stream_interval": STREAM_INTERVAL,
    }
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        parameters["stop_token_ids"] = list(sampling.stop_token_ids)
    if seed is not None:
        parameters["seed"] = seed % 2**63
    body = {"token_ids": list(token_ids), "sampling_params": parameters, "cache_salt": salt, "stream": True}
    return {**body, "model": model} if model else body


class VLLMPolicy:
    """A policy served by one or more vLLM servers. Implements `agentrl.inference.policy.Policy`.

    With the transfers `nccl` and `ipc`, a server that died comes back with the first weights and takes
    part again after the next update, since the learner's weights may be in the middle of a step; with
    `file` it gets the last version's file at once.

    Args:
        spec: what a server serves; one is started per replica.
        log_folder: where the servers' logs go.
        replicas: how many servers are started.
        gpus: devices of each replica; empty leaves the environment's.
        urls: running servers to attach to instead; `key` must be theirs.
        keep_keys: messages in flight keep keys and values of older versions after an update.
        start_limit_s: longest wait for a server to become healthy.
        update_limit_s: longest wait for one weight update.
        silence_limit_s: longest time without a byte in a message before its server counts as dead.
    """

    gives_top_logprobs = True

    def __init__(
        self,
        spec: ServerSpec,
        *,
        log_folder: Path,
        replicas: int = 1,
        gpus: Sequence[tuple[int, ...]] = (),
        urls: Sequence[str] = (),
        key: str = "",
        keep_keys: bool = True,
        start_limit_s: float = 600.0,
        update_limit_s: float = 300.0,
        silence_limit_s: float = 600.0,
    ) -> None:
        self._spec = spec
        self._keep_keys = keep_keys
        self._update_limit_s, self._start_limit_s = update_limit_s, start_limit_s
        self._fleet = Fleet(
            spec,
            gpus=list(gpus) or [spec.gpus] * replicas,
            urls=urls,
            key=key,
            log_folder=log_folder,
            start_limit_s=start_limit_s,
            silence_limit_s=silence_limit_s,
            synchronise=self._synchronise,
            warm_up=request_body([1, 1], Sampling(max_new_tokens=2), seed=None, salt="warm-up"),
        )
        if spec.adapters:
            self._transfer: Any = AdapterTransfer(spec.model, spec.adapters, self._in_flight)
        else:
            self._transfer = make_transfer(spec.transfer, spec.model, ranks_per_server=spec.tensor_parallel)
        self._sessions: dict[str, _Session] = {}
        self._version, self._attempt, self._updates = 0, 0, 0
        # A hub id has no files here: it is told by its name.
        self._fingerprint = (fingerprint(spec.model) or hashlib.sha256(spec.model.encode()).hexdigest())[:16]
        self._staged: Any = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._update_lock = asyncio.Lock()
        self._closed = False
        names = ("sampled_tokens", "prefilled_tokens", "requests", "resumed_messages", "update_seconds")
        self._counters = dict.fromkeys(names, 0.0)

    @property
    def version(self) -> int:
        """Version that a token sampled now would get."""
        return self._version

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and message together."""
        return self._fleet.context_tokens

    @property
    def servers(self) -> list[VLLMServer]:
        """The servers started here."""
        return [replica.server for replica in self._fleet.replicas if replica.server is not None]

    def endpoint(self) -> tuple[str, str]:
        """URL (with `/v1`) and key of a live server, for OpenAI clients.

        Raises:
            PolicyUnavailable: no server is live.
        """
        for replica in self._fleet.live:
            return f"{replica.client.url}/v1", replica.client.key
        raise PolicyUnavailable("no vLLM server is live")

    async def start(self) -> None:
        """Start or attach to all servers; see `Policy.start`."""
        if isinstance(self._transfer, FileTransfer) and Path(self._spec.model).is_dir():  # noqa: ASYNC240
            self._transfer.expect(self._spec.model)
        await self._fleet.start()

    async def close(self) -> None:
        """Stop the servers started here; messages in flight fail with `PolicyUnavailable`."""
        self._closed = True
        self._gate.set()
        await self._fleet.close()
        await self._transfer.close()

    # ---- messages ----

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        """Sample one message; see `Policy.generate`.

        A message whose server dies goes on elsewhere from the tokens whose version is certain.
        """
        room = self.context_tokens - len(prompt_ids)
        if room < 1:
            raise ContextOverflow(len(prompt_ids), self.context_tokens)
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        done = _Finished()
        self._counters["requests"] += 1
        while not await self._sample(prompt_ids, sampling, session, done):
            if done.lost >= MAX_LOST:
                raise PolicyUnavailable(f"a message lost its server {done.lost} times")
        self._counters["sampled_tokens"] += len(done.token_ids)
        return Generation(
            done.token_ids, done.logprobs, done.versions, done.reason, done.top_ids, done.top_logprobs
        )

    async def _sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, done: _Finished
    ) -> bool:
        """Let one server sample what is left of a message; whether the message ended."""
        state = await self._route(session)
        left = replace(sampling, max_new_tokens=sampling.max_new_tokens - len(done.token_ids))
        # A stream of its own for each part: the same numbers must not decide two tokens.
        seed = None if sampling.seed is None else sampling.seed + 7919 * len(done.token_ids)
        salt = state.salt if self._keep_keys else self._label()
        adapter = self._transfer.model(self._version)
        body = request_body([*prompt_ids, *done.token_ids], left, seed=seed, salt=salt, model=adapter)
        message = Message(Received(), self._version, first_of_session=state.messages == 0)
        state.messages += 1
        self._counters["prefilled_tokens"] += len(body["token_ids"])
        try:
            await self._stream(state.replica, message, body, sampling.top_logprobs)
        except PolicyUnavailable as error:
            if self._closed:
                raise
            logger.warning("%s; the message goes on from its tokens", error)
            self._counters["resumed_messages"] += 1
            if not await state.replica.client.healthy():
                self._fleet.lose(state.replica)
            self._keep_part(message, sampling, done)
        else:
            if message.again:
                # The update came before its first token: start over, with keys of the new version only.
                state.salt, state.messages = self._label(), 0
            elif message.received.finish_reason == "abort":
                self._keep_part(message, sampling, done)
            else:
                count = len(message.received.token_ids)
                same = [message.version] * count  # an adapter's name says whose tokens they are
                done.add(message.received, same if adapter else token_versions(message.received))
                return True
        return len(done.token_ids) >= sampling.max_new_tokens

    async def _stream(self, replica: Replica, message: Message, body: dict[str, Any], top: int) -> None:
        """Stream one message; cancelling it closes the connection, which aborts it on the server."""
        message.task = asyncio.create_task(replica.client.generate(body, message.received, top))
        replica.messages.add(message)
        try:
            await message.task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            if not message.again:
                raise PolicyUnavailable(f"{replica.name} was stopped") from None
        finally:
            replica.messages.discard(message)

    def _keep_part(self, message: Message, sampling: Sampling, done: _Finished) -> None:
        """Keep the tokens of a lost message whose version is certain: those before any update met it."""
        done.lost += 1
        received = message.received
        count = len(received.token_ids) if message.certain is None else message.certain
        if sampling.stop:
            # A stop text may have begun in the last tokens, and the next server could not see its
            # beginning: those are sampled again (every token has at least one byte).
            count = max(0, count - max(len(text.encode()) for text in sampling.stop))
        done.add(replace(received, labels=[], finish_reason=None), [message.version] * count)

    async def _route(self, session: str) -> _Session:
        """The session's server, or the least loaded one; returns while no update is going on."""
        limit_s = self._update_limit_s + self._start_limit_s
        while True:
            try:
                await asyncio.wait_for(self._gate.wait(), limit_s)
            except TimeoutError as error:
                raise PolicyUnavailable(f"a weight update held new messages for {limit_s:.0f} s") from error
            state = self._sessions.get(session)
            if state is None or not state.replica.live:
                replica = await self._fleet.least_loaded()
                if not self._gate.is_set():
                    continue
                await self.release(session)
                state = self._sessions[session] = _Session(replica, self._label())
                replica.sessions += 1
            return state

    async def release(self, session: str) -> None:
        """Forget a session; its keys and values age out of the server's cache."""
        state = self._sessions.pop(session, None)
        if state is not None:
            state.replica.sessions -= 1

    # ---- weights ----

    def _label(self) -> str:
        """Of the weights in force; before the first update it says which weights these are.

        A server that is attached to may hold the first weights of somebody else.
        """
        label = f"{self._attempt}.{self._version}"
        return label if self._updates else f"{label}+{self._fingerprint}"

    async def load(self, weights: WeightHandle) -> None:
        """Pause, update and resume all servers; messages in flight go on. See `Policy.load`."""
        try:
            staged = await asyncio.wait_for(self._transfer.prepare(weights.source), self._update_limit_s)
        except TimeoutError as error:
            limit = f"{self._update_limit_s:.0f} s"
            raise WeightSyncError(f"version {weights.version} was not staged within {limit}") from error
        if not self._fleet.healthy:
            await self._fleet.least_loaded()  # one may be starting again
        async with self._update_lock:
            started = time.monotonic()
            self._gate.clear()
            try:
                await self._update(weights, staged)
            finally:
                self._gate.set()
                await self._fleet.announce()
            self._counters["update_seconds"] += time.monotonic() - started

    def _in_flight(self) -> set[int]:
        """Versions that messages in flight began with."""
        return {message.version for replica in self._fleet.replicas for message in replica.messages}

    async def _update(self, weights: WeightHandle, staged: Any) -> None:
        replicas = self._fleet.healthy
        limit_s = self._update_limit_s
        label = f"{weights.attempt}.{weights.version}"
        errors = {} if self._transfer.apart else await self._pause(replicas)
        ready = [replica for replica in replicas if replica.name not in errors]
        if ready:
            clients = [replica.client for replica in ready]
            errors |= await self._transfer.send(clients, staged, label, limit_s)
        updated = [replica for replica in ready if replica.name not in errors]
        if updated:
            self._version, self._attempt = weights.version, weights.attempt
            self._staged, self._updates = staged, self._updates + 1
            self._transfer.take(staged, label, weights.version)
        if not self._transfer.apart:
            clients = [replica.client for replica in updated]
            errors |= await each(clients, lambda client: client.post("/resume", limit_s=limit_s))
        self._settle(replicas, errors, weights.version)

    async def _pause(self, replicas: Sequence[Replica]) -> dict[str, Exception]:
        """Stop sampling between two tokens, on as many servers as can; the errors of the others."""
        for message in (message for replica in replicas for message in replica.messages):
            if message.certain is None:
                message.certain = len(message.received.token_ids)
        query = _KEEP if self._keep_keys else _RECOMPUTE
        errors = await each(
            [replica.client for replica in replicas],
            lambda client: client.post("/pause", query=query, limit_s=self._update_limit_s),
        )
        _start_over([replica for replica in replicas if replica.name not in errors])
        return errors

    def _settle(self, replicas: Sequence[Replica], errors: dict[str, Exception], version: int) -> None:
        """Let updated replicas serve, start failed ones again."""
        reasons = "; ".join(f"{name}: {error}" for name, error in errors.items())
        for replica in replicas:
            if replica.name in errors:
                replica.unsure = True  # its label may be older than what it was sent
                self._fleet.lose(replica)
            elif replica.live or replica.waits_for_weights:
                self._fleet.serve(replica)
        if len(errors) == len(replicas):
            raise WeightSyncError(f"version {version} reached no server: {reasons or 'none is live'}")
        if errors:
            logger.warning("version %d did not reach every server: %s", version, reasons)

    async def _synchronise(self, replica: Replica) -> bool:
        """Give a server that came up the weights of the current version; whether it may serve now."""
        async with self._update_lock:
            serves = await self._give_weights(replica)
            if serves:
                await self._transfer.restore(replica.client, self._update_limit_s)
            return serves

    async def _give_weights(self, replica: Replica) -> bool:
        # Beside adapters that are served apart, a server keeps the first weights.
        apart = self._transfer.apart
        updated = self._updates > 0 and not apart
        label = await replica.client.label()
        wanted = f"0.0+{self._fingerprint}" if apart else self._label()
        if label == wanted and not replica.unsure:
            return True
        fresh = label == "default" and not updated and not replica.unsure
        if fresh and (replica.server is not None or await self._serves_our_model(replica)):
            await replica.client.post("/update_weight_version", {"new_version": wanted}, limit_s=30.0)
            return True
        if updated and not isinstance(self._transfer, FileTransfer):
            replica.waits_for_weights = True
            return False
        # A server that was started again, or an attached one that holds somebody else's weights.
        staged = self._staged if updated else await self._first_weights(replica, label)
        await replica.client.post("/pause", query=_RECOMPUTE, limit_s=self._update_limit_s)
        errors = await self._transfer.send([replica.client], staged, wanted, self._update_limit_s)
        if errors:
            replica.unsure = True
            raise WeightSyncError(f"{replica.name} could not take version {self._version}: {errors}")
        await replica.client.post("/resume", limit_s=self._update_limit_s)
        replica.unsure = False
        return True

    async def _serves_our_model(self, replica: Replica) -> bool:
        """Whether an attached server was started with the model of this policy."""
        root, model = await replica.client.root(), self._spec.model
        return root == model or await asyncio.to_thread(_same_folder, root, model)

    async def _first_weights(self, replica: Replica, label: str) -> Any:
        """The weights before the first update, to be sent to a server that holds others."""
        there = await asyncio.to_thread(os.path.isdir, self._spec.model)
        if not (there and isinstance(self._transfer, FileTransfer)):
            raise PolicyUnavailable(
                f"{replica.name} ({replica.client.url}) serves {await replica.client.root()!r} with weights "
                f"labelled {label!r}, not {self._spec.model!r}: start it again with that model, or name a "
                "folder of weights that can be sent to it by file"
            )
        return await self._transfer.prepare(self._spec.model)

    async def sleep(self) -> None:
        """Give the GPU's memory to the learner: weights to the host, keys dropped. Messages wait."""
        self._gate.clear()
        errors = await each(
            [replica.client for replica in self._fleet.live],
            lambda client: client.post(
                "/sleep", query={"level": "1", "mode": "keep"}, limit_s=self._update_limit_s
            ),
        )
        if errors:
            raise PolicyUnavailable(f"servers did not go to sleep: {errors}")

    async def wake(self) -> None:
        """Take the GPU's memory back; messages go on."""
        errors = await each(
            [replica.client for replica in self._fleet.live],
            lambda client: client.post("/wake_up", limit_s=self._update_limit_s),
        )
        self._gate.set()
        if errors:
            raise PolicyUnavailable(f"servers did not wake up: {errors}")

    def statistics(self) -> dict[str, float]:
        """Counters since the start; see `Policy.statistics`."""
        return {
            **self._counters,
            "updates": float(self._updates),
            "restarts": float(self._fleet.restarts),
            "running": float(sum(len(replica.messages) for replica in self._fleet.replicas)),
            "replicas_live": float(len(self._fleet.live)),
        }


def _same_folder(one: str, other: str) -> bool:
    return os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other)


def _start_over(replicas: Sequence[Replica]) -> None:
    """Abort messages that begin a session and have no token yet; they are sent again after the update.

    Part of their prompt may have been computed with the old weights, and a new episode must not meet
    older keys.
    """
    for replica in replicas:
        for message in replica.messages:
            if message.first_of_session and not message.received.token_ids and message.task is not None:
                message.again = True
                message.task.cancel()
