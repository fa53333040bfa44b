"""The code-block format of the SPO paper (section 5.1, after ReTool).

The model writes `<code>`, a fenced Python block and `</code>`, and stops there; the result follows
as `<interpreter>` text in the same assistant turn, without a change of roles. Works with a chat
template, and without one for tokenizers that have none. Knows nothing of who runs the code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import RendererError
from agentrl.renderers.base import ParsedMessage, runs_code
from agentrl.renderers.template import ChatTemplate, Step
from agentrl.renderers.text import TextCodec, fenced_code, message_id
from agentrl_envs import Message, ToolCall, ToolResult, ToolSpec, text_of

OPEN, CLOSE = "<code>", "</code>"

INSTRUCTIONS = """\
Solve the task below step by step. Where it helps, you may write Python, and it is run for you at once. \
Write it exactly like this:
<code>
```python
print(2 ** 10)
```
</code>
What the program prints comes back to you between <interpreter> and </interpreter>; then go on with your \
reasoning. Print what you want to see, and import what you need. You may do this several times."""
"""Put before the first user message, for tokenizers with a chat template."""


class CodeRenderer:
    """Tools are called by writing Python.

    Args:
        tokenizer: with a chat template or without.
        instructions: text before the first user message; None takes `INSTRUCTIONS` where there is a
            chat template, and nothing otherwise.
        tool_name: the tool that code blocks call.
        argument: its only argument, the code.
        stop_token_ids: further tokens that end a message, beside the tokenizer's own.
        template_options: passed to the chat template.

    Raises:
        RendererError: the tokenizer cannot write the format, or its template is not append-only.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        instructions: str | None = None,
        tool_name: str = "python",
        argument: str = "code",
        stop_token_ids: Sequence[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._codec = TextCodec(tokenizer)
        self._tool_name, self._argument = tool_name, argument
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self._template = ChatTemplate(self._codec, template_options) if has_template else None
        if instructions is None:
            instructions = INSTRUCTIONS if has_template else ""
        self._instructions = instructions
        turn_end = self._template.turn_end_id if self._template else tokenizer.eos_token_id
        ends = [i for i in (tokenizer.eos_token_id, turn_end, *stop_token_ids) if i is not None]
        self.stop: tuple[str, ...] = (CLOSE,)
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self.turn_end_id: int = turn_end if turn_end is not None else next(iter(ends), -1)
        self._prefix = self._begin_of_text(tokenizer)
        self._self_test()

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Ids of the prompt. Raises RendererError when the tools cannot be called by code blocks."""
        self._check_tools(tools)
        instructions = self._instructions if tools else ""
        if self._template is None:
            texts = [instructions, *(text_of(message) for message in messages)]
            lines = "".join(f"{text}\n" for text in texts if text)
            return [*self._prefix, *self._codec.encode(self._codec.neutral(lines))]
        return self._template.prompt_ids(with_instructions(messages, instructions))

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedMessage:
        """Text of a message, and the call its first closed code block makes.

        Where there is none, a Markdown fence of Python that ends the message makes it, unless an answer is
        stated too: models that were not trained on the format often write one.
        """
        said = _without_end(token_ids, self.stop_token_ids)
        text = self._codec.decode(said)
        call = self._read_call(text, token_ids)
        if call is None and tools and len(said) < len(token_ids):
            call = self._read_fence(text, token_ids)
        message: Message = {"role": "assistant", "content": text}
        return ParsedMessage(text=text, tool_calls=() if call is None else (call,), message=message)

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Ids of `<interpreter>` text in the same turn, or of a user's reply."""
        if isinstance(additions, str):
            return self._reply(sampled, additions)
        if self._template is not None and len(sampled) and sampled[-1] in self.stop_token_ids:
            # The message is over, as after a fence: what is said next is another's.
            framed = "".join(self._framed(result.text) for result in additions).rstrip("\n")
            return self._template.extension_ids(
                sampled, [{"role": "user", "content": framed, "framed": True}]
            )
        ids: list[int] = []
        for result in additions:
            ids += self._codec.encode(self._framed(result.text))
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included."""
        return self._codec.decode(token_ids)

    def _framed(self, output: str) -> str:
        return f"<interpreter>\n{self._codec.neutral(output)}\n</interpreter>\n\n"

    def _reply(self, sampled: Sequence[int], text: str) -> list[int]:
        if self._template is None:
            return self._codec.encode(self._codec.neutral(f"\n{text}\n"))
        return self._template.extension_ids(sampled, [{"role": "user", "content": text}])

    def _read_call(self, text: str, token_ids: Sequence[int]) -> ToolCall | None:
        end = text.find(CLOSE)
        begin = text.rfind(OPEN, 0, end) if end >= 0 else -1
        if begin < 0:
            return None
        block = text[begin + len(OPEN) : end]
        code = fenced_code(block)
        call_id = message_id(token_ids)
        raw = text[begin : end + len(CLOSE)]
        if not code.strip():
            error = "the code block is empty; write Python between <code> and </code>"
            return ToolCall(call_id, self._tool_name, None, raw=raw, error=error)
        return ToolCall(call_id, self._tool_name, {self._argument: code}, raw=raw)

    def _read_fence(self, text: str, token_ids: Sequence[int]) -> ToolCall | None:
        if "<think>" in text.rpartition("</think>")[2] or any(mark in text for mark in _ANSWERS):
            return None
        found = _FENCE.search(text)
        if found is None or "```" in found[1] or not found[1].strip() or "</think>" in found[0]:
            return None
        arguments = {self._argument: found[1].strip("\n")}
        return ToolCall(message_id(token_ids), self._tool_name, arguments, raw=found[0], loose="fence")

    def _check_tools(self, tools: Sequence[ToolSpec]) -> None:
        if tools and not any(runs_code(tool, self._tool_name, self._argument) for tool in tools):
            names = ", ".join(f"{tool.name}({', '.join(tool.parameters['properties'])})" for tool in tools)
            remedy = (
                'set `rollout.format = "hermes"` or rename the tool'
                if self._template is not None
                else 'rename the tool ("hermes" needs a chat template, which this tokenizer lacks)'
            )
            raise RendererError(
                f'the format "code" calls a tool {self._tool_name}({self._argument}), and the environment '
                f"offers {names}; {remedy}"
            )

    @staticmethod
    def _begin_of_text(tokenizer: Any) -> list[int]:
        """The token that the tokenizer itself puts before a text, if any."""
        first = tokenizer.encode("a", add_special_tokens=True)[:1]
        return first if first and first[0] == tokenizer.bos_token_id else []

    def _self_test(self) -> None:
        for text in (f"{OPEN}\n```python\nprint(1)\n```\n{CLOSE}", "<interpreter>\n1\n</interpreter>\n\n"):
            got = self._codec.decode(self._codec.encode(text))
            if got != text:
                raise RendererError(
                    f"the tokenizer cannot write the code format: {text!r} comes back as {got!r}"
                )
        if not self.stop_token_ids:
            raise RendererError("the tokenizer has no end-of-text token, so that no message could end")
        if self._template is not None:
            steps = [
                Step("So it is 2.", {"role": "assistant", "content": "So it is 2."}, [_user("And then?")]),
                Step("Then 3.", {"role": "assistant", "content": "Then 3."}, [_user("<b>Fine.</b>")]),
            ]
            self._template.prove_append_only(steps, [_user("One and one?")])


_FENCE = re.compile(r"```(?:python|py)[^\S\n]*\n((?:(?!```).)*)\n[^\S\n]*```\s*\Z", re.DOTALL)
_ANSWERS = ("boxed", "<answer>")


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _without_end(token_ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    return token_ids[:-1] if len(token_ids) and token_ids[-1] in ends else token_ids


def with_instructions(messages: Sequence[Message], instructions: str) -> list[Message]:
    """The messages with the instructions before the text of the first user message."""
    out = [dict(message) for message in messages]
    first = next((message for message in out if message["role"] == "user"), None)
    if first is None or not instructions:
        return out
    content = first.get("content", "")
    if isinstance(content, str):
        first["content"] = f"{instructions}\n\n{content}"
    else:
        first["content"] = [{"type": "text", "text": f"{instructions}\n\n"}, *content]
    return out
