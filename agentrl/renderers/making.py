"""Messages and tool results to token ids, and sampled token ids to messages.

A renderer only ever appends: the next prompt is the previous prompt, the ids exactly as sampled,
and the ids `extend` gives. `make_renderer` proves that for the tokenizer at hand before anything
runs. Renderers keep no state of an episode and may be shared. They know nothing of engines,
environments or log-probabilities, and import no tokenizer library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.config import registry
from agentrl.errors import RendererError
from agentrl.renderers.base import Format, Renderer, runs_code
from agentrl_envs import ToolSpec

if TYPE_CHECKING:
    from agentrl.config.settings import RolloutSettings


def choose_format(
    tokenizer: Any, tools: Sequence[Sequence[ToolSpec]], options: Mapping[str, Any] | None = None
) -> Format:
    """The format in which a model calls the tools of each of several environments.

    What its family writes comes first, where the package `renderers` knows one that fits the chat template;
    then what the template writes itself (`<tool_call>`); code blocks, which every model can
    write, where all environments offer a tool `python(code)`; else Hermes, with the tools listed in the
    prompt.

    Raises:
        RendererError: there is no chat template, and the tools are no Python interpreter.
    """
    from agentrl.renderers.native import family_of

    template = getattr(tokenizer, "chat_template", None)
    if family_of(tokenizer, options) is not None:
        return "native"
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
            5.1); `hermes`, `<tool_call>` with JSON; `native`, as the model's family writes it; or `auto`,
            which chooses (`choose_format`).
        tools: those of each environment, for `auto`.
        options: of the format; see `CodeRenderer`, `HermesRenderer` and `NativeRenderer`.

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
    if format == "native":
        from agentrl.renderers.native import NativeRenderer

        return NativeRenderer(tokenizer, **options)
    return registry.make("renderer", format, {}, tokenizer)


def rollout_renderer(tokenizer: Any, rollout: RolloutSettings) -> Renderer:
    """The renderer that `[rollout]` asks for, with its template options and every token that ends a message.

    Raises:
        RendererError: as `make_renderer`.
    """
    return make_renderer(
        tokenizer,
        rollout.format,
        stop_token_ids=(*rollout.stop_token_ids, *generation_ends(tokenizer)),
        template_options=read_options(rollout.template_options),
    )


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a chat template from `name=value` texts; a value that is no JSON is text.

    Raises:
        RendererError: a text without `=`.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip()):
            raise RendererError(
                f'rollout.template_options: {text!r} is no "name=value", such as "enable_thinking=false"'
            )
        try:
            options[name.strip()] = json.loads(value)
        except ValueError:
            options[name.strip()] = value.strip()
    return options


def generation_ends(tokenizer: Any) -> tuple[int, ...]:
    """The end tokens of `generation_config.json` beside the tokenizer, or in the cache of the hub."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    path = Path(name) / "generation_config.json"
    if name and not path.is_file():
        path = _cached(name)
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return ()
    ends = ends if isinstance(ends, list) else [ends]
    return tuple(end for end in ends if isinstance(end, int))


def _cached(name: str) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "generation_config.json")
    except HFValidationError:  # a path, not the name of a repository
        return Path()
    return Path(found) if isinstance(found, str) else Path()
