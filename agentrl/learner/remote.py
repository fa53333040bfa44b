"""A learner in processes elsewhere, one per rank, behind the methods of `Learner`.

Every rank runs each call on the same arguments; the weights are split among them (`Ranks.shard`). How calls
travel is the business of a `RankHandle`: through pipes (`learner.process`), or by Ray (`learner.actors`). A
rank that dies or stalls is named, and the others are ended with it: a collective cannot go on without one of
its members.
"""

from __future__ import annotations

import atexit
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from agentrl import errors
from agentrl.config.settings import ModelSettings
from agentrl.errors import AgentRLError, LearnerError, LearnerLost, StallError

if TYPE_CHECKING:
    from agentrl.learner.weight_source import WeightLink

GRACE_S = 10.0
"""After one rank fails, how long the others may take to fail or finish too before they are ended."""
POLL_S = 0.2
Answer: TypeAlias = tuple[str, Any]
"""("done", result), or ("failed", (class, text)): not every exception survives a process border."""


BROKEN = "broken"
"""In place of the class of an error that is none of this package's; told as `LearnerError`."""


class RankHandle(Protocol):
    """One rank, as it is seen from the run."""

    def send(self, message: Any) -> None:
        """Give it a packed call; may block while the rank does not read. A dead one is no error here."""
        ...

    def poll(self, seconds: float) -> bool:
        """Whether it has answered, or is dead; waits a little."""
        ...

    def receive(self) -> Answer:
        """Its answer.

        Raises:
            EOFError: it is dead; says how it died.
        """
        ...

    def kill(self) -> None:
        """End it at once; one that is dead is fine."""
        ...

    def close(self, limit_s: float) -> None:
        """Wait for its end, then kill it; what was held for it is let go."""
        ...


def _on_every_rank(name: str) -> Callable[..., Any]:
    def call(self: RemoteLearner, *arguments: Any, **options: Any) -> Any:
        return self._call(name, *arguments, **options)

    call.__doc__ = f"See `Learner.{name}`."
    return call


class RemoteLearner:
    """`Learner` on ranks that were started; `close` it, or use it as a context.

    Args:
        ranks: in their order, started as they are drawn; each answers once when it is ready.
        pack: makes what all ranks are sent of a message, once.
        limit_s: longest wait for one call.

    Raises:
        ConfigError: the model cannot be loaded, or a setting makes no sense.
        StallError: a rank did not become ready within the limit.
        LearnerError: a rank died before it was ready.
    """

    def __init__(self, ranks: Iterable[RankHandle], pack: Callable[[Any], Any], limit_s: float) -> None:
        self._ranks: list[RankHandle] = []
        self._pack, self._limit_s = pack, limit_s
        self._senders: list[threading.Thread] = []
        # Before multiprocessing's own handler, which waits without a limit for ranks that do not heed it.
        atexit.register(self.kill)
        self._ranks.extend(ranks)
        try:
            self._collect("become ready", limit_s)
        except LearnerLost as error:  # it would die again
            raise LearnerError(str(error)) from None

    def __enter__(self) -> RemoteLearner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    step, score, save, load = map(_on_every_rank, ("step", "score", "save", "load"))
    saved, save_weights, publish = map(_on_every_rank, ("saved", "save_weights", "publish"))
    publish_bytes = _on_every_rank("publish_bytes")

    def transmit(self, link: WeightLink, label: str) -> None:
        """See `Learner.transmit`; a rank that does not come to it is lost with the others."""
        try:
            # The ranks know better than this process who is missing, so they are given time to say it.
            self._call("transmit", link, label, limit_s=link.limit_s + GRACE_S)
        except StallError as error:
            raise LearnerLost(str(error)) from error

    def close(self) -> None:
        """End the ranks. Closing twice is fine."""
        self._send(None, GRACE_S)
        self._end(GRACE_S)

    def kill(self) -> None:
        """End the ranks at once; from any thread, also in the middle of a call, which then fails."""
        for rank in list(self._ranks):
            rank.kill()

    def _end(self, limit_s: float = 0.0) -> None:
        atexit.unregister(self.kill)
        deadline = time.monotonic() + limit_s
        for rank in self._ranks:
            rank.close(max(0.0, deadline - time.monotonic()))
        # Who still writes to a rank fails now that it is dead.
        for thread in self._senders:
            thread.join(GRACE_S)
        self._ranks = []

    def _call(self, method: str, *arguments: Any, limit_s: float = 0.0, **options: Any) -> Any:
        if not self._ranks:
            raise LearnerLost("the learner's processes have ended")
        limit_s = limit_s or self._limit_s
        stuck = self._send((method, arguments, options), limit_s)
        if stuck:
            self._end()
            raise StallError(f"learner rank {stuck[0]} to take the call of {method}", limit_s)
        return self._collect(method, limit_s)

    def _send(self, message: Any, limit_s: float) -> list[int]:
        """Send to all ranks; returns those that did not read it. A dead one shows when it should answer."""
        packed = self._pack(message)
        # Each wait has a thread of its own: a rank that does not read holds up nobody else.
        threads = [threading.Thread(target=rank.send, args=(packed,), daemon=True) for rank in self._ranks]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + limit_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._senders = [thread for thread in threads if thread.is_alive()]
        return [rank for rank, thread in enumerate(threads) if thread.is_alive()]

    def _collect(self, method: str, limit_s: float) -> Any:
        """The first rank's answer, once every rank has answered."""
        deadline = time.monotonic() + limit_s
        answers: dict[int, Answer] = {}
        while len(answers) < len(self._ranks):
            for rank, handle in enumerate(self._ranks):
                if rank in answers or not handle.poll(POLL_S):
                    continue
                try:
                    answers[rank] = handle.receive()
                except EOFError as error:
                    answers[rank] = ("died", f"learner rank {rank} died ({error})")
                if answers[rank][0] != "done":
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            missing = [rank for rank in range(len(self._ranks)) if rank not in answers]
            if missing and time.monotonic() > deadline:
                self._end()
                self._raise(answers, silent=missing)
                raise StallError(f"learner rank {missing[0]} to {method}", limit_s)
        if any(kind == "died" for kind, _ in answers.values()) or method == "become ready":
            self._raise(answers, end=True)
        self._raise(answers)
        return answers[0][1]

    def _raise(self, answers: dict[int, Answer], *, end: bool = False, silent: Sequence[int] = ()) -> None:
        """Raise what a rank reported; a death first, for the others fail because of it."""
        failed = sorted((kind != "died", rank) for rank, (kind, _) in answers.items() if kind != "done")
        if not failed:
            return
        kind, payload = answers[failed[0][1]]
        if end:
            self._end()
        if kind == "died":
            raise LearnerLost(str(payload))
        name, text = cast("tuple[str, str]", payload)
        if silent and name == BROKEN:  # as a collective is whose other side is gone
            raise LearnerLost(f"{text} (learner rank {silent[0]} did not answer at all)")
        if name == "LearnerLost":
            self._end()
        if silent:
            text += f" (learner rank {silent[0]} did not answer at all)"
        raise errors.told(name, text, LearnerError)


