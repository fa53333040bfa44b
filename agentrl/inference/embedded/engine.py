"""The embedded engine: any Llama- or Qwen-style model of transformers, decoded in this process.

Messages of all episodes decode together, in a thread of its own, with keys and values kept between
the turns of an episode. It keeps its own copy of the weights and takes new ones between two tokens.
Knows nothing of messages, tools, environments or learning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from agentrl.errors import ConfigError, ContextOverflow, PolicyError, PolicyUnavailable, WeightSyncError
from agentrl.inference.embedded.batch_decoder import BatchDecoder
from agentrl.inference.embedded.decode_thread import DecodeThread
from agentrl.inference.embedded.forward_check import check_decoding
from agentrl.inference.embedded.kv_cache import ATTENTION
from agentrl.inference.embedded.row_table import Request
from agentrl.inference.embedded.stop_rules import StopRule, TokenTexts
from agentrl.inference.embedded.token_sampling import stream_key
from agentrl.inference.embedded.weight_copy import copy_weights
from agentrl.inference.policy import Generation, Sampling
from agentrl.learner.adapter import plain_copy
from agentrl.weights.adapter_files import base_of, is_adapter
from agentrl.weights.handle import WeightHandle

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 30.0
"""Longest wait for the decode thread to end."""


class TransformersPolicy:
    """A `Policy` that decodes with transformers.

    Args:
        model: the learner's live model, which is copied; a folder of Hugging Face weights, or of an adapter
            (LoRA) of some; or a Hugging Face id where a hub is reachable.
        tokenizer: needed for stop texts only; with a folder, None reads the one beside the weights.
        slots: sequences that decode together. With fewer than there are episodes in flight, the
            keys of the session that waited longest are given up and computed again.
        context_tokens: longest sequence; 0 takes the model's.
        dtype: of weights and keys; "auto" takes the model's.
        device: "auto" takes a GPU where there is one (for a live model: the model's).
        deterministic: fixed shapes, so that a message depends on its prompt, its seed and the
            weights alone and not on what is decoded beside it. Slower. Sessions then wait for a slot
            instead of taking another's; a request without a seed still draws from the engine's.
        keep_keys: episodes in flight keep keys and values of older weights after `load`.
        seed: of the messages whose request has none.
        version, attempt: of the weights in `model`.
        update_limit_s: longest wait of `load`.

    Raises:
        ConfigError: the folder, the context or the kind of model cannot be used.
    """

    gives_top_logprobs = gives_prompt_features = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        slots: int = 64,
        context_tokens: int = 0,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        deterministic: bool = False,
        keep_keys: bool = True,
        seed: int = 0,
        version: int = 0,
        attempt: int = 0,
        update_limit_s: float = 300.0,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"engine.slots must be at least 1, got {slots}")
        self._adapter = model if is_adapter(model) else None
        model = self._source = base_of(model) if self._adapter is not None else model
        self._tokenizer = tokenizer
        self._config = _config_of(model)
        self._context_tokens = _context_of(self._config, context_tokens)
        self._vocabulary = int(self._config.vocab_size)
        self._slots, self._dtype, self._device = slots, dtype, device
        self._fixed, self._keep_keys = deterministic, keep_keys
        self._random = random.Random(seed)
        self._version, self.attempt = version, attempt
        self._update_limit_s = update_limit_s
        self._rules: dict[tuple[tuple[str, ...], tuple[int, ...]], StopRule] = {}
        self._texts: TokenTexts | None = None
        self._decoder: BatchDecoder | None = None
        self._thread: DecodeThread | None = None

    @property
    def version(self) -> int:
        """Version that a token sampled now would get."""
        return self._version if self._decoder is None else self._decoder.version

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and message together."""
        return self._context_tokens

    async def start(self) -> None:
        """Copy or read the weights and start the decode thread.

        Raises:
            PolicyUnavailable: the weights cannot be read, or this architecture cannot be decoded.
        """
        if self._thread is not None:
            return
        try:
            self._decoder = await asyncio.to_thread(self._make_decoder)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise PolicyUnavailable(f"the transformers engine could not start: {error}") from error
        if self._tokenizer is not None:
            self._texts = TokenTexts(self._tokenizer)
        self._thread = DecodeThread(self._decoder)
        self._thread.start()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        """Sample one message; see `Policy.generate`.

        No keys are shared between sessions, so `start_version` has nothing to salt.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            PolicyError: a token outside the vocabulary, or a session used twice at once.
            PolicyUnavailable: the engine died or was closed.
        """
        if self._thread is None:
            raise PolicyUnavailable("the transformers engine was not started")
        request = self._request(prompt_ids, sampling, session)
        reason = await self._thread.generate(request)
        return Generation(
            request.sampled,
            request.logprobs,
            request.versions,
            reason,
            request.top_ids,
            request.top_logprobs,
            array("f", () if request.features is None else request.features),
        )

    async def release(self, session: str) -> None:
        """Forget a session's keys and values."""
        if self._thread is not None:
            self._thread.release(session)

    async def load(self, weights: WeightHandle) -> None:
        """Copy new weights between two tokens.

        The source (a live model, a mapping of tensors, or a folder of safetensors) must not change
        until this returns.

        Raises:
            WeightSyncError: they do not fit, or the decode thread was busy for too long.
        """
        if self._thread is None or self._decoder is None:
            raise PolicyUnavailable("the transformers engine was not started")
        decoder = self._decoder

        def take() -> None:
            decoder.load(weights.source, weights.version)
            self.attempt = weights.attempt

        try:
            await asyncio.wait_for(self._thread.call(take), self._update_limit_s)
        except TimeoutError:
            raise WeightSyncError(
                f"waited {self._update_limit_s:.0f} s for the decode thread of the transformers engine to "
                f"take version {weights.version}; raise `engine.update_limit_s` if one step takes that long"
            ) from None

    async def close(self) -> None:
        """Stop. Messages in flight fail with `PolicyUnavailable`."""
        if self._thread is not None and not await self._thread.stop(STOP_LIMIT_S):
            # Nothing is lost by it, so it is no reason for a run to end with an error.
            logger.warning(
                "waited %.0f s for the decode thread of the transformers engine to end its step; it is left "
                "behind",
                STOP_LIMIT_S,
            )

    def statistics(self) -> dict[str, float]:
        """Counters since the start."""
        return {} if self._decoder is None else self._decoder.statistics()

    def _request(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Request:
        token_ids = array("i", prompt_ids)
        room = self._context_tokens - len(token_ids)
        if room < 1:
            raise ContextOverflow(len(token_ids), self._context_tokens)
        if not token_ids:
            raise PolicyError("an empty prompt has nothing to go on from")
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self._vocabulary:
            bad = low if low < 0 else high
            raise PolicyError(
                f"prompt token {bad} at position {token_ids.index(bad)} is outside the model's vocabulary of "
                f"{self._vocabulary}; tokenizer and model do not belong together"
            )
        if sampling.top_logprobs > self._vocabulary:
            raise PolicyError(
                f"the model has {self._vocabulary} tokens, and {sampling.top_logprobs} are to be reported"
            )
        layers, asked = self._config.num_hidden_layers, sampling.prompt_features
        if asked is not None and not -layers - 1 <= asked.layer <= layers:
            raise PolicyError(
                f"the model has {layers} layers, and hidden states of layer {asked.layer} are to be "
                f"reported: take one from {-layers - 1} to {layers} (estimator.feature_layer)"
            )
        seed = self._random.getrandbits(62) if sampling.seed is None else sampling.seed
        return Request(
            session=session,
            token_ids=token_ids,
            prompt_tokens=len(token_ids),
            sampling=sampling,
            rule=self._rule(sampling.stop, sampling.stop_token_ids),
            key=stream_key(seed),
            limit=min(sampling.max_new_tokens, room),
        )

    def _rule(self, stop: tuple[str, ...], stop_token_ids: tuple[int, ...]) -> StopRule:
        rule = self._rules.get((stop, stop_token_ids))
        if rule is None:
            rule = StopRule(self._vocabulary, stop, stop_token_ids, self._texts)
            self._rules[stop, stop_token_ids] = rule
        return rule

    def _make_decoder(self) -> BatchDecoder:
        model = self._make_model()
        if self._tokenizer is None and isinstance(self._source, str | Path):
            self._tokenizer = _read_tokenizer(self._source)
        decoder = BatchDecoder(
            model,
            rows=self._slots,
            context=self._context_tokens,
            fixed=self._fixed,
            keep_keys=self._keep_keys,
        )
        decoder.version = self._version
        check_decoding(model, decoder, self._vocabulary, self._context_tokens)
        return decoder

    def _make_model(self) -> Any:
        if isinstance(self._source, torch.nn.Module):
            model: Any = plain_copy(self._source)
        else:
            from transformers import AutoModelForCausalLM

            dtype = self._dtype if self._dtype == "auto" else getattr(torch, self._dtype)
            model = AutoModelForCausalLM.from_pretrained(str(self._source), dtype=dtype)
        if self._adapter is not None:
            copy_weights(model, self._adapter)
        device = self._device
        if device == "auto" and not isinstance(self._source, torch.nn.Module):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device != "auto":
            model.to(device)
        if self._dtype != "auto":
            # Parameters only: tables of rotary frequencies must stay float32.
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, self._dtype))
        model.eval().requires_grad_(False)
        model.set_attn_implementation(ATTENTION)
        return model


