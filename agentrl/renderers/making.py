"""Messages and tool results to token ids, and sampled token ids to messages.

A renderer only ever appends: the next prompt is the previous prompt, the ids exactly as sampled,
and the ids `extend` gives. `make_renderer` proves that for the tokenizer at hand before anything
runs. Renderers keep no state of an episode and may be shared. They know nothing of engines,
environments or log-probabilities, and import no tokenizer library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.config import registry
from agentrl.errors import RendererError
from agentrl.renderers.base import Format, Renderer, runs_code
from agentrl_envs import ToolSpec


def choose_format(tokenizer: Any, tools: Sequence[Sequence[ToolSpec]]) -> Format:
    """The format in which a model calls the tools of each of several environments.

    What its chat template writes itself (`<tool_call>`) comes first; code blocks, which every model can
    write, where all environments offer a tool `python(code)`; else Hermes, with the tools listed in the
    prompt.

    Raises:
        RendererError: there is no chat template, and the tools are no Python interpreter.
    """
    template = getattr(tokenizer, "chat_template", None)
    other = next((specs for specs in tools if specs and not any(map(runs_code, specs))), None)
    if template and ("<tool_call>" in str(template) or other is not None):
        return "hermes"
    if other is None:
        return "code"
    names = ", ".join(tool.name for tool in other)
    raise RendererError(
        "the model's tokenizer has no chat template, so its tools can only be called by code blocks, which "
        f"run a tool python(code), and the environment offers {names}: give the tokenizer a chat template "
        "(chat_template.jinja beside it), or offer a tool python(code)"
    )


def make_renderer(
    tokenizer: Any,
    format: str = "code",
    *,
    tools: Sequence[Sequence[ToolSpec]] = (),
    **options: Any,
) -> Renderer:
    """Make a renderer and prove that it only appends.

    Args:
        tokenizer: a Hugging Face tokenizer, or anything with the same few methods.
        format: a renderer in a file, `my.py:Name`; `code`, fenced Python in `<code>` tags (SPO paper, section
            5.1); `hermes`, `<tool_call>` with JSON; or `auto`, which chooses (`choose_format`).
        tools: those of each environment, for `auto`.
        options: of the format; see `CodeRenderer` and `HermesRenderer`.

    Raises:
        RendererError: the tokenizer or its chat template cannot be rendered append-only; says why.
    """
    from agentrl.renderers.code import CodeRenderer

    if format == "auto":
        format = choose_format(tokenizer, tools)
    if format == "code":
        return CodeRenderer(tokenizer, **options)
    if format == "hermes":
        from agentrl.renderers.hermes import HermesRenderer

        return HermesRenderer(tokenizer, **options)
    return registry.make("renderer", format, {}, tokenizer)
