"""Recognises, in the history that a program sends back, the messages that it was given.

Programs return what they got in other words: arguments as text or as an object, content null or empty, spaces
stripped, a line added. What is recognised is replaced by the message that the completer knows, so
that the conversation goes on from its exact tokens; what a program added to a message of ours goes before the
text that follows it. What is not recognised stays as it is, and then the conversation opens a segment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl_envs import Message

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Text of a message, and name and arguments of its calls."""


@dataclass(frozen=True, slots=True)
class Given:
    """A message that a program was given."""

    before: list[Message]
    """The conversation that it ends."""
    message: Message
    """As the completer knows it."""
    texts: tuple[str, str]
    """As the program was told it, and as it was sampled, with its calls and the text that ended it."""
    call_ids: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    """A conversation as far as it was looked through."""

    messages: list[Message] = field(default_factory=list[Message])
    """As the program sent them."""
    known: list[Message] = field(default_factory=list[Message])
    """With those that were given in their own form."""
    names: dict[str, str] = field(default_factory=dict[str, str])
    """Of the tools that were called, by the id of the call."""
    carried: str = ""
    """What was added to a message of ours, until it stands before the next one."""

    def begins(self, messages: Sequence[Message]) -> bool:
        """Whether `messages` begin with these."""
        return list(messages[: len(self.messages)]) == self.messages


class History:
    """What one episode's programs were given."""

    def __init__(self) -> None:
        self._given: dict[Key, list[Given]] = {}
        self._by_length: dict[int, list[Given]] = {}
        self._newest = _Known()

    def add(
        self,
        before: Sequence[Message],
        message: Message,
        texts: tuple[str, str],
        calls: Sequence[tuple[str, str, str]],
    ) -> None:
        """Remember a message as it was told and sampled, with id, name and arguments of its calls."""
        given = Given(list(before), message, texts, tuple(call[0] for call in calls))
        self._given.setdefault(_key(texts[0], [call[1:] for call in calls]), []).append(given)
        self._by_length.setdefault(len(given.before), []).append(given)

    def known(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the messages that were given in their own form."""
        # Nearly every request is the one before with a few messages more.
        known = self._newest if self._newest.begins(messages) else _Known()
        self._newest = _Known()
        for message in messages[len(known.messages) :]:
            self._add_known(known, message)
        self._newest = known
        return list(known.known)

    def _add_known(self, to: _Known, message: Message) -> None:
        to.messages.append(message)
        if message["role"] == "assistant":
            found, rest = self._recognised(message, to.known)
            to.carried = f"{to.carried}\n{rest}".strip() if rest else to.carried
            shown = found or message
            for call in message.get("tool_calls") or shown.get("tool_calls") or ():
                to.names[call["id"]] = call["function"]["name"]
            to.known.append(shown)
            return
        if message["role"] == "tool":
            message = {**message, "name": to.names.get(message["tool_call_id"], message.get("name") or "")}
        if to.carried and message["role"] != "system":
            message = {**message, "content": f"{to.carried}\n\n{message['content']}"}
            to.carried = ""
        to.known.append(message)

    def _recognised(self, message: Message, before: list[Message]) -> tuple[Message | None, str]:
        """The message that was given, if it was, and what the program added to it."""
        text = message["content"]
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
        same = self._given.get(_key(text, calls), [])
        for given in same:
            if given.before == before:
                return given.message, ""
        if not calls:
            for given in self._by_length.get(len(before), []):
                rest = _rest(given, text.strip())
                if rest is not None and given.before == before:
                    return given.message, rest
        # The same message after another history: it is what was said, and the history decides.
        return (same[0].message if same else None), ""


def _rest(given: Given, text: str) -> str | None:
    """What comes after the given message in a text that begins with it; None where it does not.

    A message of calls alone is recognised by their ids, which a program that writes calls as text quotes.
    """
    told, sampled = (one.strip() for one in given.texts)
    # A program may put back the text that ended a message (`</code>`).
    said = sampled if sampled and text.startswith(sampled) else told
    quotes = all(one in text for one in given.call_ids)
    return (
        text[len(said) :].strip() if text.startswith(said) and quotes and (said or given.call_ids) else None
    )


def _key(text: str, calls: Sequence[tuple[str, Any]]) -> Key:
    return text.strip(), tuple((name, _canonical(arguments)) for name, arguments in calls)


def _canonical(arguments: Any) -> str:
    """Arguments of a call as one text, however they were written."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return arguments.strip()
    return _sorted(arguments)


_sorted = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


def plain_call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """A call of an assistant's message as templates take it: arguments as an object where they are one."""
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except ValueError:
            read = arguments
        arguments = read if isinstance(read, Mapping) else arguments
    function = {"name": str(name), "arguments": arguments}
    return {"id": str(call_id), "type": "function", "function": function}
