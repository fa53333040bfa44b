"""What a run without a settings file leaves open, chosen for its machine, its model and its rows.

Nothing that was said is changed, by a flag or by a preset. A run with a settings file takes what is written
there and the defaults: it is the same run on every machine. What was chosen is in the run's `config.toml`,
so that a resumed run chooses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentrl.cluster import fitting
from agentrl.cluster.memory import Plan, make_plans
from agentrl.cluster.model_shape import ModelShape
from agentrl.cluster.placement import Machine, choose_engine, has_vllm
from agentrl.cluster.step_time import Rates, step_time
from agentrl.config import bundled, loading
from agentrl.config.settings import EnvSettings, Settings
from agentrl.errors import ConfigError
from agentrl.tasks.task import EXAMPLES, env_class
from agentrl_envs import EnvError

ROWS, HELD_OUT = 250, 64
"""That an environment is asked for where it makes its own rows."""
EVALUATIONS = 20
"""Steps between two evaluations of those."""
CPU_BATCH, CPU_SLOTS, CPU_TOKENS, CPU_PASS = 32, 32, 512, 4096
"""Episodes of a step, sequences decoded together, tokens of an episode, tokens of a pass: without a GPU."""
GPU_TOKENS, GPU_CONTEXT = 4096, 8192
"""Tokens of an episode, and of the context, with one."""
ADAPTER_RATE = 2e-5
"""Learning rate of an adapter that was chosen because all weights do not fit."""
LEAST_BATCH = 8
STEP_S = 60.0
"""A step that would take longer on a CPU is made smaller, so that a curve begins soon."""
CORE = (50e9, 5e9)
"""Operations and bytes a second that a core is taken to do: measured, a choice would depend on the moment."""
PROMPT_TOKENS = 512
"""That a prompt is taken to have where none was tried."""
CHARS_PER_TOKEN = 3
_OF_THE_MODEL = (
    "model.threads",
    "rollout.max_tokens",
    "rollout.tool_output_chars",
    "learner.learning_rate",
    "learner.mini_batch",
    "learner.micro_batch_tokens",
    "loss.kl_coefficient",
    "stream.batch",
    "engine.slots",
)
"""Settings of the demo that its model was made for."""
_TO_FIT = (
    "learner.gradient_checkpointing",
    "learner.micro_batch_tokens",
    "model.dtype",
    "engine.memory_share",
    "engine.slots",
    "learner.offload",
    "learner.adapter.rank",
)
"""What may be chosen to make a run fit, an adapter last; never on how many devices."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that was left open, and what it became."""

    name: str
    value: Any
    why: str

    def __str__(self) -> str:
        value = bundled.NAME if self.name == "model.path" else self.value
        return f"{self.name} = {loading.literal(value)}"


