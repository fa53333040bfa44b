"""The learner: takes a batch of episodes with their advantages, and changes the weights.

One call of `step` is one batch and makes one policy version: proximal log-probabilities are computed
once, then the optimizer steps once per mini-batch. It is synchronous; who calls it decides in which
thread or process. It knows nothing of rewards, baselines, prompts or versions.
"""

from __future__ import annotations

import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from agentrl.config.ranges import check_ranges
from agentrl.config.settings import (
    AdapterSettings,
    AggregatorSettings,
    LearnerSettings,
    LossSettings,
    ModelSettings,
)
from agentrl.episode import Episode
from agentrl.errors import (
    AgentRLError,
    CheckpointError,
    ConfigError,
    DataError,
    LearnerError,
    LearnerLost,
    StallError,
    WeightSyncError,
)
from agentrl.learner import checkpoint
from agentrl.learner.adapter import add_adapter, has_adapter
from agentrl.learner.batch import (
    Advantages,
    MicroBatch,
    TokenSequence,
    build_sequences,
    pack,
    split_mini_batches,
    spread,
)
from agentrl.learner.flops import Flops, peak
from agentrl.learner.forward import Forward
from agentrl.learner.logprobs import LOGITS_AT_ONCE_GPU, Scores, TokenScorer, check_head
from agentrl.learner.losses.clipped import LossInputs
from agentrl.learner.metrics import StepMetrics
from agentrl.learner.model import DTYPES, choose_device, load_model, save_adapter, save_config, save_model
from agentrl.learner.objective import Objective
from agentrl.learner.optimizer import MasterOptimizer
from agentrl.learner.packing import has_kernel, install
from agentrl.learner.products import attend_in_float32, multiplies_in_float32, multiply_in_float32
from agentrl.learner.ranks import Ranks
from agentrl.learner.tally import Tally
from agentrl.learner.token_table import TokenTable
from agentrl.learner.weight_source import WeightLink, WeightSender, WeightSource

FloatArray: TypeAlias = NDArray[np.float32]

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8
"""Episodes named in an error."""


