"""What an endpoint's error answer means: whether to ask again, with less, never, or not this conversation.

Status codes say little of it; the rest is in texts that differ from one provider to the next. Knows
nothing of when and how often is asked.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentrl.errors import ContextOverflow, PolicyError, PolicyUnavailable

if TYPE_CHECKING:
    from agentrl.inference.endpoint.settings import EndpointSettings

# Endpoints tell by their texts alone why a 400 is one. vLLM, SGLang, llama.cpp, OpenAI, Gemini, Anthropic,
# xAI, DeepSeek, Groq and Together, in their words.
_OVERFLOW = re.compile(
    r"maximum (context|model|prompt) length|max_model_len|context (length|window|size|limit)|context_length"
    r"|(prompt|input) is too long|input token count|tokens? (count )?exceed|too many (input )?tokens"
    r"|max_new_tokens"
    r"|max_(completion_)?tokens\W.{0,40}(too large|less than or equal|valid range|is the maximum)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_ANSWER = re.compile(
    r"at most (\d+) completion tokens|greater than max_model_len ?= ?(\d+)|> (\d+), which is the maximum"
    r"|less than or equal to `?(\d+)|valid range of max_tokens is \[1, ?(\d+)"
)
_CONTEXT = re.compile(
    r"(?:context|model|prompt) length (?:is |of |\()(?:only )?(\d+)|context size \((\d+)|allowed \((\d+)"
    r"|> (\d+)(?: maximum|, decrease)|must be <= (\d+)"
)
_PROMPT = re.compile(
    r"(\d+) (?:input|tokens from the input)|(?:Input length|token count|input|request) \((\d+)"
    r"|\(length (\d+)|too long: (\d+)"
    r"|(?:resulted in|request contains|Given:|context limit:) (\d+)"
)
_PROMPT_AND_ANSWER = re.compile(r"requested (?:about |a total of )?(\d+) tokens")
_FILTERED = re.compile(r"moderation|flagged|content.?(filter|policy)|safety", re.IGNORECASE)
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "model_not_found")
_IN_EVERY_REQUEST = ("model", "temperature", "top_p", "top_k", "seed", "stop", "tools")


class EndpointError(PolicyError):
    """An endpoint could not answer."""


class EndpointUnavailable(EndpointError, PolicyUnavailable):
    """It did not answer within all attempts: silence, broken connections, 429 or 5xx to the end.

    Args:
        message: what happened.
        retry_after_s: how long the endpoint asks everybody to wait, if it said so.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointRefused(EndpointError):
    """It will answer nothing of ours: key, model name, quota, or a parameter that every request carries."""


class RequestRefused(EndpointError):
    """It will not answer this conversation: a content filter, or a refusal of its own."""


class RequestInvalid(RequestRefused):
    """It does not understand this conversation: a 400 that names no filter and no want of room."""


class NoRoom(EndpointError, ContextOverflow):
    """The conversation and the answer asked for do not fit the context.

    Args:
        message: what happened.
        prompt_tokens: length of the conversation, 0 where it was not told.
        context_tokens: length of the context, 0 where it was not told.
        room: longest answer that may be asked for instead; less than 1 is none.
    """

    def __init__(self, message: str, prompt_tokens: int, context_tokens: int, room: int) -> None:
        EndpointError.__init__(self, message)
        self.prompt_tokens, self.context_tokens, self.room = prompt_tokens, context_tokens, room


class BadAnswer(EndpointError):
    """It answered something that is no chat completion."""


class BudgetExceeded(EndpointError):
    """The budget in tokens or money is spent; what was finished is kept."""


def error_of(error: Any, settings: EndpointSettings, asked: int, listed: str = "") -> EndpointError:
    """The typed error of an error answer; 429 and 5xx may be tried again.

    Args:
        error: `openai.APIStatusError`.
        settings: of the endpoint.
        asked: longest answer that the request allowed, in tokens.
        listed: the models it lists, for the hint of a 404.
    """
    url, status, text, code = settings.url, error.status_code, _said(error), str(error.code or "")
    wait = retry_after_s(error.response.headers)
    if status == 429 and code != "insufficient_quota":
        return EndpointUnavailable(f"{url} is over its rate limit (429)", wait)
    if status >= 500 or status in (408, 409):
        return EndpointUnavailable(f"{url} failed with {status}: {text}", wait)
    if status in (401, 402, 404, 429) or (status == 403 and not _FILTERED.search(text)):
        return refused(error, settings, listed)
    if code in _UNSUPPORTED or error.param in _IN_EVERY_REQUEST:
        return refused(error, settings, listed)
    if code == "context_length_exceeded" or _OVERFLOW.search(text):
        return NoRoom(f"{url} has no room for {asked} more tokens: {text}", *_room(text, asked))
    kind = RequestRefused if _FILTERED.search(f"{text} {code}") else RequestInvalid
    return kind(f"{url} refuses this conversation with {status}: {text}")


def refused(error: Any, settings: EndpointSettings, listed: str = "") -> EndpointRefused:
    """The error of an answer after which nothing more will be answered, with what to do about it."""
    status = int(getattr(error, "status_code", 0))
    hint = {
        401: f"set the key (variable {settings.key_variable})",
        403: "the key may not use this model",
        404: f"check the URL and the model's name {settings.model!r}"
        + (f" (it lists {listed})" if listed else ""),
    }.get(status, "nothing is answered so")
    return EndpointRefused(f"{settings.url} refuses with {status}: {hint}; it says: {_said(error)}")


def _said(error: Any) -> str:
    """What an error answer says, without its wrapping."""
    said = error.body.get("message") if isinstance(error.body, Mapping) else None
    return str(said or error.message)[:500]


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(next(filter(None, found.groups()))) if found else 0


def _room(text: str, asked: int) -> tuple[int, int, int]:
    """Tokens of the prompt, of the context, and of the longest answer that fits; 0 where it is not told."""
    if longest := _number(_LONGEST_ANSWER, text):
        return 0, 0, longest
    context, prompt = _number(_CONTEXT, text), _number(_PROMPT, text)
    if total := _number(_PROMPT_AND_ANSWER, text):
        prompt = total - asked
    room = context - prompt if prompt > 0 else 0
    # A prompt that was only estimated may be longer.
    return prompt, context, room // 2 if re.search(r"(at least|about) \d", text) else room


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds an answer asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"\s*[\d.]+\s*", value):
            return max(0.0, float(value))
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
