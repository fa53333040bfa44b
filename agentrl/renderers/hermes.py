"""The Hermes and Qwen format: `<tool_call>` with JSON, tools listed in the prompt.

Where the chat template knows the format (Qwen2.5, Qwen3, Hermes), it lists the tools and wraps
their results. Where it does not (SmolLM2, Llama 3), the tools are listed in the system message and
results come as the user's message, in the same tags; the template then only frames turns. Knows
nothing of who runs the tools.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import RendererError
from agentrl.renderers.base import ParsedMessage
from agentrl.renderers.template import PROBE, ChatTemplate, Step
from agentrl.renderers.text import TextCodec, fenced_code, message_id
from agentrl_envs import Message, ToolCall, ToolResult, ToolSpec, text_of
from agentrl_envs.messages import MOST_CALLS
from agentrl_envs.plain import read_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THOUGHT_END = "</think>"

LISTING = """\
You may call these tools. Each is described by a JSON schema, one to a line:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and its arguments between these tags, and end your message:
<tool_call>
{{"name": "the tool", "arguments": {{"argument": "value"}}}}
</tool_call>
The result comes back between <tool_response> and </tool_response>. To answer, write no call."""
"""Added to the system message where the chat template does not list tools."""

_PROBE_CALL = {"name": "probe_tool", "arguments": {"code": "print(1)"}}


class HermesRenderer:
    """Tools are called by `<tool_call>` with JSON.

    Args:
        tokenizer: with a chat template.
        stop_token_ids: further tokens that end a message, beside the tokenizer's own.
        template_options: passed to the chat template, for example `{"enable_thinking": False}`.

    Raises:
        RendererError: there is no chat template, or it is not append-only; says why.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_token_ids: Sequence[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RendererError(
                'the format "hermes" needs a tokenizer with a chat template, and this one has none; without '
                'one, "code" calls a tool python(code)'
            )
        self._codec = TextCodec(tokenizer)
        self._template = ChatTemplate(self._codec, template_options)
        ends = (self._template.turn_end_id, tokenizer.eos_token_id, *stop_token_ids)
        self.stop: tuple[str, ...] = ()
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        self.turn_end_id: int = self._template.turn_end_id
        self.template_lists_tools = self._knows_format()
        self._has_system = self._knows_system()
        self._self_test()

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs, on purpose, from how the template would render a past turn."""
        return self._template.notes

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Ids of the prompt with the tools listed."""
        if self.template_lists_tools or not tools:
            return self._template.prompt_ids(messages, [tool.as_openai() for tool in tools])
        return self._template.prompt_ids(self._with_listing(messages, tools))

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedMessage:
        """Text of a message and all its calls, those written inside `<think>` left out."""
        ended = len(token_ids) > 0 and token_ids[-1] in self.stop_token_ids
        text = self._codec.decode(token_ids[:-1] if ended else token_ids)
        found = _spoken_calls(text)
        # Once for all: a model that repeats itself opens thousands of calls in as many tokens.
        first = message_id(token_ids)
        calls = tuple(
            _read_call(text[begin + len(OPEN) : stop].strip(), text[begin:end], f"{first}_{i}", ended)
            for i, (begin, stop, end) in enumerate(found[:MOST_CALLS])
        )
        if len(found) > MOST_CALLS:
            calls = (*calls[:-1], calls[-1].as_last_of(len(found)))
        message: Message = {"role": "assistant", "content": text}
        if calls:
            message = {
                "role": "assistant",
                "content": text[: found[0][0]].rstrip(),
                "tool_calls": [_as_openai(call) for call in calls],
            }
        return ParsedMessage(text=text, tool_calls=calls, message=message)

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Ids of the end of the turn unless it was sampled, the results or the reply, the announcement."""
        if isinstance(additions, str):
            return self._template.extension_ids(sampled, [{"role": "user", "content": additions}])
        return self._template.extension_ids(sampled, self._result_messages(additions))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included."""
        return self._codec.decode(token_ids)

    def _result_messages(self, results: Sequence[ToolResult]) -> list[Message]:
        if self.template_lists_tools:
            return [
                {"role": "tool", "name": result.name, "tool_call_id": result.call_id, "content": result.text}
                for result in results
            ]
        # The tags are ours, the text between them is foreign.
        framed = "\n".join(
            f"<tool_response>\n{self._codec.neutral(result.text)}\n</tool_response>" for result in results
        )
        return [{"role": "user", "content": framed, "framed": True}]

    def _with_listing(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        lines = "\n".join(json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
        listing = LISTING.format(tools=lines)
        out = [dict(message) for message in messages]
        role = "system" if self._has_system else "user"
        target = next((message for message in out if message["role"] == role), None)
        if target is None:
            return [{"role": "system", "content": listing}, *out]
        texts = (text_of(target), listing) if role == "system" else (listing, text_of(target))
        target["content"] = "\n\n".join(text for text in texts if text)
        return out

    def _knows_format(self) -> bool:
        """Whether the template lists tools and asks for `<tool_call>`."""
        text = self._template.render([_user("a")], [PROBE.as_openai()])
        return PROBE.name in text and OPEN in text

    def _knows_system(self) -> bool:
        try:
            return "be brief" in self._template.render(
                [{"role": "system", "content": "be brief"}, _user("a")]
            )
        except RendererError:
            return False

    def _self_test(self) -> None:
        """A call, its result, an answer, a user's reply, another call with two results, and a reply."""
        raw = f"{OPEN}\n{json.dumps(_PROBE_CALL)}\n{CLOSE}"
        read = self.parse(self._codec.encode(raw)).tool_calls
        if len(read) != 1 or read[0].arguments != _PROBE_CALL["arguments"]:
            raise RendererError(f"the tokenizer cannot write a tool call: {raw!r} comes back as {read}")
        one = self._result_messages([_result("1")])
        two = self._result_messages([_result("1"), _result("<b>2</b>\n")])
        steps = [
            Step(f"Let me see.\n{raw}", self._said("Let me see.", raw, 1), one),
            Step("It is 1.", self._said("It is 1."), [_user("Are you sure?")]),
            Step(f"Again.\n{raw}\n{raw}", self._said("Again.", raw, 2), two),
            Step("Yes, 1.", self._said("Yes, 1."), [_user("Thank you.")]),
        ]
        tools = [PROBE.as_openai()] if self.template_lists_tools else []
        self._template.prove_append_only(steps, [_user("What is it?")], tools)

    def _said(self, content: str, raw: str = "", calls: int = 0) -> Message:
        if not calls or not self.template_lists_tools:
            return {"role": "assistant", "content": "\n".join([content, *[raw] * calls])}
        function = {"type": "function", "function": _PROBE_CALL}
        return {"role": "assistant", "content": content, "tool_calls": [function] * calls}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _result(text: str) -> ToolResult:
    return ToolResult(call_id="call_0", name=PROBE.name, text=text, ok=True, seconds=0.0)


def _calls(text: str) -> list[tuple[int, int, int]]:
    """(begin, end of the body, end) of each call; one that is not closed ends at the next."""
    found: list[tuple[int, int, int]] = []
    before, *pieces = text.split(OPEN)
    begin = len(before)
    for piece in pieces:
        closed = piece.find(CLOSE)
        stop = begin + len(OPEN) + (len(piece) if closed < 0 else closed)
        found.append((begin, stop, stop if closed < 0 else stop + len(CLOSE)))
        begin += len(OPEN) + len(piece)
    return found


def _spoken_calls(text: str) -> list[tuple[int, int, int]]:
    """The calls after the thought: `</think>` inside a call that can be read ends none."""
    found, end = _calls(text), text.rfind(THOUGHT_END)
    for begin, stop, _ in reversed(found):
        if end >= stop or end < 0:
            break
        if begin < end:
            if not _is_json(text[begin + len(OPEN) : stop]):
                break
            end = text.rfind(THOUGHT_END, 0, begin)
    return [call for call in found if call[0] >= end]


_JSON = json.JSONDecoder(strict=False)  # made once: `json.loads` makes one a call


def _is_json(body: str) -> bool:
    """Whether a call was meant; what is wrong with its numbers is said when it is read."""
    try:
        _JSON.decode(body)
    except (ValueError, RecursionError):
        return False
    return True


def _as_openai(call: ToolCall) -> dict[str, Any]:
    arguments = call.raw if call.arguments is None else call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _read_call(body: str, raw: str, call_id: str, ended: bool) -> ToolCall:
    """One call; what is wrong with it is said to the model. What is read although it departs is `loose`."""

    def bad(why: str, name: str = "") -> ToolCall:
        return ToolCall(call_id, name, None, raw=raw, error=f"this tool call cannot be read: {why}")

    loose = ""
    if not raw.endswith(CLOSE):
        if not ended or not _is_json(body):
            return bad(f"it has no closing {CLOSE}")
        loose = "unclosed"
    if body.startswith("```"):
        body, loose = fenced_code(body), "fenced"
    try:
        data = read_json(body)
    except ValueError as error:
        data, loose = _python_literal(body), "python_literal"
        if data is None:
            return bad(f"not JSON ({error})")
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or not name:
        return bad('it must be an object with the keys "name" and "arguments"')
    if "arguments" not in data and "parameters" in data:
        loose = "parameters_key"
    arguments = data.get("arguments", data.get("parameters", {}))
    if isinstance(arguments, str):
        loose = "arguments_as_text"
        try:
            arguments = read_json(arguments)
        except ValueError as error:
            return bad(f'its "arguments" are not JSON ({error})', name)
    if not isinstance(arguments, dict):
        return bad('its "arguments" must be an object', name)
    return ToolCall(call_id, name, arguments, raw=raw, loose=loose)


def _python_literal(body: str) -> Any:
    """A call as Python writes a dict (`{'name': ...}`); None where it is none or has no JSON form."""
    if len(body) > _LONGEST_LITERAL or "\\" in body:  # escapes mean other things in Python
        return None
    try:
        value = ast.literal_eval(body)
        named = isinstance(value, dict) and isinstance(value.get("name"), str)
        return read_json(json.dumps(value, allow_nan=False)) if named else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


_LONGEST_LITERAL = 20_000
