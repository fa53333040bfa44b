"""Single episodes from Python: play one, and read what was said and sampled, token by token."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.api import keywords
from agentrl.cluster import event_loop
from agentrl.config import bundled, loading
from agentrl.config.settings import Settings
from agentrl.episode import Episode, Segment
from agentrl.errors import ConfigError, DataError
from agentrl.evaluation.subjects import (
    SubjectOptions,
    check_subject,
    open_subject,
    run_settings,
)
from agentrl.inference.endpoint.settings import EndpointSettings
from agentrl.rollout.token_completer import Decoding, Dispatch
from agentrl.storage.recorder import read_episodes
from agentrl.storage.run_folder import RunFolder
from agentrl.storage.steps import LearnedEpisode, SegmentValues, read_learned
from agentrl.tasks.task import Task, env_class, make_sandbox
from agentrl.weights.model_files import load_tokenizer
from agentrl_envs import EnvError, prompt_id

if TYPE_CHECKING:
    from agentrl.inference.policy import Policy
    from agentrl_envs import Env, Message


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an episode.

    Example:
        >>> episode = run_episode("arithmetic", {"problem": "7*8+1", "answer": "57"}, model="models/demo")
        >>> token = episode.tokens()[0]
        >>> token.text, token.sampled, token.logprob
        ('7', False, None)
    """

    text: str
    token_id: int
    sampled: bool
    """Whether the policy said it; all others were given to it."""
    logprob: float | None
    """Nats, under the distribution it was sampled from; None where it was not sampled."""
    version: int | None
    """Policy version that sampled it."""
    advantage: float | None = None
    """What the learner gave it credit for; None where it did not learn from the token."""
    learner_logprob: float | None = None
    """Nats, under the learner's weights before its step."""
    entropy: float | None = None
    """Nats, of the learner's distribution before its step."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ReadableEpisode(Episode):
    """An episode that can be printed: its conversation, its tokens with their log-probabilities.

    Example:
        >>> episode = run_episode("arithmetic", {"problem": "7*8+1", "answer": "57"}, model="models/demo")
        >>> [token.text for token in episode.tokens() if not token.sampled][:2]
        ['7', '*']
        >>> episode.conversation()[0]
        ('environment', '7*8+1\\n')
    """

    decode: Callable[[Sequence[int]], str]
    """Token ids to text."""
    messages: tuple[Message, ...] = ()
    """Of an episode with an endpoint, which has no tokens."""
    run: Path | None = None
    """Folder of the run that recorded it."""

    @cached_property
    def learned(self) -> LearnedEpisode | None:
        """What the run's learner made of it: version, score, baseline, advantage; None before that."""
        try:
            return None if self.run is None else read_learned(self.run, self.episode_id)
        except DataError:
            return None

    @property
    def advantage(self) -> float | None:
        """What it got credit for (the mean over tokens that had their own); None before that."""
        return None if self.learned is None else self.learned.advantage

    def conversation(self) -> list[tuple[str, str]]:
        """(speaker, text) of everything that was said, in order: `policy` or `environment`."""
        if not self.num_tokens:
            return [
                (_speaker(one), str(one.get("content") or one.get("tool_calls") or ""))
                for one in self.messages
            ]
        return [
            ("policy" if sampled else "environment", self.decode([token for token, _ in span]))
            for segment in self.segments
            for sampled, span in groupby(
                zip(segment.token_ids, segment.loss_mask, strict=True), key=lambda pair: pair[1]
            )
        ]

    def tokens(self) -> list[Token]:
        """All tokens in order; `pandas.DataFrame(episode.tokens())` makes a table of them.

        What the learner used of each is told while the run keeps it (`run.token_values_kept`).
        """
        kept = self.learned and self.learned.segments
        return [
            token
            for number, segment in enumerate(self.segments)
            for token in self._tokens(segment, kept[number] if kept else None)
        ]

    def _tokens(self, segment: Segment, values: SegmentValues | None) -> Iterator[Token]:
        columns = (segment.token_ids, segment.loss_mask, segment.logprobs, segment.policy_versions)
        for place, (token, mask, logprob, version) in enumerate(zip(*columns, strict=True)):
            used = () if values is None else (values.advantages, values.logprobs, values.entropies)
            own = [float(column[place]) for column in used if np.isfinite(column[place])]
            said = (logprob, version) if mask else (None, None)
            yield Token(self.decode([token]), token, bool(mask), *said, *own)

    def heading(self) -> str:
        """What became of it, in one line."""
        end = (
            f"failed at the {self.failure.boundary}: {self.failure.message}"
            if self.failure
            else self.stop_reason
        )
        size = f"turns: {len(self.turns)}, tokens: {self.num_sampled} sampled of {self.num_tokens}"
        return f"{self.prompt_id}: reward {self.reward}, {end}; {size}"

    def __repr__(self) -> str:
        return f"<{self.heading()}>"

    def __str__(self) -> str:
        parts = (f"--- {speaker}\n{text.rstrip()}" for speaker, text in self.conversation())
        return "\n".join([self.heading(), *parts])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        parts = (
            f'<pre style="margin:2px 0 2px {40 * (speaker == "policy")}px;padding:6px;white-space:pre-wrap;'
            f'background:{"#8cf3" if speaker == "policy" else "#8883"}">{html.escape(text)}</pre>'
            for speaker, text in self.conversation()
        )
        return f"<div><b>{html.escape(self.heading())}</b>{''.join(parts)}</div>"


