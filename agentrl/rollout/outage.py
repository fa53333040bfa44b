"""Pauses an environment while all of its episodes fail, and tells an outage from a bad prompt.

Machinery breaks for seconds or minutes: an engine restarts, a sandbox server is gone, a grader's service is
down. Then every episode fails, whatever its prompt, and neither slots nor prompts should be spent on it.
After `STREAK` failures in a row an environment is paused: nothing of it is started but single tries, at
growing intervals, until one succeeds; the others go on meanwhile. It knows nothing of samplers or files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.episode import Episode
from agentrl.errors import AgentRLError

STREAK = 8
"""Failures in a row, without a success between them, after which an environment is paused."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 60.0
"""Pause before the first try, and the longest one; it doubles with every try that fails."""
MISTAKE_LIMIT_S = 30.0
"""How long to try where nothing has worked yet, or where one prompt alone fails and no other can be drawn."""


@dataclass(slots=True)
class _Gate:
    """What is known of one environment."""

    successes: int = 0
    streak: int = 0
    counted: dict[str, int] = field(default_factory=dict[str, int])
    """By prompt: `successes` when a failure last counted against it."""
    prompts: set[str] = field(default_factory=set[str])
    """Those that failed since the last success."""
    failures: int = 0
    boundary: str = ""
    last: str = ""
    since: float | None = None
    """When the pause began; None while episodes are started freely."""
    delay: float = FIRST_DELAY_S
    burst: int = 1
    """Tries of the next interval: doubled while none fails, so that slow episodes fill their slots again."""
    left: int = 0
    """Tries that may start now."""
    tries: set[str] = field(default_factory=set[str])
    """Episodes that were started during the pause, and whose failure would lengthen it."""
    timer: asyncio.TimerHandle | None = None
    hopeless: bool = False


