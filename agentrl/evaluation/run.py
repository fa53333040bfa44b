"""The evaluation loop: k episodes of every problem, each with a seed of its own, kept as they finish.

The seed of an episode depends on the evaluation's seed, the problem and the draw alone, so two evaluations
with one seed are paired, and one that was killed goes on as if it had not been. An episode whose machinery
broke is played again, after a pause, and at last with another seed; what fails all the same is counted, never
graded. Knows nothing of command lines and files: records go to a function.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.errors import AgentRLError
from agentrl.evaluation.results import (
    REFUSED,
    SAME_SEED_ATTEMPTS,
    Record,
    by_problem,
    golds_of,
    make_record,
)
from agentrl.evaluation.statistics.intervals import Interval, new_problems_interval
from agentrl.evaluation.summary import Equivalence, effort, summarise
from agentrl.rollout.outage import FIRST_DELAY_S
from agentrl.rollout.token_completer import Decoding, Dispatch, run_episode
from agentrl_envs import Env, Grader, Message, last_answer, prompt_id

if TYPE_CHECKING:
    from agentrl.inference.endpoint.client import EndpointPolicy
    from agentrl.inference.policy import Policy
    from agentrl.renderers.base import Renderer
    from agentrl.rollout.outage import Outages

PAUSES_S = (1.0, 4.0)
"""Before an episode that failed is played again: whatever broke gets a moment to mend."""
ATTEMPTS = len(PAUSES_S) + 1
"""Times an episode is played before its infrastructure failure is kept."""
OUTAGE_TRIES = 6
"""Times an episode is played again because nothing else has worked since it failed before."""
FAILURES_IN_A_ROW = 20
"""Kept failures without a success between them after which the evaluation stops."""


@dataclass(frozen=True, slots=True)
class Played:
    """One episode, and what a record needs besides."""

    episode: Episode
    response: str
    """All that came after the prompt, tool output included: what the strict rule looks at."""
    prompt_tokens: int | None = None
    sampled_tokens: int | None = None
    cost: float = 0.0
    reasoning: tuple[str, ...] = ()
    """Of each turn, where an endpoint gives it apart from the text."""
    messages: tuple[Message, ...] = ()
    """The conversation with an endpoint."""

    @property
    def final_text(self) -> str | None:
        """The text that is graded, or the last message where there is none."""
        episode = self.episode
        return episode.answer or (episode.turns[-1].text if episode.turns else None)


Score = Callable[[Record, Mapping[str, Any], str | None], Awaitable[Record]]
"""What looks at a record once more, given its row and the text that was graded."""
Play = Callable[[Mapping[str, Any], Dispatch], Awaitable[Played]]
MakeEnv = Callable[[int], Env]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Records in the order of the data, and their table."""

    records: tuple[Record, ...]
    table: Mapping[str, Any] = field(repr=False)

    @property
    def reward(self) -> Interval | None:
        """Interval of the mean reward over new problems, in units of the reward."""
        kept = [r for r in self.records if not r.failed]
        if not kept:
            return None
        low, high = kept[0].reward_range
        rows = by_problem(kept).values()
        interval = new_problems_interval([sum(r.score or 0.0 for r in row) / len(row) for row in rows])
        return replace(
            interval, low=low + (high - low) * interval.low, high=low + (high - low) * interval.high
        )

    @property
    def reward_mean(self) -> float | None:
        """Mean reward over problems, failures left out."""
        rows = by_problem(r for r in self.records if not r.failed).values()
        means = [sum(r.reward or 0.0 for r in row) / len(row) for row in rows]
        return sum(means) / len(means) if means else None

    def as_row(self) -> dict[str, Any]:
        """What `metrics.jsonl` of a training run keeps."""
        counts, tools = self.table["counts"], self.table.get("tools", {})
        reward = self.reward
        calibration = self.table.get("calibration") or {}
        answered = max(1, counts["answered"])
        return {
            "reward_mean": self.reward_mean,
            "interval": None if reward is None else [reward.low, reward.high],
            "interval_method": None if reward is None else reward.method,
            "episodes": len(self.records),
            "problems": self.table["problems"],
            "failed": counts["failed"],
            "undecided_share": sum(counts["undecided"].values()) / answered,
            "truncated_share": counts["truncated"] / answered,
            "tool_calls_mean": tools.get("calls_per_episode"),
            "tool_error_share": tools.get("error_share"),
            "sampled_tokens_mean": effort(self.records)["sampled_tokens_mean"],
            "calls_per_right": tools.get("calls_per_right_answer"),
            "right_per_call": 1.0 / per_right if (per_right := tools.get("calls_per_right_answer")) else None,
            "pass@k": {k: entry["value"] for k, entry in self.table.get("pass@k", {}).items()},
            "auc": calibration.get("auc"),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an evaluation stands."""

    done: int
    total: int
    failed: int
    mean: float | None
    """avg@k so far."""
    interval: Interval | None
    sampled_tokens: int
    cost: float
    task: str = ""
    """Of several."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which episodes are played."""

    rows: Sequence[Mapping[str, Any]]
    samples: int
    seed: int
    name: str = "eval"
    environment: str = ""
    keep_text: bool = True
    tools: bool = False
    """Whether the environment has tools."""

    def jobs(self, done: Mapping[tuple[str, int], Record]) -> Iterator[_Job]:
        """Episodes not played yet; every problem once before any problem twice."""
        for draw, (index, row) in itertools.product(range(self.samples), enumerate(self.rows)):
            problem = prompt_id(row)
            if (problem, draw) not in done:
                yield _Job(row, problem, draw, draw * len(self.rows) + index)


@dataclass(frozen=True, slots=True)
class _Job:
    row: Mapping[str, Any]
    problem: str
    draw: int
    index: int


def draw_seed(seed: int, problem: str, draw: int, *, again: bool = False) -> int:
    """Seed of one episode: of the evaluation's seed, the problem and the draw, and nothing else.

    `again`: the one that replaces it when it failed again and again.
    """
    text = f"{seed}/{problem}/{draw}" + "/again" * again
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=7).digest()
    return int.from_bytes(digest, "big")