@dataclass(frozen=True, slots=True)
class RankSetup:
    """What a process needs to become one rank of a learner."""

    rank: int
    size: int
    """How many there are."""
    place: str
    """Where they meet: a URL as `torch.distributed` has it, or HOST:PORT of a store."""
    limit_s: float
    """Longest wait of a collective."""
    arguments: tuple[Any, ...]
    """Of `Learner`, as are the options."""
    options: dict[str, Any]


def join(setup: RankSetup, model: ModelSettings, store: Any = None) -> Any:
    """The `Learner` of this process, on the rank's own device; a collective.

    Args:
        setup: which rank of what.
        model: the settings with that device.
        store: at which the ranks meet; None takes the URL of the setup.
    """
    import torch

    from agentrl.learner.learner import Learner
    from agentrl.learner.ranks import Ranks

    ranks = Ranks(setup.rank, setup.size)
    if setup.size > 1:
        gpu = torch.device(model.device).type == "cuda"
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo",
            rank=setup.rank,
            world_size=setup.size,
            timeout=timedelta(seconds=setup.limit_s),
            **({"store": store} if store else {"init_method": setup.place}),
        )
        ranks = Ranks.of(setup.rank, setup.size, setup.arguments[1].sequence_parallel)
    return Learner(model, *setup.arguments[1:], **setup.options, ranks=ranks)


def answer(
    learner: Any, rank: int, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Answer:
    """Run a method of a rank's learner; the first rank's result is that of the call."""
    try:
        result = getattr(learner, method)(*arguments, **options)
    except Exception as error:  # the run must learn of it, whatever it is
        return report(rank, error)
    return ("done", result if rank == 0 else None)


def report(rank: int, error: Exception) -> Answer:
    """An error in words."""
    if isinstance(error, AgentRLError) and not isinstance(error, StallError):
        return ("failed", (type(error).__name__, str(error)))
    text = "".join(traceback.format_exception(error))
    return ("failed", (BROKEN, f"learner rank {rank}: {type(error).__name__}: {error}\n{text}"))
