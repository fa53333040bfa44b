"""Every setting of a run, as frozen dataclasses: one class per section of the TOML file.

The text under a field is its documentation (`docs/configuration.md` is made from it). Units stand
in names (`_s`, `_mb`, `_tokens`, `_chars`), ranges in types (`agentrl.config.ranges`). This module reads no
files (that is `agentrl.config.loading`) and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from agentrl.config import conflicts
from agentrl.config.part_settings import (
    AggregatorSettings,
    ControllerSettings,
    EstimatorSettings,
    LossSettings,
    Rules,
    SamplerSettings,
    ShaperSettings,
    TrackerSettings,
)
from agentrl.config.ranges import Amount, Count, Number, PartOf, Positive, Range, Seconds, Seed, Share

Beta = Annotated[float, Range(least=0, below=1)]
ProgramTime = Annotated[float, Range(least=0.01, most=86_400)]
Memory = Annotated[int, Range(least=32, most=1 << 20)]
Nucleus = Annotated[float, Range(above=0, most=1)]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`[run]`: what is run, where it is written, how long it goes on."""

    name: str = ""
    """Folder below `directory`; empty takes the first free number."""
    directory: str = "runs"
    """Folder that holds the folders of runs."""
    seed: Seed = 0
    """Seeds prompts, episodes, weights and the learner's random subset."""
    steps: Number = 100
    """Learner steps (policy versions) of the run."""
    deterministic: bool = False
    """Staleness 0, and batches, failures and discards in order of dispatch, so that a run can be repeated
    exactly."""
    wait_limit_s: Seconds = 1800.0
    """Longest wait for an engine, a learner step or a batch before the run stops and says who stalls."""
    outage_limit_s: Seconds = 600.0
    """How long every episode may fail, with pauses between the tries, before the run stops and says why."""
    restarts: Number = 3
    """How often in a row, without a new version between, a run goes on from its checkpoint by itself after a
    process of its learner died."""
    episodes_kept: Number = 20000
    """Newest recorded episodes kept on disk; 0 keeps none."""
    token_values_kept: Number = 20000
    """Newest learned episodes whose log-probability and entropy of each token are kept, 6 bytes a token."""
    metrics: tuple[Annotated[str, PartOf("metric")], ...] = ()
    """Functions in files, `my.py:name`: from a batch to numbers that are logged with its step."""
    listeners: tuple[Annotated[str, PartOf("listener")], ...] = ()
    """Functions or classes in files, `my.py:name`: told every row of metrics."""
    trackers: tuple[Literal["wandb", "trackio", "tensorboard", "mlflow"], ...] = ()
    """Tracking services that get every number of a step and samples of episodes (pip install them)."""
    tracker_project: str = "agentrl"
    """Under which the tracking services file the run."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if Path(self.name).name != self.name or self.name == "..":
            yield (
                ("name",),
                f"run.name = {self.name!r} must be the name of one folder; its parent is run.directory",
            )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`[model]`: the weights learned from."""

    path: str = ""
    """Folder with Hugging Face weights and tokenizer, or a Hugging Face id where a hub is reachable; `demo`
    is the small model that ships with agentrl."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the learner's weights; bfloat16 keeps float32 masters in the optimizer."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """Attention kernel of the learner. `auto` takes FlashAttention on a GPU in bfloat16 where the package
    flash-attn is installed (3 before 2), else torch's sdpa; where only the package kernels is, a
    FlashAttention that is named comes from the hub through it."""
    threads: Number = 0
    """CPU threads of torch; 0 leaves torch's own choice."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """`[data]`: the prompts."""

    train: str = ""
    """Rows to learn from: a jsonl or parquet file, a name known to `agentrl eval`, a Hugging Face id,
    `generated:train:250` (rows that the environment makes) or `env:example_rows`."""
    map: dict[str, str] = field(default_factory=dict)
    """Renames columns: `problem = "question"` reads the field `problem` from the column `question`."""
    limit: Number = 0
    """Takes the first rows only; 0 takes all."""


