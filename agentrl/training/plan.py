"""What a run would be, found out before anything is started: data, model, format, a prompt as it is read.

`plan_run` opens no engine and no learner. It decides what the settings leave open, gathers every reason
why the run could not start, and says what it will cost before that is paid.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.cluster import event_loop
from agentrl.cluster.placement import Machine, inspect_machine
from agentrl.cluster.ray import require_ray
from agentrl.config import conflicts, registry, tree
from agentrl.config.secrets import check_secrets
from agentrl.config.settings import Settings
from agentrl.errors import AgentRLError, ConfigError
from agentrl.inference.engines import check_engine
from agentrl.renderers.making import choose_format, read_options, rollout_renderer
from agentrl.tasks.task import Task, load_tasks, make_sandbox
from agentrl.training import choices
from agentrl.training.choices import Choice, Choices
from agentrl.training.control import Control
from agentrl.training.credit import make_estimator
from agentrl.training.held_out import HeldOut, load_held_out
from agentrl.training.initial_values import needs_initial_rollouts, read_initial_file
from agentrl.training.prompts import PromptPool
from agentrl.weights.model_files import find_model, load_tokenizer, trained_format
from agentrl_envs import EnvError, Finish, Message
from agentrl_sandbox import Sandbox, SandboxError

ROWS_TRIED = 8
"""Rows of an environment that are begun until one can be: the others are set aside in the run."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run that can start."""

    settings: Settings
    """As given, with what was left open decided."""
    tasks: tuple[Task, ...]
    held_out: tuple[HeldOut, ...]
    tokenizer: Any = None
    """None where the model is not on this machine and the hub was not to be asked."""
    notes: tuple[str, ...] = ()
    """What a person should know before it starts, a sentence each."""
    chosen: tuple[Choice, ...] = ()
    """What was left open and is chosen for the machine."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What was chosen, and the notes."""
        return (*choices.lines(self.chosen), *self.notes)


def plan_run(
    settings: Settings,
    *,
    fetch: bool = True,
    said: Collection[str] | None = None,
    machine: Machine | None = None,
) -> RunPlan:
    """Plan a run; starts nothing but, where an environment asks for it, a sandbox.

    Args:
        settings: of the run.
        fetch: whether a hub may be asked for the model; without it a model that is not here is not looked at.
        said: dotted names of settings that were said, where the others are to be chosen; None chooses none.
        machine: that settings are chosen for, if not for this one.

    Raises:
        ConfigError: with every reason why the run could not start.
    """
    open_choices = None
    if said is not None:
        open_choices = Choices(settings, said, machine or inspect_machine(), imagined=machine is not None)
        open_choices.choose_model_and_rows()
        settings = open_choices.settings
    problems: list[str] = []
    tasks: tuple[Task, ...] = ()
    held_out: tuple[HeldOut, ...] = ()
    tokenizer = None
    with _noted(problems):
        check_secrets(asdict(settings))
    notes: list[str] = []
    with _noted(problems if fetch else notes):  # a plan that is only looked at may be for another machine
        if settings.cluster.kind == "ray":
            require_ray()
    with _noted(problems):
        tasks = load_tasks(settings.env, settings.data)
    if open_choices is not None and tasks:
        open_choices.choose_batch(sum(len(task.rows) for task in tasks))
        settings = open_choices.settings
    with _noted(problems):
        if tasks:
            _check_pool(tasks, settings)
    with _noted(problems):
        held_out = load_held_out(settings, tasks) if tasks else ()
    with _noted(problems):
        make_estimator(settings.estimator)
    with _noted(problems):
        Control(settings)
    with _noted(problems):
        _check_requirements(settings, tasks)
    with _noted(problems):
        make_sandbox(settings.sandbox)
    with _noted(problems):
        if find_model(settings.model.path, fetch=fetch) is not None or fetch:
            tokenizer = load_tokenizer(settings.model.path)
    if tokenizer is None and not problems:
        notes.append(f"{settings.model.path} is not on this machine: format and prompt were not tried")
    prompts: list[Opened] = []
    if tokenizer is not None and tasks:
        with _noted(problems):
            settings = _with_format(settings, tokenizer, tasks)
            prompts = _open_prompts(settings, tokenizer, tasks)
    if open_choices is not None:
        open_choices.settings = settings
        with _noted(problems):
            _choose_for_devices(open_choices, tasks, prompts)
        settings = open_choices.settings
    notes += [note for prompt in prompts for note in _prompt_notes(settings, prompt)]
    notes = [*conflicts.notes(settings), *_costs(settings, tasks, held_out), *notes]
    if problems:
        several = len(problems) > 1
        head = f"the run cannot start, for {len(problems)} reasons:" if several else ""
        raise ConfigError("\n  ".join([head, *problems]) if several else problems[0])
    chosen = () if open_choices is None else open_choices.made
    return RunPlan(settings, tasks, held_out, tokenizer, tuple(notes), chosen)


