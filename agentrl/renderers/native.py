"""The format a model family was trained on, by the package `renderers` (XML, channels, JSON, primers).

The package knows the families; here its rendering is held against the tokenizer's own chat template,
foreign text is kept from becoming control tokens, and only what follows a sampled message is taken from its
bridge, so that what was sampled stays as it was. Knows nothing of who runs the tools.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import RendererError
from agentrl.renderers.base import ParsedMessage, refuse_pictures
from agentrl.renderers.template import PROBE, neutral_message
from agentrl.renderers.text import TextCodec, message_id
from agentrl_envs import Message, ToolCall, ToolResult, ToolSpec
from agentrl_envs.messages import MOST_CALLS
from agentrl_envs.plain import read_json

REMEDY = 'pip install "agentrl[native]" installs it'

_PROBE_ARGUMENTS = {"code": "print(1)"}
_ASKED: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One and one?"},
]


def has_package() -> bool:
    """Whether the package `renderers` is installed; nothing is imported."""
    return importlib.util.find_spec("renderers") is not None


def families() -> tuple[str, ...]:
    """Families that the installed package knows, by its names for them."""
    base = _package()
    return tuple(name for name in base.RENDERER_REGISTRY if name not in ("default", "custom", "auto"))


def family_of(tokenizer: Any, options: Mapping[str, Any] | None = None) -> str | None:
    """The family whose conversations a tokenizer's own chat template writes, control tokens included.

    A tokenizer that ships no template is recognised by its name alone. None where no family fits, or the
    package is not installed.
    """
    if not has_package():
        return None
    named = _named_family(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        return named
    candidates = dict.fromkeys([named] if named else []) | dict.fromkeys(families())
    for family in candidates:
        try:
            NativeRenderer(tokenizer, family=family, template_options=options)
        except RendererError:
            continue
        return family
    return None


class NativeRenderer:
    """Tools are called as the model's family writes them.

    Args:
        tokenizer: of a family that the package `renderers` knows.
        family: its name in the package (`qwen3.5`, `gpt-oss`, ...); empty takes the one that the chat
            template fits.
        stop_token_ids: further tokens that end a message.
        template_options: such as `{"enable_thinking": False}`; those that the family's template takes.

    Raises:
        RendererError: the package is missing, no family fits, or the family's rendering is not what the
            tokenizer's chat template writes, or does not grow by appending; says which.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        family: str = "",
        stop_token_ids: Sequence[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not has_package():
            raise RendererError(f'the format "native" needs the package renderers; {REMEDY}')
        self._options = dict(template_options or {})
        self.family = family or family_of(tokenizer, self._options) or ""
        if not self.family:
            raise RendererError(
                'the format "native" knows no family that writes what this chat template writes; '
                f'known: {", ".join(families())}. "code" and "hermes" work with more templates'
            )
        self._codec = TextCodec(tokenizer)
        self._renderer = self._make(self._options)
        try:
            self._prove(tokenizer, stop_token_ids)
        except RendererError as error:
            # A family's sizes may differ in whether they think unless they are told.
            if "enable_thinking" in self._options:
                raise
            try:
                self._renderer = self._make({**self._options, "enable_thinking": False})
                self._prove(tokenizer, stop_token_ids)
            except RendererError:
                raise error from None

    def _prove(self, tokenizer: Any, stop_token_ids: Sequence[int]) -> None:
        self._opening = self._render([{"role": "user", "content": "a"}], (), announce=True)
        ends = (*self._renderer.get_stop_token_ids(), tokenizer.eos_token_id, *stop_token_ids)
        self.stop: tuple[str, ...] = ()
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        self.turn_end_id: int = self._find_turn_end()
        self._self_test()

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Ids of the prompt with the tools listed."""
        return self._render(messages, tools, announce=True)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedMessage:
        """What is said after the thought, and all calls. Types of arguments are those of `tools`."""
        ids = list(token_ids)
        try:
            read = self._renderer.parse_response(ids, tools=_listed(tools), prompt_ids=self._opening)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            text = self._codec.decode(ids[:-1] if ids and ids[-1] in self.stop_token_ids else ids)
            return ParsedMessage(text, (), {"role": "assistant", "content": text})
        first = message_id(ids)
        found = read.tool_calls
        calls = tuple(_call(call, f"{first}_{i}") for i, call in enumerate(found[:MOST_CALLS]))
        if len(found) > MOST_CALLS:
            calls = (*calls[:-1], calls[-1].as_last_of(len(found)))
        message: Message = {"role": "assistant", "content": read.content}
        if read.reasoning_content:
            message["reasoning_content"] = read.reasoning_content
        if calls:
            message["tool_calls"] = [_as_openai(call) for call in calls]
        return ParsedMessage(read.content, calls, message)

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Ids of the end of the turn unless it was sampled, the results or the reply, the announcement."""
        if isinstance(additions, str):
            return self._after(sampled, [{"role": "user", "content": additions}])
        return self._after(
            sampled,
            [
                {"role": "tool", "name": result.name, "tool_call_id": result.call_id, "content": result.text}
                for result in additions
            ],
        )

    def write(self, message: Message, tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Ids that the model samples to say an assistant's message, with the token that ends it."""
        asked: list[Message] = [{"role": "user", "content": "a"}]
        start = len(self._render(asked, tools, announce=False))
        ids = self._sampled(self._render([*asked, message], tools, announce=False)[start:])
        ends = [at for at, token in enumerate(ids) if token in self.stop_token_ids]
        if ends:
            return ids[: ends[-1] + 1]
        return [*ids, self._call_end if message.get("tool_calls") else self.turn_end_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included."""
        return self._codec.decode(token_ids)

    def _make(self, options: Mapping[str, Any]) -> Any:
        base = _package()
        from renderers.configs import config_from_name

        try:
            config: Any = config_from_name(self.family)
            if "thinking_retention" in type(config).model_fields:
                config = config.model_copy(update={"thinking_retention": "all"})
            if options:
                config = base.merge_chat_template_kwargs(config, options)
            return base.create_renderer(_Guarded(self._codec), config)
        except (
            Exception
        ) as error:  # pydantic, KeyError, ValueError, AssertionError: all say what does not fit
            raise RendererError(f"the family {self.family!r} does not fit this tokenizer: {error}") from error

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, announce: bool) -> list[int]:
        refuse_pictures(messages)
        neutral = [neutral_message(self._codec, message) for message in messages]
        try:
            return list(
                self._renderer.render_ids(neutral, tools=_listed(tools), add_generation_prompt=announce)
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise RendererError(
                f"the family {self.family!r} cannot render the roles {[m['role'] for m in messages]}: {error}"
            ) from error

    def _after(self, sampled: Sequence[int], additions: Sequence[Message]) -> list[int]:
        neutral = [neutral_message(self._codec, message) for message in additions]
        ended = list(sampled[-1:]) if len(sampled) and sampled[-1] in self.stop_token_ids else []
        # A thought that was never closed cannot be bridged; what follows depends on how the message ended.
        for before in (list(sampled), [*self._said, *ended]):
            bridged = self._renderer.bridge_to_next_turn(self._opening, before, neutral)
            start = [*self._opening, *before]
            if bridged is not None and list(bridged.token_ids[: len(start)]) == start:
                return list(bridged.token_ids[len(start) :])
        raise RendererError(
            f"the family {self.family!r} cannot go on after a message followed by "
            f"{' and '.join(dict.fromkeys(str(m['role']) for m in additions))}"
        )

    def _find_turn_end(self) -> int:
        said: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids = self._render([*said, said[0]], (), announce=True)
        start = len(self._render(said[:1], (), announce=False))
        letter = self._codec.encode("b")[-1]
        for at in range(start + 1, len(ids)):
            if ids[at] in self.stop_token_ids and letter in ids[start:at]:
                newest = self._render(said, (), announce=False)
                last = len(newest) - newest[::-1].index(letter)
                self._said = self._sampled(newest[start:last])
                return ids[at]
        raise RendererError(
            f"the family {self.family!r} ends an assistant's message with no token that stops"
        )

    def _self_test(self) -> None:
        """The opening and a call with its result as the chat template writes them, the call read back, and
        the conversation grown by appending."""
        called: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "functions.probe_tool:0",
                    "type": "function",
                    "function": {"name": PROBE.name, "arguments": _PROBE_ARGUMENTS},
                }
            ],
        }
        told: Message = {
            "role": "tool",
            "name": PROBE.name,
            "tool_call_id": "functions.probe_tool:0",
            "content": "2",
        }
        for messages in (_ASKED, _ASKED[1:], [*_ASKED, called, told]):
            self._same_as_template(messages, [PROBE])
        self._same_as_template(_ASKED[1:], [])
        self._reads_back([*_ASKED, called], told)
        self._after([*self._said, self.turn_end_id], _ASKED[1:])

    def _same_as_template(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> None:
        tokenizer: Any = self._codec.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return
        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                tools=_listed(tools),
                add_generation_prompt=True,
                tokenize=False,
                **self._options,
            )
        except Exception as error:
            raise RendererError(f"the chat template cannot render a call and its result: {error}") from error
        want, got = text, self.decode(self.start(messages, tools))
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), 0)
            raise RendererError(
                f"the family {self.family!r} does not write what the tokenizer's chat template writes: "
                f"{got[max(0, at - 30) : at + 50]!r} for {want[max(0, at - 30) : at + 50]!r}"
            )

    def _reads_back(self, messages: Sequence[Message], told: Message) -> None:
        """A call that is written is read again, and what follows it is what a whole rendering has there."""
        whole = self._render([*messages, told], [PROBE], announce=True)
        prompt = len(self._render(messages[:-1], [PROBE], announce=False))
        ends = [i for i in range(prompt, len(whole)) if whole[i] in self.stop_token_ids]
        for end in ends:
            sampled = self._sampled(whole[prompt : end + 1])
            calls = self.parse(sampled, [PROBE]).tool_calls
            if len(calls) == 1 and calls[0].arguments == _PROBE_ARGUMENTS:
                break
        else:
            raise RendererError(
                f"the family {self.family!r} writes a call that cannot be read back: "
                f"{self.decode(whole[prompt:])!r}"
            )
        result = ToolResult(
            call_id=str(told["tool_call_id"]), name=PROBE.name, text="2", ok=True, seconds=0.0
        )
        self._call_end = sampled[-1]
        added = self.extend(sampled, [result])
        if added != whole[end + 1 :]:
            raise RendererError(
                f"the family {self.family!r} is not append-only: growing gives {self.decode(added)!r} after "
                f"a call, rendering it as a whole {self.decode(whole[end + 1 :])!r}"
            )

    def _sampled(self, ids: list[int]) -> list[int]:
        """A written message without its announcement."""
        closed = self._render([{"role": "user", "content": "a"}], (), announce=False)
        announcement = self._opening[len(closed) :]
        shared = 0
        while shared < min(len(ids), len(announcement)) and ids[shared] == announcement[shared]:
            shared += 1
        return ids[shared:]


class _Guarded:
    """A tokenizer that never encodes foreign text to control tokens: `neutral` texts are taken in pieces.

    Not callable, so that the package asks for no offsets.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self.name_or_path: str = getattr(codec.tokenizer, "name_or_path", "")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `__call__` among them
            raise AttributeError(name)
        return getattr(self._codec.tokenizer, name)

    def encode(self, text: str, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a text, control texts that were not broken included."""
        return self._codec.encode(text)

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        """Text of token ids, exactly."""
        return self._codec.decode([token_ids] if isinstance(token_ids, int) else list(token_ids))


def _package() -> Any:
    try:
        base: Any = importlib.import_module("renderers.base")
    except ImportError as error:
        raise RendererError(f"the package renderers cannot be imported: {error}; {REMEDY}") from error
    base._populate_registry()
    return base


def _named_family(tokenizer: Any) -> str | None:
    """The family of a model by its name, or by the folder's where it was copied to."""
    name = str(getattr(tokenizer, "name_or_path", ""))
    known: Mapping[str, str] = _package().MODEL_RENDERER_MAP
    if name in known:
        return known[name]
    last = name.rstrip("/").rpartition("/")[2]
    return next((family for model, family in known.items() if model.rpartition("/")[2] == last), None)


def _listed(tools: Sequence[ToolSpec]) -> list[dict[str, Any]] | None:
    return [tool.as_openai() for tool in tools] or None


def _as_openai(call: ToolCall) -> dict[str, Any]:
    arguments = call.raw if call.arguments is None else call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


_FAULTS = {
    "invalid_json": "its arguments are not JSON",
    "unclosed_block": "it is not closed",
    "missing_name": "it names no tool",
    "malformed_structure": "it is not in the format of tool calls",
}


def _call(read: Any, call_id: str) -> ToolCall:
    """A call as the package read it; what is wrong with it is said to the model."""
    name: str = read.name or ""
    arguments: Any = read.arguments
    why = _FAULTS.get(str(read.status), "")
    given: dict[str, Any] = {}
    if not why:
        try:
            # The package takes NaN and infinities, and arguments that are JSON within a string.
            if isinstance(arguments, str):
                arguments = read_json(arguments)
            if isinstance(arguments, dict):
                given = arguments
            else:
                why = "its arguments must be an object"
        except ValueError as error:
            why = f"its arguments are not JSON ({error})"
    if why:
        return ToolCall(call_id, name, None, raw=read.raw, error=f"this tool call cannot be read: {why}")
    return ToolCall(call_id, name, dict(given), raw=read.raw)