def _speaker(message: Mapping[str, Any]) -> str:
    return "policy" if message["role"] == "assistant" else "environment"


def readable(
    episode: Episode,
    decode: Callable[[Sequence[int]], str],
    messages: Sequence[Message] = (),
    run: Path | None = None,
) -> ReadableEpisode:
    """The same episode with what makes it readable."""
    values = {field.name: getattr(episode, field.name) for field in fields(Episode)}
    return ReadableEpisode(**values, decode=decode, messages=tuple(messages), run=run)


def run_episode(
    env: type[Env] | Mapping[str, Any] | Path | str,
    row: Mapping[str, Any],
    /,
    *,
    model: PathLike[str] | str = "",
    policy: Policy | None = None,
    endpoint: EndpointSettings | str = "",
    seed: int = 0,
    settings: Settings | Path | str | None = None,
    **given: Any,
) -> ReadableEpisode:
    """Play one episode and return it, failed or not.

    Args:
        env: a class, a file, a registered name; or a mapping `{"name": ..., "settings": {...}}`.
        row: the row that is played.
        model: a run, a folder of weights, a Hugging Face id; or the name of an endpoint's model.
        policy: an engine with a `tokenizer`, in place of a model.
        endpoint: URL of an OpenAI-compatible endpoint, or all its options.
        seed: of the sampling.
        settings: file or settings to take limits and sandbox from; by default those of the run.
        given: settings, as for `load_settings`: `temperature`, `max_tokens`, `sandbox={...}`, ...

    Raises:
        ConfigError: environment, row, model or settings cannot be used.
        PolicyUnavailable: the engine does not start.

    Example:
        >>> episode = run_episode("arithmetic", {"problem": "7*8+1", "answer": "57"}, model="models/demo")
        >>> print(episode)  # doctest: +ELLIPSIS
        76ec4bf8b410baf2: reward ...
        --- environment
        7*8+1
        --- policy
        ...
        >>> sum(token.sampled for token in episode.tokens()) == episode.num_sampled
        True
    """
    settings, options = subject_of(model, policy, endpoint, settings, {"env": env, "seed": seed, **given})
    chosen = settings.env[0]
    try:
        loaded = env_class(chosen.name, chosen.settings, chosen)
        task = Task(chosen.name, loaded, loaded.check_settings(chosen.settings), 1.0, (row,))
        loaded.check_row(row, "the row")
    except EnvError as error:
        raise ConfigError(f"env {chosen.name!r}: {error}") from error
    check_subject(options)
    return event_loop.run(_play(task, settings, options))


async def _play(task: Task, settings: Settings, options: SubjectOptions) -> ReadableEpisode:
    row, seed = task.rows[0], settings.run.seed
    dispatch = Dispatch("episode/0", 0, prompt_id(row), 0, task.name, seed)
    logs = Path(settings.run.directory) / "logs"
    async with (
        make_sandbox(settings.sandbox) as sandbox,
        open_subject(options, settings.rollout, logs, task.env.tool_specs()) as subject,
    ):
        play = subject.player(
            lambda seed: task.make(sandbox, seed), subject.rollout, Decoding(settings.rollout.temperature)
        )
        played = await play(row, dispatch)
        return readable(played.episode, subject.decode, played.messages)


def subject_of(
    model: PathLike[str] | str,
    policy: Policy | None,
    endpoint: EndpointSettings | str,
    settings: Settings | Path | str | None,
    given: Mapping[str, Any],
) -> tuple[Settings, SubjectOptions]:
    """What plays, and the settings that it plays with: those of the run where a run is meant."""
    name = str(getattr(model, "folder", model))
    if endpoint:
        options = EndpointSettings(endpoint, name) if isinstance(endpoint, str) else endpoint
        found = keywords.settings_of(settings, given)[0]
        return found, SubjectOptions(endpoint=options, concurrency=found.engine.slots, seed=found.run.seed)
    name = bundled.model_path(name)
    found = keywords.settings_of(run_settings(name) if settings is None else settings, given)[0]
    options = SubjectOptions(
        name,
        policy=policy,
        engine=found.engine,
        device=found.model.device,
        concurrency=found.engine.slots,
        seed=found.run.seed,
    )
    return found, options


def episodes(run: PathLike[str] | str, /) -> Iterator[ReadableEpisode]:
    """The recorded episodes of a run, in order of their end.

    Args:
        run: a `Run`, or its folder.

    Raises:
        ConfigError: there is no run.

    Example:
        >>> run = train("arithmetic", data="generated:train:16", model="models/demo", steps=1,
        ...             stream={"batch": 8}, rollout={"max_tokens": 32}, tracker={"initial_rollouts": 0},
        ...             name="recorded", quiet=True)
        >>> episode = next(episodes("runs/recorded"))
        >>> episode.environment, episode.tokens()[0].sampled
        ('arithmetic', False)
        >>> used = [token.advantage for token in episode.tokens() if token.sampled]
        >>> all(abs(advantage - episode.advantage) < 1e-5 for advantage in used)
        True
    """
    folder = RunFolder.open(Path(str(getattr(run, "folder", run))))
    tokenizer = load_tokenizer(loading.load_settings(folder.config).model.path)
    for episode in read_episodes(folder.episodes):
        yield readable(episode, tokenizer.decode, run=folder.path)