@dataclass(slots=True)
class _Batch:
    """One batch on its way through a step."""

    episodes: Sequence[Episode]
    sequences: list[TokenSequence]
    advantages: list[FloatArray]
    """[N] of each sequence."""
    tally: Tally
    norms: list[float]
    """Length of the gradient at each optimizer step."""
    proximal: list[Tensor] | None = None
    """[N] of each sequence; None where the first pass over the batch gives them."""
    reference: list[Tensor] | None = None
    teacher: list[Tensor] | None = None
    values: NDArray[np.float32] | None = None
    """[B] of the prompts of the episodes."""
    table: TokenTable | None = None
    """What the weights before the step say of each token."""
    statistics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Of the whole batch, where the loss asks for some."""
    scores: FloatArray = dataclasses.field(init=False)
    """[B] of the episodes."""
    groups: NDArray[np.int64] = dataclasses.field(init=False)
    """[B] from 0; an episode without a group is one of its own."""

    def __post_init__(self) -> None:
        self.scores = np.array([episode.score for episode in self.episodes], dtype=np.float32)
        own = [-1 - at if one.group is None else one.group for at, one in enumerate(self.episodes)]
        self.groups = np.unique(own, return_inverse=True)[1].astype(np.int64)

    def names(self, sequences: Iterable[int]) -> str:
        """The episodes of some sequences, as a person reads them."""
        found = sorted({self.sequences[index].episode for index in sequences})
        shown = ", ".join(self.episodes[index].episode_id for index in found[:NAMES_SHOWN])
        return shown if len(found) <= NAMES_SHOWN else f"{shown} and {len(found) - NAMES_SHOWN} more"

    def of(self, values: Sequence[Tensor], micro: MicroBatch) -> Tensor:
        """[N] values of the targets of a micro-batch, in its order, from one tensor per sequence."""
        return torch.cat([values[index] for index in micro.sequences])


@dataclass(slots=True)
class _Stopwatch:
    """Wall time of the parts of one step."""

    started: float = dataclasses.field(default_factory=time.perf_counter)
    proximal_s: float = 0.0
    train_s: float = 0.0
    drift_s: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


class Learner:
    """Weights, optimizer, and the step that changes them.

    Args:
        model_settings: what is learned and where.
        settings: optimizer, and how a batch goes through the model.
        loss: what is minimised at each token.
        aggregator: how tokens become one number.
        seed: of the shuffle into mini-batches and of the clock's tokens.
        reference: weights that the loss measures divergence from; the model's own first ones by default.
        ranks: this process among those that share the weights.

    Raises:
        ConfigError: the model cannot be loaded, or a setting makes no sense.
    """

    def __init__(
        self,
        model_settings: ModelSettings,
        settings: LearnerSettings,
        loss: LossSettings | None = None,
        aggregator: AggregatorSettings | None = None,
        *,
        seed: int = 0,
        reference: str = "",
        ranks: Ranks | None = None,
    ) -> None:
        check_ranges(settings, "learner")
        self._objective = Objective(loss or LossSettings(), aggregator or AggregatorSettings())
        if model_settings.threads > 0:
            torch.set_num_threads(model_settings.threads)
        self._path, self._settings, self._seed = model_settings.path, settings, seed
        self._ranks = ranks or Ranks()
        self._device, self._dtype = choose_device(model_settings.device), DTYPES[model_settings.dtype]
        self._forward = self._load(model_settings, settings.adapter)
        if settings.gradient_checkpointing:
            # transformers recomputes activations in training mode only; dropout is off either way.
            cast("Any", self.model).gradient_checkpointing_enable({"use_reentrant": False})
            self._forward.scorer.train()
        self._optimizer = MasterOptimizer(self.model, settings)
        self._reference = self._teacher = None
        if self._objective.needs_reference:
            self._reference = self._load_frozen(model_settings, reference or model_settings.path)
        if self._objective.teacher:
            self._teacher = self._load_frozen(model_settings, self._objective.teacher)
        self._top = max(self._objective.top_k, settings.top_k)
        self._batches = 0
        self._link: WeightLink | None = None
        self._sender: WeightSender | None = None
        self._writing: Future[None] | None = None

    def _load_frozen(self, settings: ModelSettings, path: str) -> Forward:
        """Weights that are scored with, and not learned."""
        forward = self._load(dataclasses.replace(settings, path=path))
        forward.scorer.requires_grad_(False)
        return forward

    def _load(self, settings: ModelSettings, adapter: AdapterSettings | None = None) -> Forward:
        compute = DTYPES[settings.dtype]
        if self._ranks.size > 1:
            # Split weights are the masters themselves, and are rounded when a layer is gathered.
            settings = dataclasses.replace(settings, dtype="float32")
        scorer = TokenScorer(load_model(settings, self._device)).eval()
        check_head(scorer, settings.path)
        one_kernel = has_kernel(self._device, compute)
        exact = multiplies_in_float32(self._settings.cpu_products, self._device, compute)
        if exact:
            attend_in_float32(scorer)
        packed = self._pack(scorer, settings.path, exact=exact, one_kernel=one_kernel)
        if adapter is not None and adapter.rank > 0:
            add_adapter(scorer.model, adapter, seed=self._seed)
            # The first layer is then like the others, and compiled once with them.
            cast("Any", scorer.model).enable_input_require_grads()
        if self._settings.compile:
            scorer.compile_parts()
        if self._device.type == "cuda":
            scorer.at_once = LOGITS_AT_ONCE_GPU
        if exact:
            multiply_in_float32(scorer)
        scorer.float32_head = self._settings.float32_head or exact
        self._ranks.shard(scorer, compute, offload=self._settings.offload)
        self._flops = Flops.of(cast("Any", scorer.model).config)
        even_at = self._flops.even_at if self._flops is not None else 8192.0
        return Forward(
            scorer,
            self._device,
            self._settings.micro_batch_tokens,
            self._ranks,
            packed=packed,
            even_at=even_at,
            one_kernel=one_kernel,
        )

    def _pack(self, scorer: TokenScorer, name: str, *, exact: bool, one_kernel: bool) -> bool:
        """Whether sequences are packed; where they are, the model attends within each of them."""
        split = self._ranks.split
        choice = "on" if split is not None else self._settings.packing
        if choice == "off" or (choice == "auto" and not one_kernel and self._ranks.size == 1):
            if exact and cast("Any", scorer.model).config._attn_implementation == "sdpa":
                install(scorer, one_kernel=False)
            return False
        if split is not None:
            split.check(int(cast("Any", scorer.model).config.get_text_config().num_attention_heads), name)
        problem = install(scorer, one_kernel=one_kernel, replace=split is not None)
        if problem and choice == "on":
            setting = "packing = 'on'" if split is None else f"sequence_parallel = {split.size}"
            raise ConfigError(f"learner.{setting} is not for the model {name!r}: {problem}")
        return not problem

    @property
    def model(self) -> nn.Module:
        """The live model. Its weights change during `step` and at no other time."""
        return self._forward.scorer.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def batches(self) -> int:
        """Batches learned from."""
        return self._batches

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken."""
        return self._optimizer.steps

    def step(
        self,
        episodes: Sequence[Episode],
        advantages: Advantages,
        *,
        clock_tokens: int = 0,
        values: ArrayLike | None = None,
        controls: Mapping[str, float] | None = None,
    ) -> StepMetrics:
        """Learn from one batch.

        Args:
            episodes: B episodes that did not fail.
            advantages: [B] one number per episode, for all its trainable tokens; or, of each episode and
                segment, [T] one for each token.
            clock_tokens: model tokens (at least; whole sequences are taken) scored before and after, to
                measure how far the policy moved; 0 measures nothing.
            values: [B] the tracker's value of each episode's prompt, for losses that require `baselines`.
            controls: learning rate and coefficients of the loss from this step on, by name of their settings.

        Returns:
            What happened.

        Raises:
            DataError: an episode cannot be learned from.
            LearnerError: no trainable token, or something is not finite or does not fit the memory.
                Weights and optimizer are as before the call (with `learner.undo`; without it, as before the
                optimizer step that failed), unless only the scores after the step failed: then it is taken.
        """
        clock = _Stopwatch()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        batch = self._prepare(episodes, advantages)
        controls = controls or {}
        self._objective.control(controls)
        self._optimizer.full_rate = controls.get("learner.learning_rate", self._optimizer.full_rate)
        batch.values = None if values is None else np.asarray(values, dtype=np.float32)
        everything = range(len(batch.sequences))
        plan = self._plan(len(episodes))
        subset = self._clock_subset(batch.sequences, clock_tokens)
        before, clock.drift_s = self._timed_scores(batch, subset)
        if len(plan) > 1 or self._objective.needs_proximal:
            table, clock.proximal_s = self._timed_scores(batch, everything, self._top)
            batch.proximal = table.logprobs
        else:  # filled by the only pass over the batch, which sees the weights from before it
            table = TokenTable(batch.sequences, everything, self._device, self._top)
        batch.table = table
        if self._reference is not None:
            batch.reference = self._reference.scores(batch.sequences, everything).logprobs
        if self._teacher is not None:
            batch.teacher = self._teacher.scores(batch.sequences, everything).logprobs
        elif self._objective.served_teacher:
            batch.teacher = self._taught(batch)
        batch.statistics = self._statistics(batch)
        train_started = time.perf_counter()
        self._train(batch, plan)
        if batch.proximal is None:
            table.gather(self._ranks)
        self._wait()
        clock.train_s = time.perf_counter() - train_started
        after, seconds = self._timed_scores(batch, subset)
        clock.drift_s += seconds
        self._batches += 1
        return self._metrics(batch, clock, before.logprobs, after.logprobs)

    def score(self, episodes: Sequence[Episode]) -> list[list[FloatArray]]:
        """Log-probabilities of the present weights, at each episode's temperature.

        Args:
            episodes: any episodes, also failed ones.

        Returns:
            For each episode and segment, [T] in nats; 0.0 where the token was not sampled.
        """
        sequences = build_sequences(episodes, trainable_only=False)
        scores = self._forward.scores(sequences, range(len(sequences))).logprobs
        result = [
            [np.zeros(len(segment), dtype=np.float32) for segment in episode.segments] for episode in episodes
        ]
        for sequence, values in zip(sequences, scores, strict=True):
            result[sequence.episode][sequence.segment][sequence.positions] = values.cpu().numpy()
        return result

    def save_weights(self, folder: str | Path) -> None:
        """Write Hugging Face weights with tokenizer and generation settings into `folder`.

        Raises:
            CheckpointError: they cannot be written.
        """
        save_model(self.model, self._path, Path(folder), dtype=self._dtype, write=self._ranks.rank == 0)

    @property
    def _source(self) -> WeightSource:
        return WeightSource(self.model, self._dtype)

    def publish_bytes(self) -> int:
        """Size of what `publish` writes."""
        if has_adapter(self.model):
            return sum(
                one.numel() * one.element_size() for one in self.model.parameters() if one.requires_grad
            )
        return self._source.size

    def publish(self, folder: str | Path) -> None:
        """Write what an engine needs of the present weights: the adapter alone, or else all of them.

        Raises:
            CheckpointError: it cannot be written.
        """
        leads, folder = self._ranks.rank == 0, Path(folder)
        try:
            if has_adapter(self.model):
                save_adapter(self.model, self._path, folder, write=leads)
                return
            self._together(lambda: save_config(self.model, folder, self._dtype) if leads else None)
            self._write(folder / "model.safetensors")
        except OSError as error:
            raise CheckpointError(f"weights cannot be written to {folder}: {error}") from error

    def _write(self, file: Path) -> None:
        """Write all weights; ranks that see the same file write each its own part."""
        source, rank = self._source, self._ranks.rank
        if self._ranks.size > 1 and source.in_parts:
            partial = file.with_suffix(".partial")
            self._together(lambda: source.lay_out(partial) if rank == 0 else None)
            if self._agree(partial.exists()):
                self._together(lambda: source.write_part(partial, rank, self._ranks.size))
                if rank == 0:
                    partial.rename(file)
                return
        source.write(file, leads=rank == 0)

    def _together(self, work: Callable[[], None]) -> None:
        """Do a rank's own work on files; where one fails, all of them say so."""
        failed: OSError | None = None
        try:
            work()
        except OSError as error:
            failed = error
        if not self._agree(failed is None):
            raise failed or OSError("another rank could not write its part")

    def _agree(self, mine: bool) -> bool:
        """Whether it is true on every rank."""
        return float(self._ranks.largest(torch.full((), 0.0 if mine else 1.0, device=self._device))) == 0.0

    def transmit(self, link: WeightLink, label: str) -> None:
        """Send the present weights to engines on other devices: every rank gathers them, the first sends.

        Args:
            link: to the engines; kept for the next call, which joins anew where it is given another.
            label: of the weights.

        Raises:
            WeightSyncError: they did not arrive; says who was waited for, or what a server answered.
            LearnerLost: the same, and the ranks may be in the middle of a collective: they cannot go on.
        """
        self._wait()
        if self._sender is None or link != self._link:
            self._leave()
            self._link, self._sender = link, link.join(self._source, self._ranks.rank)
        try:
            self._sender.send(label)
        except StallError as error:
            self._leave()
            raise (WeightSyncError if self._ranks.size == 1 else LearnerLost)(str(error)) from error
        except BaseException:
            self._leave()
            raise
        self._wait()

    def _leave(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._link = self._sender = None

    def save(self, folder: str | Path, *, wait: bool = True) -> None:
        """Write everything that changes into `folder`; making it appear at once is up to the caller.

        Args:
            folder: holds nothing of the kind yet.
            wait: until it is on disk. Else it is copied to host memory, whatever follows stays out of it,
                and `saved` tells when it is on disk.

        Raises:
            CheckpointError: it cannot be written, or what was saved before still is.
        """
        if self._writing is not None:
            raise CheckpointError(f"{folder} has to wait: the state saved before is still being written")
        counters = {
            "batches": self._batches,
            "optimizer_steps": self._optimizer.steps,
            "seed": self._seed,
            "products": self._products,
        }
        own = {"rank": self._ranks.rank, "ranks": self._ranks.size}
        part = checkpoint.stage(Path(folder), self._optimizer.tensors(), counters, **own, copy=not wait)
        if wait:
            part.write()
        else:
            self._writing = part.begin()

    def saved(self) -> bool:
        """Whether what `save` did not wait for is on disk, of all ranks.

        Raises:
            CheckpointError: it cannot be written.
        """
        writing = self._writing
        done = writing is None or writing.done()
        # First, for all ranks have to take part in it, the one whose disk is full too.
        everywhere = self._agree(done)
        if done and writing is not None:
            self._writing = None
            writing.result()
        return everywhere

    def load(self, folder: str | Path) -> None:
        """Go back to a saved state, bit for bit; it may be of another number of ranks.

        Raises:
            CheckpointError: it cannot be read, or belongs to another model.
        """
        saved = checkpoint.Saved.open(Path(folder))
        self._ranks.reshard(self._forward.scorer)  # what is gathered would outlive what is read
        counters, parameters = saved.counters, self.model.named_parameters()
        if counters["ranks"] != self._ranks.size:
            logger.warning(
                "the state in %s was saved by %d ranks and is read by %d: sums are taken in another order, "
                "so the run goes on, but not to the same digits",
                folder, counters["ranks"], self._ranks.size,
            )  # fmt: skip
        if counters.get("products", self._products) != self._products:
            logger.warning(
                "the state in %s was learned with products of matrices in %s, and this processor takes %s: "
                "the run goes on, but not to the same numbers; learner.cpu_products = '%s' does",
                folder, counters["products"], self._products, counters["products"],
            )  # fmt: skip
        masters = {f"master:{name}": tensor.shape for name, tensor in parameters if tensor.requires_grad}
        if masters != {name: shape for name, shape in saved.shapes.items() if name.startswith("master:")}:
            raise CheckpointError(
                f"the weights in {folder} do not have the names and shapes of the model {self._path!r}"
            )
        saved.read_into(self._optimizer.blank(saved.shapes))
        self._optimizer.loaded(int(counters["optimizer_steps"]))
        self._batches, self._seed = int(counters["batches"]), int(counters["seed"])

    @property
    def _products(self) -> str:
        """The type that matrices are multiplied in."""
        exact = multiplies_in_float32(self._settings.cpu_products, self._device, self._dtype)
        return "float32" if exact else str(self._dtype).removeprefix("torch.")

    def _prepare(self, episodes: Sequence[Episode], advantages: Advantages) -> _Batch:
        failed = [episode.episode_id for episode in episodes if episode.failure is not None]
        if failed:
            raise DataError(f"failed episodes cannot be learned from: {', '.join(failed[:NAMES_SHOWN])}")
        sequences = build_sequences(episodes, top=self._objective.behaviour_top_k)
        values = spread(advantages, episodes, sequences)
        if not sequences:
            raise LearnerError(
                f"a batch of {len(episodes)} episodes has no trainable token; nothing can be learned from it"
            )
        return _Batch(episodes, sequences, values, Tally(self._device), [])

    def _taught(self, batch: _Batch) -> list[Tensor]:
        """[N] of each sequence, as a served teacher gave them."""
        missing = [at for at, item in enumerate(batch.sequences) if len(item.teacher) != len(item.targets)]
        if missing:
            raise DataError(
                f"the loss needs what a teacher says of each token, and {batch.names(missing)} came without: "
                "played before loss.teacher named a server"
            )
        return [self._forward.tensor(item.teacher) for item in batch.sequences]

    def _statistics(self, batch: _Batch) -> Mapping[str, Tensor]:
        """What the loss wants to know of the whole batch, which is never on the device at once."""
        statistics = self._objective.statistics
        if statistics is None or batch.proximal is None or batch.table is None:
            return {}
        micro = pack(batch.sequences, range(len(batch.sequences)))
        return statistics(self._inputs(batch, micro, batch.table.scores))

    def _plan(self, episodes: int) -> list[NDArray[np.int64]]:
        """Episodes of each optimizer step. Depends on seed and counters alone."""
        return [
            part
            for epoch in range(self._settings.epochs)
            for part in split_mini_batches(
                episodes, self._settings.mini_batch or episodes, seed=(self._seed, self._batches, epoch)
            )
        ]

    def _clock_subset(self, sequences: Sequence[TokenSequence], tokens: int) -> list[int]:
        chosen: list[int] = []
        if tokens <= 0:
            return chosen
        # One stream of random numbers apart from the shuffle's.
        order = np.random.default_rng([self._seed, self._batches, 1 << 20]).permutation(len(sequences))
        for index in order:
            chosen.append(int(index))
            tokens -= len(sequences[index].targets)
            if tokens <= 0:
                break
        return chosen

    def _timed_scores(self, batch: _Batch, indices: Sequence[int], top: int = 0) -> tuple[TokenTable, float]:
        started = time.perf_counter()
        try:
            scores = self._forward.scores(batch.sequences, indices, top)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        for index, values in zip(indices, scores.logprobs, strict=True):
            if not bool(torch.isfinite(values).all()):
                raise LearnerError(
                    f"log-probabilities of the model are not finite for episode {batch.names([index])}"
                )
        return scores, time.perf_counter() - started

    def _train(self, batch: _Batch, plan: Sequence[NDArray[np.int64]]) -> None:
        """Take the optimizer steps of a batch, all or (with `learner.undo`) none."""
        snapshot = self._optimizer.snapshot() if self._settings.undo and len(plan) > 1 else None
        try:
            for part in plan:
                self._mini_batch(batch, set(part.tolist()))
        except (AgentRLError, torch.OutOfMemoryError) as error:
            self._optimizer.zero_grad()
            if snapshot is not None:
                self._optimizer.restore(snapshot)
            if isinstance(error, torch.OutOfMemoryError):
                raise self._out_of_memory() from error
            raise

    def _mini_batch(self, batch: _Batch, members: set[int]) -> None:
        indices = [at for at, sequence in enumerate(batch.sequences) if sequence.episode in members]
        if not indices:
            return  # every episode of it ended before the policy said anything
        weights = np.zeros(len(batch.sequences))
        weights[indices] = self._objective.weights([len(batch.sequences[index].targets) for index in indices])
        sound = torch.ones((), device=self._device)
        for micro, counts in self._forward.micro_batches(batch.sequences, indices):
            loss = self._micro_batch(batch, micro, weights, counts=counts)
            sound *= torch.isfinite(loss)
        if float(self._ranks.largest(1.0 - sound)) > 0.0:
            raise LearnerError(f"the loss is not finite for episodes {self._culprits(batch, indices)}")
        norm = self._optimizer.step()
        if norm is None:
            raise LearnerError(f"the gradient is not finite for episodes {self._culprits(batch, indices)}")
        batch.norms.append(norm)

    def _inputs(self, batch: _Batch, micro: MicroBatch, scores: Scores) -> LossInputs:
        """What the loss sees of a micro-batch."""
        tensor, current, top = self._forward.tensor, scores.logprobs, self._objective.top_k
        asked = self._objective.behaviour_top_k
        chosen = [batch.sequences[index] for index in micro.sequences]
        episode = np.repeat([item.episode for item in chosen], micro.counts)
        positions = [item.positions for item in chosen]

        def spread_out(values: Sequence[int]) -> Tensor:
            return tensor(np.repeat(values, micro.counts))

        # A message ends where a token is not the next one's neighbour.
        turns = [np.cumsum(np.diff(item, prepend=item[:1]) > 1) for item in positions]
        return LossInputs(
            current=current,
            # With one optimizer step per batch this pass sees the weights from before it: they are proximal.
            proximal=current.detach() if batch.proximal is None else batch.of(batch.proximal, micro),
            behaviour=tensor(micro.behaviour),
            advantage=tensor(np.concatenate([batch.advantages[index] for index in micro.sequences])),
            entropy=scores.entropies,
            logsumexp=scores.logsumexp,
            top_ids=scores.top_ids[:, :top] if top else None,
            top_logprobs=scores.top_logprobs[:, :top] if top else None,
            behaviour_top_ids=tensor(micro.top_ids) if asked else None,
            behaviour_top=tensor(micro.top_logprobs) if asked else None,
            current_at_top=scores.at_logprobs if asked else None,
            reference=None if batch.reference is None else batch.of(batch.reference, micro),
            teacher=None if batch.teacher is None else batch.of(batch.teacher, micro),
            score=tensor(batch.scores[episode]),
            group=tensor(batch.groups[episode]),
            value=None if batch.values is None else tensor(batch.values[episode]),
            segment=spread_out([item.segment for item in chosen]),
            sequence=spread_out(range(len(chosen))),
            position=tensor(np.concatenate(positions)),
            turn=tensor(np.concatenate(turns)),
            statistics=batch.statistics,
        )

    def _micro_batch(
        self,
        batch: _Batch,
        micro: MicroBatch,
        weights: NDArray[np.float64],
        *,
        counts: bool = True,
        tally: bool = True,
    ) -> Tensor:
        """Forward and backward; returns this micro-batch's part of the loss.

        `weights` are those of a token of each sequence of the batch.
        """
        scores = self._forward.run(micro, self._top)
        inputs = self._inputs(batch, micro, scores)
        tokens, metrics = self._objective(inputs)
        of_tokens = np.repeat(weights[list(micro.sequences)], micro.counts).astype(np.float32)
        loss = (tokens * self._forward.tensor(of_tokens)).sum()
        # Ranks average gradients; the loss wants their sum.
        (loss * (self._ranks.size if counts else 0.0)).backward()
        counts = counts and self._ranks.leads
        if tally:
            batch.tally.add(inputs, tokens, metrics, counts=counts)
            read = sum(len(batch.sequences[index]) for index in micro.sequences)
            batch.tally.add_shape(*((read, micro.input_ids.size) if counts else (0, 0)))
            if counts and batch.proximal is None and batch.table is not None:
                batch.table.put(micro, scores)
        return loss.detach()

    def _culprits(self, batch: _Batch, indices: Sequence[int]) -> str:
        """The episodes whose loss or gradient alone is not finite; all of them where none is."""
        found: list[int] = []
        ones = np.ones(len(batch.sequences))
        for index in indices:
            self._optimizer.zero_grad()
            loss = self._micro_batch(batch, self._forward.layout(batch.sequences, [index]), ones, tally=False)
            finite = bool(torch.isfinite(loss)) and self._optimizer.finite_gradient()
            broken = torch.full((), 0.0 if finite else 1.0, device=self._device)
            if float(self._ranks.largest(broken)) > 0.0:
                found.append(index)
        self._optimizer.zero_grad()
        return batch.names(found or indices)

    def _out_of_memory(self) -> LearnerError:
        settings = self._settings
        ways = [f"lower learner.micro_batch_tokens ({settings.micro_batch_tokens} now)"]
        if not settings.gradient_checkpointing:
            ways.append("set learner.gradient_checkpointing = true")
        if not settings.offload and self._device.type != "cpu":
            ways.append("set learner.offload = true")
        if not settings.adapter.rank:
            ways.append("learn an adapter (learner.adapter.rank = 16)")
        return LearnerError(
            f"the learner ran out of memory on {self._device}: {', or '.join(ways)}; `agentrl doctor --fit` "
            "says what fits"
        )

    def _operations(self, batch: _Batch, clock: Sequence[Tensor]) -> float:
        """Floating-point operations that the mathematics of this batch needs; 0 where not counted."""
        if self._flops is None:
            return 0.0
        once = self._flops.forward(batch.sequences)
        # Weights that are frozen need no gradient: a backward pass is then about one forward pass, else two.
        training = (2 if self._settings.adapter.rank > 0 else 3) * self._settings.epochs
        scoring = sum(item is not None for item in (batch.proximal, batch.reference))
        share = sum(len(item) for item in clock) / sum(len(item.targets) for item in batch.sequences)
        return once * (training + scoring + 2 * share)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _metrics(
        self, batch: _Batch, clock: _Stopwatch, before: list[Tensor], after: list[Tensor]
    ) -> StepMetrics:
        totals = batch.tally.totals(self._ranks)
        read = sum(len(sequence) for sequence in batch.sequences)
        seconds = clock.seconds
        rate = self._operations(batch, before) / seconds / self._ranks.size
        fastest = peak(self._device)
        return StepMetrics(
            loss=totals.mean("loss"),
            grad_norm=float(np.mean(batch.norms)) if batch.norms else 0.0,
            learning_rate=self._optimizer.last_learning_rate,
            optimizer_steps=len(batch.norms),
            entropy=totals.mean("entropy"),
            ratio_mean=totals.mean("ratio"),
            kl_proximal=totals.mean("kl_proximal"),
            kl_reference=totals.mean("kl_reference"),
            importance_mean=totals.mean("importance"),
            importance_max=totals.importance_max,
            behaviour_gap=totals.mean("gap"),
            effective_share=totals.effective_share,
            drift=_mean_difference(before, after),
            drift_tokens=sum(len(item) for item in before),
            tokens_learned=sum(len(sequence.targets) for sequence in batch.sequences),
            tokens_read=read,
            padding_share=totals.padding_share,
            proximal_s=clock.proximal_s,
            train_s=clock.train_s,
            drift_s=clock.drift_s,
            seconds=seconds,
            learn_tokens_per_s=read / seconds,
            model_tflops=rate / 1e12,
            mfu=rate / fastest if fastest else 0.0,
            peak_memory_mb=_peak_memory_mb(self._device),
            token_values=None if batch.table is None else batch.table.values(batch.episodes, batch.sequences),
            of_loss={name: totals.mean(f"loss.{name}") for name in batch.tally.loss_metrics},
        )


def _mean_difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Mean |after - before| over all tokens, nats; 0 of none."""
    if not before:
        return 0.0
    return float((torch.cat(list(after)) - torch.cat(list(before))).abs().double().mean())


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