async def evaluate(
    plan: Plan,
    play: Play,
    *,
    concurrency: int,
    done: Sequence[Record] = (),
    on_record: Callable[[Record], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    version: Callable[[], int] = lambda: 0,
    score: Score | None = None,
) -> list[Record]:
    """Play what is missing and return all records in the order of the data.

    Args:
        plan: which episodes.
        play: plays one.
        concurrency: episodes in flight.
        done: records of an earlier attempt.
        on_record: told each new record, in order of finishing.
        on_progress: told where it stands after each.
        version: the policy's version at dispatch.
        score: looks at each new record once more before it is kept.

    Raises:
        AgentRLError: `FAILURES_IN_A_ROW` kept failures without a success between them.
    """
    loop = _Loop(plan, play, {r.key: r for r in done}, on_record, on_progress, version, score)
    missing = list(plan.jobs(dict(loop.records)))
    loop.left, jobs = len(missing), iter(missing)
    workers = [asyncio.ensure_future(loop.work(jobs)) for _ in range(max(1, concurrency))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    keys = [(prompt_id(row), draw) for row in plan.rows for draw in range(plan.samples)]
    return [loop.records[key] for key in keys if key in loop.records]


@dataclass(slots=True)
class _Loop:
    plan: Plan
    play: Play
    records: dict[tuple[str, int], Record]
    on_record: Callable[[Record], None] | None
    on_progress: Callable[[Progress], None] | None
    version: Callable[[], int]
    score: Score | None = None
    failures: int = 0
    """Kept since the last answer."""
    left: int = 0
    """Episodes that did not begin."""
    next_told: float = 0.0

    async def work(self, jobs: Iterator[_Job]) -> None:
        """Play jobs until there are none."""
        for job in jobs:
            self.left -= 1
            record = await self._record(job)
            self.records[record.key] = record
            if self.on_record is not None:
                self.on_record(record)
            if not record.refused:  # what an endpoint declines says nothing of the next answer
                self.failures = self.failures + 1 if record.failed else 0
            # The last to end are the slow ones, which fail together: there is nothing left to be spared then.
            in_vain = self.left or all(r.failed for r in self.records.values())
            if record.failure is not None and self.failures >= FAILURES_IN_A_ROW and in_vain:
                boundary, error, message = record.failure
                raise AgentRLError(
                    f"{self.failures} episodes in a row failed, the last one at the {boundary}: "
                    f"{error}: {message}"
                )
            self._tell()

    async def _record(self, job: _Job) -> Record:
        for attempt in itertools.count(1):
            again = attempt > SAME_SEED_ATTEMPTS
            seed = draw_seed(self.plan.seed, job.problem, job.draw, again=again)
            dispatch = Dispatch(
                episode_id=f"{self.plan.name}/{job.index}" + (f"/again-{attempt}" if attempt > 1 else ""),
                dispatch_index=job.index,
                prompt_id=job.problem,
                start_version=self.version(),
                environment=self.plan.environment,
                seed=seed,
            )
            played = await self.play(job.row, dispatch)
            failure = played.episode.failure
            if failure is None or failure.error == REFUSED or attempt == ATTEMPTS:
                return await self._kept(job, seed, attempt, played)
            await asyncio.sleep(PAUSES_S[attempt - 1])
        raise AssertionError("unreachable")

    async def _kept(self, job: _Job, seed: int, attempt: int, played: Played) -> Record:
        gold = golds_of(job.row)
        golds = (gold,) if isinstance(gold, str) else gold
        episode = played.episode
        record = make_record(
            episode,
            draw=job.draw,
            seed=seed,
            attempts=attempt,
            stated=None if episode.failure is not None else last_answer(episode.answer),
            gold=gold,
            strict=None if golds is None else any(Grader.strict(played.response, g).right for g in golds),
            tools=self.plan.tools,
            reasoning=played.reasoning,
            prompt_tokens=played.prompt_tokens,
            sampled_tokens=played.sampled_tokens,
            cost=played.cost,
            keep_text=self.plan.keep_text,
        )
        return record if self.score is None else await self.score(record, job.row, played.final_text)

    def _tell(self) -> None:
        """Tell the progress, twice a second at most and at the end."""
        total = len(self.plan.rows) * self.plan.samples
        now = time.monotonic()
        if self.on_progress is None or (now < self.next_told and len(self.records) < total):
            return
        self.next_told = now + 0.5
        kept = [r for r in self.records.values() if not r.failed]
        means = [sum(r.right for r in rows) / len(rows) for rows in by_problem(kept).values()]
        self.on_progress(
            Progress(
                done=len(self.records),
                total=total,
                failed=len(self.records) - len(kept),
                mean=sum(means) / len(means) if means else None,
                interval=new_problems_interval(means) if means else None,
                sampled_tokens=sum(r.sampled_tokens for r in self.records.values()),
                cost=sum(r.cost for r in self.records.values()),
            )
        )


def token_player(
    policy: Policy,
    renderer: Renderer,
    make_env: MakeEnv,
    rollout: RolloutSettings,
    decoding: Decoding,
    *,
    price_prompt: float = 0.0,
    price_completion: float = 0.0,
) -> Play:
    """Plays with an engine: token ids in and out. Prices are per million tokens."""

    async def play(row: Mapping[str, Any], dispatch: Dispatch) -> Played:
        seed = dispatch.seed or 0
        episode = await run_episode(
            lambda: make_env(seed),
            policy,
            renderer,
            row=row,
            dispatch=dispatch,
            settings=rollout,
            decoding=decoding,
        )
        said = [one.token_ids[max(0, one.loss_mask.find(1)) :] for one in episode.segments if one.num_sampled]
        response = "\n\n".join(map(renderer.decode, said))
        read = sum(turn.start for turn in episode.turns)
        cost = (read * price_prompt + episode.num_sampled * price_completion) / 1e6
        return Played(episode, response, cost=cost)

    return play


def chat_player(
    endpoint: EndpointPolicy,
    make_env: MakeEnv,
    rollout: RolloutSettings,
    decoding: Decoding,
    tool_format: Any,
) -> Play:
    """Plays with an endpoint: messages in and out."""
    from agentrl.rollout.endpoint_completer import run_chat_episode

    async def play(row: Mapping[str, Any], dispatch: Dispatch) -> Played:
        result = await run_chat_episode(
            lambda: make_env(dispatch.seed or 0),
            endpoint,
            row=row,
            dispatch=dispatch,
            settings=rollout,
            decoding=decoding,
            tool_format=tool_format,
        )
        usage = result.usage
        return Played(
            result.episode,
            result.response,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.money,
            result.reasoning,
            result.messages,
        )

    return play


def equivalence_of(grader: Grader, kind: str) -> Equivalence:
    """How answers fall into classes: by `text`, by the grader's `canonical` form, or by `equivalence`."""
    if kind == "text":
        return Equivalence()
    equivalent = grader.equivalent if kind == "equivalence" else None
    return Equivalence(lambda text: grader.canonical(text) or text, equivalent, kind)


def outlasting(play: Play, outages: Outages, *, from_start: bool = True) -> Play:
    """The same player, which waits while everything fails and then plays again what failed meanwhile.

    Without `from_start` nothing is waited for before something has worked, which is a mistake rather than an
    outage, nor for episodes that used up their time: the last ones of an evaluation are the slow ones; nor
    where one prompt alone fails, which is then its own failure.
    """
    tries: Counter[int] = Counter()

    async def play_on(row: Mapping[str, Any], dispatch: Dispatch) -> Played:
        while True:
            number = tries[dispatch.dispatch_index]
            again = f"{dispatch.episode_id}/outage-{number}" if number else dispatch.episode_id
            await outages.admission(dispatch.environment, again)
            played = await play(row, replace(dispatch, episode_id=again))
            failure = played.episode.failure
            if failure is None or failure.error == REFUSED:  # an endpoint that declines to answer works
                outages.succeeded(played.episode)
                return played
            if not from_start and (
                failure.error == "StallError" or not outages.has_worked(dispatch.environment)
            ):
                return played
            says_something = outages.failed(played.episode)
            if outages.given_up is not None:
                raise outages.given_up
            own = not from_start and outages.one_prompt_fails(dispatch.environment)
            if says_something or own or number >= OUTAGE_TRIES:
                return played
            tries[dispatch.dispatch_index] += 1
            if dispatch.environment not in outages.paused:  # yet: nothing has worked since it failed before
                await asyncio.sleep(FIRST_DELAY_S * 2**number)

    return play_on


async def evaluate_policy(
    policy: Policy,
    renderer: Renderer,
    make_env: MakeEnv,
    rows: Sequence[Mapping[str, Any]],
    *,
    samples: int = 1,
    decoding: Decoding | None = None,
    rollout: RolloutSettings | None = None,
    concurrency: int = 64,
    seed: int = 0,
    name: str = "eval",
    environment: str = "",
    on_record: Callable[[Record], None] | None = None,
    outages: Outages | None = None,
) -> EvalResult:
    """Evaluate an engine that is already running, for example inside training.

    Args:
        policy, renderer: as for `run_episode`.
        make_env: from a seed to the environment of one episode.
        rows: the problems.
        samples: episodes per problem.
        decoding: temperature and truncation; `rollout.temperature` where None.
        rollout: limits and format.
        concurrency: episodes in flight.
        seed: of the evaluation.
        name: prefix of the episodes' names; must differ from those in flight.
        environment: recorded with the episodes.
        on_record: told each record as it finishes.
        outages: pauses while every episode fails; by default nothing does.

    Raises:
        AgentRLError: the infrastructure failed again and again.
    """
    rollout = rollout or RolloutSettings()
    decoding = decoding or Decoding(temperature=rollout.temperature)
    plan = Plan(rows, samples, seed, name, environment, keep_text=False)
    play = token_player(policy, renderer, make_env, rollout, decoding)
    if outages is not None:
        play = outlasting(play, outages)
    records = await evaluate(
        plan, play, concurrency=concurrency, on_record=on_record, version=lambda: policy.version
    )
    return EvalResult(tuple(records), await summarise(records))
