"""What an MCP server answered, as what a model is told.

Knows nothing of connections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ToolError

__all__ = ["told"]


def told(result: Any, most: int) -> tuple[str | list[Mapping[str, Any]], bool]:
    """Text or content parts of a `CallToolResult`, and whether anything was left out.

    Args:
        result: of the call.
        most: characters that are kept.

    Raises:
        ToolError: the tool reports an error, in the tool's own words.
    """
    parts: list[Mapping[str, Any]] = []
    room, cut = most, False
    for block in result.content:
        part, size = _part(block)
        if size > room and part["type"] == "text":
            part = {
                "type": "text",
                "text": f"{part['text'][:room]}\n[... the rest of {size:,} characters was left out ...]",
            }
        elif size > room:
            part = _note(f"{block.type} of {size:,} characters was left out")
        cut, room = cut or size > room, max(0, room - size)
        parts.append(part)
    if not parts and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False, default=str)
        cut = len(text) > most
        parts.append({"type": "text", "text": text[:most]})
    only_text = all(part["type"] == "text" for part in parts)
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if result.is_error:
        raise ToolError(text or "the tool reports an error, and does not say which")
    return (text or "(no output)") if only_text else parts, cut


def _part(block: Any) -> tuple[Mapping[str, Any], int]:
    """One block of a result as a content part, and its size in characters."""
    if block.type == "text":
        return {"type": "text", "text": block.text}, len(block.text)
    if block.type == "image":
        url = f"data:{block.mime_type};base64,{block.data}"
        return {"type": "image_url", "image_url": {"url": url}}, len(block.data)
    if block.type == "resource" and isinstance(getattr(block.resource, "text", None), str):
        return {"type": "text", "text": block.resource.text}, len(block.resource.text)
    if block.type == "resource_link":
        return _note(f"a resource: {block.uri}"), len(str(block.uri))
    size = len(getattr(block, "data", "") or getattr(getattr(block, "resource", None), "blob", "") or "")
    return _note(f"{block.type} of {size:,} characters, which is no text"), 0


def _note(what: str) -> Mapping[str, Any]:
    return {"type": "text", "text": f"[{what}]"}