@dataclass(slots=True)
class Choices:
    """Settings of a run, and what was chosen of them.

    Args:
        settings: as they were said, with defaults for the rest.
        said: dotted names of what was said; it stays.
        machine: that the run is for.
        imagined: the machine is another one than this: what is installed here does not matter.
    """

    settings: Settings
    said: Collection[str]
    machine: Machine
    imagined: bool = False
    _made: dict[str, Choice] = field(default_factory=dict)

    @property
    def made(self) -> tuple[Choice, ...]:
        """What differs from the defaults, in the order of the choices."""
        return tuple(self._made.values())

    def take(self, name: str, value: Any, why: str) -> None:
        """Choose a value, unless the setting was said or has it."""
        if name in self.said or _value(self.settings, name) == value:
            return
        self.settings = fitting.changed(self.settings, name, value)
        self._made[name] = Choice(name, value, why)

    # ---- before anything is loaded -------------------------------------------------------------------------

    def choose_model_and_rows(self) -> None:
        """The bundled model where none is named, and rows of the environment itself where it has some."""
        if not self.settings.model.path:
            self.take("model.path", str(bundled.MODEL), "no model was named; this one ships with agentrl")
        if bundled.is_bundled(self.settings.model.path):
            made_for = loading.load_settings(bundled.SETTINGS)
            for name in _OF_THE_MODEL:
                self.take(name, _value(made_for, name), "what the bundled model was made for")
        elif self.machine.gpus:
            self.take("rollout.max_tokens", GPU_TOKENS, "long enough for most tasks")
        else:
            self.take("stream.batch", CPU_BATCH, "there is no GPU")
            self.take("engine.slots", CPU_SLOTS, "there is no GPU")
            self.take("rollout.max_tokens", CPU_TOKENS, "there is no GPU")
            self.take("learner.micro_batch_tokens", CPU_PASS, "there is no GPU")
        if len(self.settings.env) == 1 and not (self.settings.data.train or self.settings.env[0].data.train):
            self._choose_rows(self.settings.env[0])

    def _choose_rows(self, named: EnvSettings) -> None:
        try:
            env = env_class(named.name, named.settings, named)
        except (EnvError, ConfigError):
            return  # told by who loads it for the run
        if hasattr(env, "generate_rows"):
            self.take("data.train", f"generated:train:{ROWS}", f"{env.__name__} makes its own rows")
            if not named.eval_data:
                self.take("eval.data", f"generated:test:{HELD_OUT}", f"{env.__name__} makes its own rows")
                self.take("eval.every", EVALUATIONS, "held-out rows are cheap here")
        elif env.example_rows:
            self.take("data.train", EXAMPLES, f"no data was named; {env.__name__} has examples to try it on")

    # ---- when rows and model are known ---------------------------------------------------------------------

    def choose_batch(self, rows: int) -> None:
        """Episodes of a step and in flight, against the rows there are."""
        group, there = (
            self.settings.estimator.group_size,
            "there is one row" if rows == 1 else f"there are {rows} rows",
        )
        if self.settings.stream.batch > rows * group:
            largest = max(LEAST_BATCH, 1 << (rows * group).bit_length() - 1)
            batch = max(group, min(self.settings.stream.batch, largest) // group * group)
            self.take("stream.batch", batch, there)
        staleness, batch = self.settings.stream.staleness, self.settings.stream.batch
        if self.settings.engine.slots > batch * (staleness + 1):
            self.take("engine.slots", batch * (staleness + 1), f"a step takes {batch} episodes")
        wanted = min(self.settings.engine.slots, (staleness + 1) * batch)
        copies = -(-max(wanted, batch) // (rows * group))
        if copies > self.settings.sampler.copies_per_prompt:
            self.take("sampler.copies_per_prompt", copies, f"{there} for {wanted} slots")

    def choose_lengths(self, shape: ModelShape, prompt: int | None, turns: int) -> None:
        """The context: room for a prompt, what the model may write, and what tools answer.

        Args:
            shape: of the model.
            prompt: tokens of the longest prompt, None where none was tried.
            turns: messages of the model in an episode.
        """
        rollout, context = self.settings.rollout, self.settings.engine.context_tokens or shape.context
        if rollout.max_tokens >= context:
            self.take("rollout.max_tokens", context // 2, f"the context has {context} tokens")
        answers = (turns - 1) * (rollout.tool_output_chars // CHARS_PER_TOKEN)
        room = 2 * (prompt or PROMPT_TOKENS) + self.settings.rollout.max_tokens
        needed = -(-(room + min(answers, room)) // 256) * 256
        if self.machine.gpus:
            needed = max(needed, GPU_CONTEXT)
        if needed < shape.context:
            self.take("engine.context_tokens", needed, "room for a prompt, messages and answers of tools")

    def choose_devices(self, shape: ModelShape) -> None:
        """What makes a run fit the memory there is, and on a CPU a step that ends soon."""
        engine, _ = choose_engine(
            self.settings.engine,
            gpus=len(self.machine.gpus),
            vllm_found=self.imagined or has_vllm(self.settings.engine.python),
        )
        if engine == "vllm" and len(self.machine.gpus) == 1 and not self.settings.engine.urls:
            self.take("engine.layout", "shared", "learner and vLLM share the only GPU")
            self.take("engine.memory_share", 0.5, "learner and vLLM share the only GPU")

        machine = self.machine
        if self.settings.run.deterministic:  # the same choice at another moment
            machine = replace(machine, memory_available=machine.memory)

        def plan_of(settings: Settings) -> tuple[Plan, ...]:
            return make_plans(shape, settings, machine, engine)

        allowed = [name for name in _TO_FIT if name not in self.said]
        found = fitting.fit(self.settings, plan_of, allowed) or {}
        device = "GPU" if self.machine.gpus else "memory"
        for name, value in found.items():
            self.take(name, value, f"what fits the {device}")
        if "learner.adapter.rank" in found:
            self.take("learner.learning_rate", ADAPTER_RATE, "an adapter takes a larger one")
        if not self.machine.gpus:
            self._shorten(shape)

    def _shorten(self, shape: ModelShape) -> None:
        operations, moved = (self.machine.cores * each for each in CORE)
        rates, group = Rates("cores", operations, moved, gpu=False), self.settings.estimator.group_size
        while (batch := self.settings.stream.batch) // 2 >= max(LEAST_BATCH, group):
            if "stream.batch" in self.said or batch // 2 % group:
                return
            if (seconds := step_time(shape, self.settings, rates).step_s) <= STEP_S:
                return
            self.take("stream.batch", batch // 2, f"a step of {batch} would take about {_round(seconds)} s")


def longest_prompt(tokens: int, first: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the longest prompt, from those of the first row and how much longer other rows are."""
    lengths = [len(json.dumps(row, default=str)) for row in (first, *rows)]
    return tokens + (max(lengths) - lengths[0]) // CHARS_PER_TOKEN


def lines(made: Sequence[Choice]) -> Iterator[str]:
    """What was chosen, for people: by reason."""
    if made:
        yield "chosen for this machine (flags, such as --stream.batch=16, choose otherwise):"
        for why in dict.fromkeys(choice.why for choice in made):
            yield f"  {', '.join(str(choice) for choice in made if choice.why == why)}: {why}"


def _round(seconds: float) -> int:
    """To one digit: it is an estimate."""
    unit = 10 ** (len(str(int(seconds))) - 1)
    return int(seconds / unit + 0.5) * unit


def _value(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def shape_of(path: str) -> ModelShape | None:
    """The shape of a model that is here or known; None for others, of which nothing is chosen."""
    try:
        return ModelShape.load(path)
    except ConfigError:
        return None