class Outages:
    """Which environments are paused.

    Args:
        environments: names of all environments of the run.
        fewest_prompts: a streak of failures of fewer different prompts is theirs, and pauses nothing.
        limit_s: how long everything may fail before `give_up` is called, in seconds.
        tell: told what changes, as values of a row of metrics.
        give_up: told the error when no environment has anything left that works.
        exhausted: whether an environment has no prompts left to draw.
        remedy: what to do once the cause is mended, for the error of `give_up`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        environments: Sequence[str],
        *,
        fewest_prompts: int = 1,
        limit_s: float = 600.0,
        tell: Callable[[Mapping[str, Any]], object] = lambda row: None,
        give_up: Callable[[AgentRLError], object] = lambda error: None,
        exhausted: Callable[[str], bool] = lambda environment: False,
        remedy: str = "run it again",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gates = {name: _Gate() for name in environments}
        self._fewest_prompts = fewest_prompts
        self._limit_s, self._tell, self._give_up = limit_s, tell, give_up
        self._exhausted, self._remedy, self._clock = exhausted, remedy, clock
        self.given_up: AgentRLError | None = None
        """What `give_up` was told."""
        self._opened = asyncio.Event()
        self.wake: Callable[[], None] = lambda: None
        """Called when an episode of a paused environment may be tried."""

    @property
    def paused(self) -> dict[str, str]:
        """The boundary at which everything fails, by environment."""
        return {name: gate.boundary for name, gate in self._gates.items() if gate.since is not None}

    @property
    def failures(self) -> dict[str, int]:
        """Episodes that failed, by environment; those without any are left out."""
        return {name: gate.failures for name, gate in self._gates.items() if gate.failures}

    def admits(self, environment: str) -> bool:
        """Whether an episode of the environment may be started now."""
        gate = self._gate(environment)
        return gate.since is None or gate.left > 0

    def started(self, environment: str, episode_id: str) -> None:
        """An episode was started; of a paused environment it is a try."""
        gate = self._gate(environment)
        if gate.since is None:
            return
        gate.tries.add(episode_id)
        gate.left -= 1
        if gate.left <= 0:
            gate.burst *= 2
            self._schedule(environment, gate)

    async def admission(self, environment: str, episode_id: str) -> None:
        """Wait until an episode of the environment may be started, and count it as started."""
        while not self.admits(environment):
            self._opened.clear()
            await self._opened.wait()
        self.started(environment, episode_id)

    def succeeded(self, episode: Episode) -> None:
        """An episode ended with a reward: its environment works."""
        gate = self._gate(episode.environment)
        gate.successes += 1
        if gate.since is None:
            gate.streak = 0
            gate.prompts.clear()
        elif episode.episode_id in gate.tries:
            self._open(episode.environment, gate)

    def failed(self, episode: Episode) -> bool:
        """An episode failed; returns whether that says something about its prompt.

        It does not while everything fails, nor when nothing of the environment has succeeded since the
        last failure that counted against the prompt.
        """
        assert episode.failure is not None
        gate = self._gate(episode.environment)
        gate.failures += 1
        gate.boundary = episode.failure.boundary
        gate.last = f"{episode.failure.error}: {episode.failure.message}"
        gate.streak += 1
        gate.prompts.add(episode.prompt_id)
        if gate.since is not None:
            self._try_failed(episode, gate)
            return False
        if gate.streak >= STREAK and len(gate.prompts) >= self._fewest_prompts:
            self._pause(episode.environment, gate)
            return False
        counts = 0 < gate.successes != gate.counted.get(episode.prompt_id)
        if counts:
            gate.counted[episode.prompt_id] = gate.successes
        return counts

    def has_worked(self, environment: str) -> bool:
        """Whether an episode of the environment has ended with a reward."""
        return self._gate(environment).successes > 0

    def one_prompt_fails(self, environment: str) -> bool:
        """Whether all failures since the last success are of one prompt."""
        return len(self._gate(environment).prompts) == 1

    def close(self) -> None:
        """Try nothing more; idempotent."""
        for gate in self._gates.values():
            if gate.timer is not None:
                gate.timer.cancel()

    def _gate(self, environment: str) -> _Gate:
        return self._gates.setdefault(environment, _Gate())

    def _pause(self, environment: str, gate: _Gate) -> None:
        gate.since, gate.delay, gate.burst, gate.hopeless = self._clock(), FIRST_DELAY_S, 1, False
        gate.tries.clear()
        self._tell(self._row(environment, gate, "paused"))
        self._schedule(environment, gate)

    def _open(self, environment: str, gate: _Gate) -> None:
        row = self._row(environment, gate, "back")
        gate.since, gate.streak = None, 0
        gate.tries.clear()
        gate.prompts.clear()
        if gate.timer is not None:
            gate.timer.cancel()
        self._tell(row)
        self._look_again()

    def _try_failed(self, episode: Episode, gate: _Gate) -> None:
        if episode.episode_id not in gate.tries:
            return  # it was in flight when the pause began, or another one of its burst has failed already
        assert gate.since is not None
        gate.tries.clear()
        gate.burst, gate.left, gate.delay = 1, 0, min(2 * gate.delay, LONGEST_DELAY_S)
        mistake = not gate.successes or len(gate.prompts) == 1  # rather than an outage
        limit_s = min(self._limit_s, MISTAKE_LIMIT_S) if mistake else self._limit_s
        gate.hopeless = self._clock() - gate.since >= limit_s
        if gate.hopeless and all(g.hopeless or self._exhausted(name) for name, g in self._gates.items()):
            self.given_up = AgentRLError(self._hopeless(episode.environment, gate))
            self._give_up(self.given_up)
        self._tell(self._row(episode.environment, gate, "waiting"))
        self._schedule(episode.environment, gate)

    def _hopeless(self, environment: str, gate: _Gate) -> str:
        seconds = self._clock() - (gate.since or 0.0)
        began = "nothing has worked yet" if not gate.successes else f"nothing has worked for {seconds:.0f} s"
        same = f" (all of prompt {next(iter(gate.prompts))})" if len(gate.prompts) == 1 else ""
        return (
            f"{began}: the last {gate.streak} episodes of {environment or 'the environment'} failed{same}, "
            f"the last one at the {gate.boundary}: {gate.last}; mend that and {self._remedy}"
        )

    def _schedule(self, environment: str, gate: _Gate) -> None:
        if gate.timer is not None:
            gate.timer.cancel()
        gate.timer = asyncio.get_running_loop().call_later(gate.delay, self._try, gate)

    def _try(self, gate: _Gate) -> None:
        gate.left = gate.burst
        self._look_again()

    def _look_again(self) -> None:
        self._opened.set()
        self.wake()

    def _row(self, environment: str, gate: _Gate, state: str) -> dict[str, Any]:
        assert gate.since is not None
        return {
            "environment": environment,
            "state": state,
            "boundary": gate.boundary,
            "failures": gate.streak,
            "seconds": self._clock() - gate.since,
            "retry_s": gate.delay,
            "last": gate.last,
        }

    def state_dict(self) -> dict[str, Any]:
        """What decides which failures count against their prompts, as plain values."""
        return {
            name: {"successes": gate.successes, "streak": gate.streak, "counted": dict(gate.counted)}
            for name, gate in self._gates.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; nothing is paused."""
        for name, saved in state.items():
            # A streak that was long enough for a pause begins anew: the outage may be over.
            streak = saved["streak"] if saved["streak"] < STREAK else 0
            self._gates[name] = _Gate(saved["successes"], streak, dict(saved["counted"]))

    def redo(self, environment: str, prompt_id: str, *, succeeded: bool, counted: bool) -> None:
        """Take an end of an earlier attempt into account; nothing is paused by it."""
        gate = self._gate(environment)
        if succeeded:
            gate.successes += 1
            gate.streak = 0
            return
        gate.streak = gate.streak + 1 if gate.streak + 1 < STREAK else 0
        if counted:
            gate.counted[prompt_id] = gate.successes