def _choose_for_devices(chosen: Choices, tasks: Sequence[Task], prompts: Sequence[Opened]) -> None:
    """Lengths and what depends on memory, where the shape of the model is known."""
    shape = choices.shape_of(chosen.settings.model.path)
    if shape is None:
        return
    lengths = [choices.longest_prompt(len(one.ids), one.task.rows[0], one.task.rows) for one in prompts]
    turns = chosen.settings.rollout.max_turns or max((task.env.max_turns for task in tasks), default=1)
    chosen.choose_lengths(shape, max(lengths, default=None), turns)
    chosen.choose_devices(shape)


def _check_requirements(settings: Settings, tasks: Sequence[Task]) -> None:
    """What parts require of settings and rows.

    Raises:
        ConfigError: no teacher is named, or a row has no gold answer, and a part requires one; or a teacher
            is named, and none is required; or the engine does not give what a part requires.
    """
    loss = settings.loss
    taught = "teacher" in registry.declared("loss", loss.kind).requires
    if taught and not loss.teacher:
        raise ConfigError(
            f'loss.kind = {loss.kind!r} requires a teacher: name its weights, loss.teacher = "path", or a '
            "vLLM server, http://host:port"
        )
    if loss.teacher and not taught:
        raise ConfigError(
            f"loss.teacher = {loss.teacher!r} is for a loss that asks a teacher, as 'distillation' does, and "
            f"loss.kind = {loss.kind!r} asks none: leave it out, or take another loss"
        )
    check_engine(settings)
    part = next((one for one in tree.parts_of(settings) if "gold" in one.requires), None)
    if part is None:
        return
    for task in tasks:
        for row in task.rows:
            if row.get("answer") in (None, ""):
                raise ConfigError(
                    f"{part} requires a gold answer in every row, and a row of {task.name} has none"
                )


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Note an error made on purpose, and go on: all of them are told together."""
    try:
        yield
    except (AgentRLError, EnvError, SandboxError) as error:
        problems.append(str(error))


def make_pool(tasks: Sequence[Task], settings: Settings) -> PromptPool:
    """The prompts of a run with their tracker and samplers."""

    def make_tracker(environments: NDArray[np.int64]) -> ValueTracker:
        tracker = settings.tracker
        return registry.make("tracker", tracker.kind, tracker.own, len(environments), tracker, environments)

    return PromptPool(tasks, make_tracker, settings.sampler, seed=settings.run.seed)


def _check_pool(tasks: Sequence[Task], settings: Settings) -> None:
    """A batch must be able to fill from prompts that are not pending.

    Raises:
        ConfigError: it could not.
    """
    pool = make_pool(tasks, settings)
    if settings.tracker.initial_file:
        read_initial_file(pool, Path(settings.tracker.initial_file))
    copies, group = settings.sampler.copies_per_prompt, settings.estimator.group_size
    possible, batch = len(pool) * copies * group, settings.stream.batch
    if possible < batch:
        need = -(-batch // (len(pool) * group))
        raise ConfigError(
            f"{len(pool)} prompts with {copies} episode(s) in flight each make at most {possible} episodes, "
            f"and a batch needs {batch}: it could never fill. Give more rows, set sampler.copies_per_prompt "
            f"to {need} or more, or lower stream.batch"
        )


def _costs(settings: Settings, tasks: Sequence[Task], held_out: Sequence[HeldOut]) -> Iterator[str]:
    """What is played before the first step, and what slots stay empty."""
    prompts = sum(len(task.rows) for task in tasks)
    if needs_initial_rollouts(settings):
        each = settings.tracker.initial_rollouts
        yield (
            f"before the first step {prompts * each:,} episodes are played for initial values "
            f"(tracker.initial_rollouts = {each} of each of {prompts:,} prompts); 0 plays none"
        )
    rows, samples = sum(len(part.rows) for part in held_out), settings.eval.samples
    if rows:
        source = " and ".join(dict.fromkeys(env.eval_data or settings.eval.data for env in settings.env))
        every = f", and every {settings.eval.every} steps" if settings.eval.every else ""
        yield f"an evaluation plays {rows * samples:,} held-out episodes of {source}: before, after{every}"
    in_flight = settings.stream.in_flight or settings.engine.slots
    possible = prompts * settings.sampler.copies_per_prompt * settings.estimator.group_size
    if tasks and possible < min(in_flight, (settings.stream.staleness + 1) * settings.stream.batch):
        yield (
            f"{prompts} prompts x {settings.sampler.copies_per_prompt} copies are fewer than the {in_flight} "
            "episodes that may be in flight; some slots will stay empty (raise sampler.copies_per_prompt)"
        )


def _with_format(settings: Settings, tokenizer: Any, tasks: Sequence[Task]) -> Settings:
    if settings.rollout.format != "auto":
        return settings
    tools = [task.env.tool_specs() for task in tasks]
    chosen = trained_format(settings.model.path) or choose_format(
        tokenizer, tools, read_options(settings.rollout.template_options)
    )
    return replace(settings, rollout=replace(settings.rollout, format=chosen))


@dataclass(frozen=True, slots=True)
class Opened:
    """What the model would read at the start of an episode."""

    task: Task
    ids: Sequence[int]
    text: str


def _open_prompts(settings: Settings, tokenizer: Any, tasks: Sequence[Task]) -> list[Opened]:
    """Begin an episode of every environment, and render what the model would read.

    Raises:
        ConfigError: no row of an environment can be begun, or none can be rendered.
    """
    renderer = rollout_renderer(tokenizer, settings.rollout)
    found = []
    for task, messages in zip(tasks, event_loop.run(_begin_all(settings, tasks)), strict=True):
        if messages is not None:
            ids = renderer.start(messages, task.env.tool_specs())
            found.append(Opened(task, ids, renderer.decode(ids)))
    return found


def _prompt_notes(settings: Settings, opened: Opened) -> Iterator[str]:
    task, tools = opened.task, opened.task.env.tool_specs()
    told = "<code>" in opened.text or any(tool.name in opened.text for tool in tools)
    if tools and not told and not trained_format(settings.model.path):
        yield (
            f"{task.name}: the prompt does not mention the tool {tools[0].name}, because the tokenizer has "
            "no chat template: a model that was not trained to write <code> blocks will hardly call it, so "
            "say in `prompt` how that is done"
        )
    context = settings.engine.context_tokens
    if context and len(opened.ids) >= context:
        yield f"{task.name}: a prompt has {len(opened.ids)} tokens and engine.context_tokens is {context}"


async def _begin_all(settings: Settings, tasks: Sequence[Task]) -> list[list[Message] | None]:
    async with contextlib.AsyncExitStack() as stack:
        sandbox = _SandboxOnDemand(lambda: make_sandbox(settings.sandbox), stack)
        return [await _begin(task, sandbox, settings) for task in tasks]


async def _begin(task: Task, sandbox: Any, settings: Settings) -> list[Message] | None:
    """Opening messages of the first row that can be begun; None where episodes end at once."""
    first = ""
    for number, row in enumerate(task.rows[:ROWS_TRIED], 1):
        env = task.make(sandbox, settings.run.seed)
        try:
            return await env.start(copy.deepcopy(row))
        except Finish:
            return None
        except EnvError as error:
            first = first or f"row {number}: {error}"
        finally:
            with contextlib.suppress(EnvError):  # in an episode it would be told, and nothing more
                await env.aclose()
    raise ConfigError(f"env {task.name!r} cannot begin an episode: {first}")


class _SandboxOnDemand:
    """A sandbox that is started when the first session is opened: most environments need none to begin."""

    def __init__(self, make: Callable[[], Sandbox], stack: contextlib.AsyncExitStack) -> None:
        self._make, self._stack = make, stack
        self._sandbox: Sandbox | None = None

    async def open(self, *arguments: Any, **options: Any) -> Any:
        if self._sandbox is None:
            self._sandbox = await self._stack.enter_async_context(self._make())
        return await self._sandbox.open(*arguments, **options)