@dataclass(frozen=True, slots=True)
class IsolationSettings:
    """Part of `[env]`: the process that an environment runs in."""

    isolation: Literal["none", "process"] = "none"
    """`process` keeps the environment in processes of its own: where it dies, blocks or grows, its episodes
    fail, and the run goes on."""
    python: str = ""
    """Interpreter of those processes, such as `.venv-other/bin/python`; empty takes the trainer's."""
    workers: Count = 1
    """Processes that share the episodes."""
    memory_mb: Number = 0
    """Memory from which a process is replaced by another, when its episodes are over; 0 sets no limit."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        for name, given in (
            ("python", self.python),
            ("memory_mb", self.memory_mb),
            ("workers", self.workers > 1),
        ):
            if given and self.isolation == "none":
                yield (name, "isolation"), f'env.{name} is for env.isolation = "process"'


@dataclass(frozen=True, slots=True)
class EnvSettings(IsolationSettings):
    """`[env]`, or one of several `[[env]]` that are mixed by weight."""

    name: str = ""
    """A registered name, a dotted path `package.module:Class`, or a file `my_env.py:Class`."""
    weight: Positive = 1.0
    """Share of the prompts drawn from this environment, relative to the others."""
    data: DataSettings = field(default_factory=DataSettings)
    """Rows of this environment; `[data]` where empty."""
    eval_data: str = ""
    """Held-out rows of this environment; `eval.data` where empty."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Passed to the environment; unknown names are errors."""


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """`[sandbox]`: where the model's code runs."""

    backend: Literal["local", "docker", "remote", "broken"] = "local"
    """`broken` answers every program with an error: a control."""
    min_level: str = ""
    """Lowest level of isolation accepted; empty is `namespaced`. `filtered` has to be asked for."""
    allow_unsafe: bool = False
    """Runs programs without isolation. Never for a model you do not trust completely."""
    time_s: ProgramTime = 10.0
    """Limit of one program, in seconds of its own (waiting for a core is not counted)."""
    memory_mb: Memory = 512
    """Memory of one session."""
    processes: Annotated[int, Range(least=4, most=32_768)] = 32
    """Processes and threads of one session."""
    libraries: tuple[str, ...] = ()
    """Packages programs may import besides the standard library, for example `["numpy", "sympy"]`. With
    `docker` the image must hold them; with `remote` the servers name their own."""
    image: str = ""
    """`docker` only: image of the containers; empty takes the one `agentrl_sandbox.docker.image` builds."""
    runtime: str = ""
    """`docker` only: container runtime, for example `runsc` (gVisor); empty takes the engine's default."""
    containers: Count = 64
    """`docker` only: most containers at once; an episode in flight may hold one."""
    urls: tuple[str, ...] = ()
    """`remote` only: servers of the pool."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        for key, owner in (("image", "docker"), ("runtime", "docker"), ("urls", "remote")):
            if getattr(self, key) and self.backend not in (owner, "broken"):
                text = f"sandbox.{key} is for sandbox.backend = {owner!r}, not {self.backend!r}"
                yield (key, "backend"), text
        if self.backend == "remote" and not self.urls:
            text = "sandbox.backend = 'remote' needs sandbox.urls, the servers of the pool"
            yield ("backend", "urls"), text
        if self.backend == "remote" and self.libraries:
            text = (
                "sandbox.libraries has no effect on sandbox.backend = 'remote': name them where the pool is "
                "started (`agentrl sandbox serve --libraries`)"
            )
            yield ("libraries", "backend"), text


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """`[rollout]`: how one episode is played."""

    format: Annotated[str, PartOf("renderer", also=("auto",))] = "auto"
    """How tools are called: fenced Python in `<code>` tags, `<tool_call>` with JSON (Hermes, Qwen), `native`
    as the model's family writes it (package `renderers`), or a renderer in a file, `my.py:Name`. `auto` takes
    `native` where a family fits the chat template, else what the template writes or the tools allow."""
    template_options: tuple[str, ...] = ()
    """Options of the chat template, such as `enable_thinking=false`; values are JSON, or text."""
    stop_token_ids: tuple[int, ...] = ()
    """More tokens that end a message, beside those of the tokenizer and of `generation_config.json`."""
    max_turns: Number = 0
    """Messages the policy may write; 0 takes the environment's."""
    max_tokens: Count = 16384
    """Tokens the policy may sample in one episode, all its messages together."""
    max_turn_tokens: Number = 0
    """Tokens of one message; 0 leaves the rest of `max_tokens`."""
    temperature: Positive = 1.0
    """Sampling temperature; the learner divides its logits by it too."""
    tool_output_chars: Annotated[int, Range(least=2)] = 2048
    """Longer tool output keeps head and tail, and says so to the model."""
    compact: Literal["none", "drop", "truncate", "summarise"] = "none"
    """What becomes of a conversation that grows too long for the context: the episode ends; the oldest turns
    are left out; old tool output is cut; the policy writes a summary and goes on from that. An environment
    with a method `compact(context)` decides itself."""
    compact_at: Annotated[float, Range(above=0, most=1)] = 0.75
    """Share of the context from which a conversation counts as too long."""
    partner_url: str = ""
    """OpenAI-compatible endpoint of another model that environments may ask (`self.speaker.partner`), such as
    a simulated user; it is not trained. Its key is read from `AGENTRL_PARTNER_KEY`."""
    partner_model: str = ""
    """Name of that model."""
    truncated: Literal["zero", "mask"] = "zero"
    """An episode cut off by a token limit gets the lowest reward, or is graded but not learned from."""
    limit_s: Seconds = 1200.0
    """Longest wall time of one episode before it counts as failed."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`[engine]`: what samples tokens."""

    kind: Annotated[str, PartOf("engine", also=("auto",))] = "auto"
    """`auto` takes vLLM where a GPU and vLLM are found, else transformers; a class in a file, `my.py:Name`,
    is an engine too."""
    slots: Count = 64
    """Sequences decoded together by one engine."""
    context_tokens: Number = 0
    """Longest sequence; 0 takes the model's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the engine's weights; `auto` takes the learner's."""
    replicas: Count = 1
    """vLLM servers."""
    tensor_parallel: Count = 1
    """GPUs of one vLLM server."""
    urls: tuple[str, ...] = ()
    """Running vLLM servers to attach to instead of starting some."""
    python: str = ""
    """Python that starts vLLM servers, for example of another virtual environment; empty takes this one."""
    args: tuple[str, ...] = ()
    """More arguments of `vllm serve`."""
    adapter: Literal["merged", "apart"] = "merged"
    """How vLLM applies what `learner.adapter` learns; either way the adapter alone travels. `merged`: servers
    merge it into their weights. `apart`: beside them, about a third slower a token, under a new name for each
    version; a message keeps the adapter it began with, and no server is paused."""
    adapters: Number = 0
    """Adapters a server holds at once, `apart` only; 0 takes the least, `stream.staleness` + 2."""
    layout: Literal["separate", "shared"] = "separate"
    """vLLM has GPUs of its own, or shares the learner's: then `memory_share` must leave room for learning."""
    memory_share: Annotated[float, Range(above=0, most=1)] = 0.9
    """Share of a GPU's memory that vLLM takes."""
    start_limit_s: Seconds = 600.0
    """Longest wait for a server to become healthy."""
    update_limit_s: Seconds = 300.0
    """Longest wait for one weight update."""
    keep_keys: bool = True
    """Episodes in flight keep keys and values of older versions after an update."""
    parity_every: Number = 0
    """Versions between two comparisons of engine and learner; 0 compares at the start only."""
    parity_max_mean: Amount = 0.1
    """Largest mean |difference of log-probabilities| before the run stops."""
    parity_max_share: Share = 0.1
    """Largest share of tokens whose probability ratio is off by more than 0.2 before the run stops."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """`[learner.adapter]`: low-rank adapters (LoRA) in place of all weights."""

    rank: Number = 0
    """Rank of the adapter; 0 learns all weights."""
    alpha: Amount = 0.0
    """The adapter's part is multiplied by alpha / rank; 0 takes 2 rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Ends of the names of the matrices that get an adapter, for example `["q_proj", "v_proj"]`; `all-linear`
    takes every matrix of the layers."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """`[learner]`: the optimizer, and how a batch goes through the model."""

    optimizer: Literal["adamw", "lion", "sto_sign"] = "adamw"
    """`lion` (arXiv 2302.06675) and `sto_sign` (StoSignSGD, arXiv 2604.15416) step every weight by the
    learning rate: take a 3 to 10 times smaller one."""
    learning_rate: Amount = 1e-6
    """Largest, from the end of the warm-up on."""
    warmup_steps: Amount = 0
    """Optimizer steps over which the learning rate rises from 0; below 1, a share of `schedule_steps`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: as it is, or down to `schedule_floor` of it."""
    schedule_steps: Number = 0
    """Optimizer steps until the schedule's end; 0 takes those of `run.steps`."""
    schedule_floor: Share = 0.0
    """Share of the learning rate that is left at the schedule's end and stays."""
    weight_decay: Amount = 0.01
    """Of matrices; norms and biases have none."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """How slowly the optimizer's averages move; `lion` is made for `[0.9, 0.99]`, `sto_sign` takes the
    first."""
    adam_epsilon: Positive = 1e-8
    """Of AdamW."""
    max_grad_norm: Amount = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them as they are."""
    mini_batch: Number = 0
    """Most episodes of one optimizer step; 0 takes the whole batch."""
    micro_batch_tokens: Count = 16384
    """Tokens of one forward and backward pass, padding included."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Sequences stand end to end in one row, without padding. `auto` packs where one kernel attends within
    sequences (a GPU in bfloat16) and where several ranks share the work."""
    compile: bool = False
    """Fuse the operations of layers and head with torch.compile: a minute or two at the first step."""
    epochs: Count = 1
    """Passes over one batch."""
    top_k: Number = 0
    """Likeliest tokens that are kept beside each token (`run.token_values_kept`), 6 bytes each."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    publish_every: Count = 1
    """Steps between two updates of the engines, at most `stream.staleness` + 1; a version that is evaluated
    is published too."""
    place: Literal["thread", "process", "cluster"] = "thread"
    """A thread of this process; processes of this machine, one per rank; or, with `cluster.kind = "ray"`,
    actors of the cluster, one per rank, on as few machines as hold them."""
    ranks: Count = 1
    """`process` and `cluster` only: learner ranks (FSDP2)."""
    sequence_parallel: Count = 1
    """Ranks that share each sequence, for those too long for one (Ulysses): each holds `micro_batch_tokens`
    of a micro-batch. Must divide `ranks` and the model's attention heads."""
    float32_head: bool = False
    """Multiply by the head in float32, at more time and a copy of the head in float32."""
    cpu_products: Literal["auto", "float32", "bfloat16"] = "auto"
    """What a bfloat16 model multiplies and attends in on a CPU. `auto` is float32 on x86 processors without
    AMX, where that is faster, except those of AMD with `avx512_bf16`. Name one for a run that may be resumed
    on another machine; checkpoints say which it was."""
    offload: bool = False
    """Keep masters and moments of the optimizer, and gradients, in host memory, and step there: 16 bytes a
    weight less on the GPU, a slower optimizer step."""
    undo: bool = False
    """Copy weights and optimizer to host memory (12 to 16 bytes a weight) before a batch of several optimizer
    steps, so that a step that fails undoes those before it."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Learn a low-rank adapter in place of all weights."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.schedule_steps and self.warmup_steps >= self.schedule_steps:
            text = (
                f"learner.warmup_steps = {self.warmup_steps:g} leaves none of learner.schedule_steps = "
                f"{self.schedule_steps}: it must be smaller"
            )
            yield ("warmup_steps", "schedule_steps"), text
        if self.ranks > 1 and self.place == "thread":
            text = "learner.ranks > 1 needs learner.place = 'process' or 'cluster' (one process per rank)"
            yield ("ranks", "place"), text
        if self.ranks % self.sequence_parallel:
            text = (
                f"learner.sequence_parallel = {self.sequence_parallel} does not divide learner.ranks = "
                f"{self.ranks}: so many ranks share a sequence"
            )
            yield ("sequence_parallel", "ranks"), text
        if self.sequence_parallel > 1 and (self.compile or self.packing == "off"):
            wrong = "compile = true" if self.compile else "packing = 'off'"
            text = f"learner.{wrong} does not go with learner.sequence_parallel > 1: leave it out"
            yield ("sequence_parallel", "compile" if self.compile else "packing"), text


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """`[cluster]`: episodes played on other machines, or in other processes of this one."""

    kind: Literal["none", "ray"] = "none"
    """`ray` spreads episodes over rollout workers on a Ray cluster (`pip install "agentrl[ray]"`)."""
    address: str = ""
    """Of the cluster, as Ray has it; empty takes RAY_ADDRESS, else the cluster of this machine, else starts
    one."""
    rollout_workers: Count = 2
    """Processes that play episodes, each with an engine and a sandbox of its own."""
    cpus: Positive = 1.0
    """Cores that Ray reserves for each."""
    gpus: Amount = 0.0
    """GPUs that Ray reserves for each."""
    learner_cpus: Positive = 1.0
    """Cores that Ray reserves for each rank of a learner with `learner.place = "cluster"`."""
    learner_gpus: Annotated[int, Range(least=0, most=1)] = 0
    """GPU that Ray reserves for each of them: 1, or 0 for learning on cores."""
    sandbox_servers: Number = 0
    """Sandbox servers spread over the machines, one pool for the programs of all rollout workers; 0 gives
    each worker a sandbox of its own."""
    sandbox_cpus: Positive = 1.0
    """Cores that Ray reserves for each; twice as many programs run at once."""
    start_limit_s: Seconds = 600.0
    """Longest wait for room on the cluster, for a worker to start, and for any worker while all are lost."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """`[stream]`: how episodes flow to the learner."""

    batch: Count = 256
    """Episodes of one learner step (B)."""
    in_flight: Number = 0
    """Episodes in flight; 0 takes the engine's slots."""
    staleness: Number = 1
    """Versions an episode may be behind the learner at its step (s); 0 is the synchronous reference."""
    stale_policy: Literal["correct", "wait", "drop"] = "correct"
    """`correct`: a soft bound, late episodes get importance weights; `wait`: a hard bound, batches wait for
    slow episodes; `drop`: a hard bound, episodes beyond it are folded and not learned from."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """How often and with which distribution an evaluation samples, inside of training and by itself."""

    samples: Count = 1
    """Episodes per row (k)."""
    temperature: Amount = 1.0
    """Sampling temperature."""
    top_p: Nucleus = 1.0
    """Nucleus."""
    top_k: Number = 0
    """0 means no limit."""


@dataclass(frozen=True, slots=True)
class EvalSettings(SampleSettings):
    """`[eval]`: evaluation inside training."""

    every: Number = 0
    """Learner steps between evaluations of held-out rows; 0 evaluates before and after only."""
    data: str = ""
    """Held-out rows of the environments that name none of their own; empty evaluates only those that do."""
    limit: Number = 0
    """First rows of each environment only; 0 takes all."""


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`[checkpoint]`: what can be resumed."""

    every: Number = 10
    """Learner steps between checkpoints; 0 writes one at the end only."""
    keep: Count = 2
    """Newest checkpoints kept."""
    asynchronous: bool = True
    """Learn on while a checkpoint is written, from a copy of weights and optimizer in host memory (12 bytes a
    weight that is learned); false waits for the disk."""
    weights_every: Number = 0
    """Learner steps between Hugging Face weights in `weights/`; 0 writes them at the end only."""
    best: bool = True
    """Keep the weights of the version with the best held-out score in `best/`, the first of equal ones, where
    `eval.every` measures versions during the run; one that only equals the model at the start is not kept."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a run, section by section.

    Example:
        >>> Settings().stream.staleness, load_settings(stream={"staleness": 0}).stream.staleness
        (1, 0)
    """

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    env: tuple[EnvSettings, ...] = ()
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    shaper: ShaperSettings = field(default_factory=ShaperSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    aggregator: AggregatorSettings = field(default_factory=AggregatorSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of a whole run, where no batch comes short of episodes."""
        size = self.learner.mini_batch or self.stream.batch
        return self.run.steps * self.learner.epochs * -(-self.stream.batch // size)

    @property
    def resident_adapters(self) -> int:
        """Adapters that a vLLM server holds apart at once; 0 where nothing is served apart."""
        if not self.learner.adapter.rank or self.engine.adapter == "merged":
            return 0
        return self.engine.adapters or self.stream.staleness + 2

    def rules(self) -> Rules:
        """What is wrong with sections together."""
        if self.learner.place == "cluster" and self.cluster.kind == "none":
            yield (
                ("learner.place", "cluster.kind"),
                "learner.place = 'cluster' needs a cluster: set cluster.kind = 'ray' (`--cluster ray`)",
            )
        if self.cluster.sandbox_servers and self.sandbox.backend in ("remote", "broken"):
            yield (
                ("cluster.sandbox_servers", "sandbox.backend"),
                (
                    "cluster.sandbox_servers starts a pool of its own, and sandbox.backend = "
                    f"{self.sandbox.backend!r} names another: leave one of them out"
                ),
            )
        if self.tracker.initial_rollouts and self.shaper.kind != "none":
            yield (
                ("tracker.initial_rollouts", "shaper.kind"),
                "tracker.initial_rollouts would set values of rewards that are not shaped: set it to 0",
            )
        if self.sampler.fresh_copies > 1 and self.estimator.group_size > 1:
            yield (
                ("sampler.fresh_copies", "estimator.group_size"),
                (
                    f"sampler.fresh_copies = {self.sampler.fresh_copies} is for prompts played once at a "
                    f"time; with estimator.group_size = {self.estimator.group_size} each is played as a group"
                ),
            )
        if self.cluster.kind != "none" and (self.engine.urls or self.engine.layout == "shared"):
            name = "urls" if self.engine.urls else "layout"
            yield (
                ("cluster.kind", f"engine.{name}"),
                (
                    f"engine.{name} is for servers that all rollouts share, and with cluster.kind = "
                    f"{self.cluster.kind!r} every rollout worker has an engine of its own: leave it out"
                ),
            )
        every, allowed = self.learner.publish_every, 0 if self.run.deterministic else self.stream.staleness
        if every > allowed + 1:
            within = "run.deterministic = true" if self.run.deterministic else f"stream.staleness = {allowed}"
            text = (
                f"learner.publish_every = {every} makes episodes {every - 1} versions old before they begin, "
                f"and {within} allows {allowed}: publish every {allowed + 1} steps at most"
            )
            yield ("learner.publish_every", "stream.staleness", "run.deterministic"), text
        least = self.stream.staleness + 2
        if self.resident_adapters and 0 < self.engine.adapters < least:
            text = (
                f"engine.adapters = {self.engine.adapters} is too few: episodes of {least - 1} versions may "
                f"be in flight, and one more arrives; set it to stream.staleness + 2 = {least}, or to 0"
            )
            yield ("engine.adapters", "stream.staleness"), text
        if self.stream.batch % self.estimator.group_size:
            size = self.estimator.group_size
            text = f"stream.batch = {self.stream.batch} is not a multiple of estimator.group_size = {size}"
            yield ("stream.batch", "estimator.group_size"), text
        yield from conflicts.refused(self)