def _config_of(model: Any) -> Any:
    """Configuration of the text model. Raises ConfigError when it cannot be read or decoded."""
    if isinstance(model, torch.nn.Module):
        config: Any = model.config
    else:
        from transformers import AutoConfig

        path = Path(model)
        if (path.is_absolute() or os.sep in str(model) or path.exists()) and not (
            path / "config.json"
        ).is_file():
            raise ConfigError(f"no Hugging Face model in {str(model)!r}: it has no config.json")
        try:
            config = AutoConfig.from_pretrained(str(model))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"the model {str(model)!r} cannot be read: {error}") from error
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(
            f"the transformers engine decodes models whose layers all have full attention; "
            f"{config.model_type} has {', '.join(sorted(kinds))}; use vLLM"
        )
    return config


def _context_of(config: Any, wanted: int) -> int:
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    window = getattr(config, "sliding_window", None)
    if (
        window
        and getattr(config, "layer_types", None) is None
        and getattr(config, "use_sliding_window", True)
    ):
        longest = min(longest or window, window)
    if wanted < 0 or (longest and wanted > longest):
        raise ConfigError(f"engine.context_tokens is {wanted}, and the model holds 1 to {longest}")
    if not (wanted or longest):
        raise ConfigError("the model does not say how long its context is; set engine.context_tokens")
    return wanted or longest


def _read_tokenizer(source: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError):
        return None  # Only stop texts need one, and they say so.
