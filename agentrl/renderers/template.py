"""Chat templates, rendered append-only by difference.

A chat template turns a whole conversation into text; an agent's conversation must only grow. So a
conversation is rendered as a whole once, at its start. What comes after a sampled message is the
text that the template puts after an assistant's message when the additions follow it, found with a
marker in place of the message. `prove_append_only` compares both ways on a scripted conversation.
Knows nothing of tool-call formats.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import RendererError
from agentrl.renderers.text import BREAK, TextCodec
from agentrl_envs import Message, ToolSpec

_MARKER = "\ue0f8said\ue0f9"
FOREIGN_ROLES = ("user", "tool")
"""Messages of these roles carry text of users, data and programs: never control tokens."""

PROBE = ToolSpec(
    name="probe_tool",
    description="Look something up.",
    parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    parallel=False,
    timeout_s=1.0,
)
"""A tool that scripted conversations call."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the conversation the self-test plays."""

    raw: str
    """What the assistant says, as text of sampled tokens."""
    message: Message
    """The same as a message."""
    additions: Sequence[Message]
    """What follows."""


def neutral_message(codec: TextCodec, message: Message) -> Message:
    """A copy whose foreign text cannot become control tokens."""
    message = copy.deepcopy(message)
    framed = message.pop("framed", False)
    if framed or message["role"] not in FOREIGN_ROLES:
        return message
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = codec.neutral(content)
    elif isinstance(content, list):
        for part in content:
            if part.get("type") == "text":
                part["text"] = codec.neutral(part["text"])
    return message


class ChatTemplate:
    """The chat template of one tokenizer.

    Args:
        codec: of the same tokenizer.
        options: passed to the template, for example `{"enable_thinking": False}`.

    Raises:
        RendererError: the template does not end the assistant's turn with one token.
    """

    def __init__(self, codec: TextCodec, options: Mapping[str, Any] | None = None) -> None:
        self._codec = codec
        self._options = dict(options or {})
        self.turn_end_id = self._find_turn_end()
        self._primer = self._find_primer()
        self.notes: tuple[str, ...] = ()
        """What differs, on purpose, from how the template would render a past turn."""
        if self._primer:
            self.notes = (f"every turn keeps {self._primer!r} at its start, which the template drops later",)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, announce: bool = True
    ) -> str:
        """Text of a conversation, foreign text neutralised; `announce` ends it where the assistant speaks."""
        try:
            return self._codec.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
                [neutral_message(self._codec, message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=announce,
                tokenize=False,
                **self._options,
            )
        except Exception as error:
            raise RendererError(
                f"the chat template cannot render the roles {[m['role'] for m in messages]}: {error}"
            ) from error

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the start of a conversation, ending where the assistant speaks."""
        return self._codec.encode(self.render(messages, tools))

    def extension_ids(self, sampled: Sequence[int], additions: Sequence[Message]) -> list[int]:
        """Ids after a sampled message: the end of its turn unless sampled, additions, announcement."""
        ids = self._codec.encode(self._after_assistant(additions))
        return ids[1:] if len(sampled) and sampled[-1] == self.turn_end_id else ids

    def _after_assistant(self, additions: Sequence[Message], *, announce: bool = True) -> str:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARKER}, *additions]
        text = self.render(messages, announce=announce)
        if text.count(_MARKER) != 1:
            raise RendererError(
                f"the chat template shows an assistant's message {text.count(_MARKER)} times when "
                f"{[m['role'] for m in additions]} follow it; it must be shown exactly once"
            )
        return text.split(_MARKER)[1]

    def _find_turn_end(self) -> int:
        text = self._after_assistant([], announce=False)
        ids = self._codec.encode(text)
        if not ids or ids[0] not in self._codec.control_ids:
            raise RendererError(
                "the chat template must end an assistant's message with one special token, "
                f"so that the model can end its turn; it puts {text!r} there"
            )
        return ids[0]

    def _find_primer(self) -> str:
        """What the announcement puts into the assistant's mouth (an empty thought, say)."""
        messages = [{"role": "user", "content": "a"}]
        announced = self.render(messages)
        whole = self.render([*messages, {"role": "assistant", "content": _MARKER}, *messages], announce=False)
        header = whole.split(_MARKER)[0]
        if not announced.startswith(header):
            raise RendererError(
                f"the chat template announces the assistant with {announced[-60:]!r}, and shows its message "
                f"after {header[-60:]!r}; the first must begin with the second"
            )
        return announced[len(header) :]

    def prove_append_only(
        self, steps: Sequence[Step], opening: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Compare growing a conversation with rendering it as a whole.

        Args:
            steps: of a scripted conversation.
            opening: the messages before.
            tools: listed by the template.

        Raises:
            RendererError: the two differ; the text says at which step, and where.
        """
        end = self._codec.decode([self.turn_end_id])
        messages = list(opening)
        grown = self._codec.decode(self.prompt_ids(messages, tools))
        whole = self.render(messages, tools).replace(BREAK, "")
        _compare(grown, whole, "the opening (the tokenizer does not give text back exactly)")
        for number, step in enumerate(steps, 1):
            sampled = [*self._codec.encode(step.raw), self.turn_end_id]
            messages += [step.message, *step.additions]
            added = self._codec.decode(self.extension_ids(sampled, step.additions))
            # A past turn is shown without its primer; that the grown conversation keeps it is noted.
            grown = grown[: len(grown) - len(self._primer)] + step.raw + end + added
            whole = self.render(messages, tools).replace(BREAK, "")
            roles = " and ".join(dict.fromkeys(str(m["role"]) for m in step.additions))
            _compare(grown, whole, f"step {number}, an assistant's message followed by {roles}")


def _compare(grown: str, whole: str, where: str) -> None:
    if grown == whole:
        return
    at = next((i for i, (a, b) in enumerate(zip(grown, whole, strict=False)) if a != b), None)
    at = min(len(grown), len(whole)) if at is None else at
    raise RendererError(
        f"the chat template is not append-only at {where}: growing the conversation gives "
        f"{grown[max(0, at - 40) : at + 40]!r}, rendering it as a whole {whole[max(0, at - 40) : at + 40]!r}"
    )
