"""What a tool call came to, and how the values that tools return are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ..models.text import well_formed
from ..retrieval.types import Chunk, Document, Hit, content_hash

Status = Literal["ok", "error", "timeout", "cancelled"]
MAX_CHARS = 100_000
"""Longest text kept of one result; an observation shows far less."""


class ToolResult(BaseModel):
    """The one result of one call.

    Attributes:
        text: what to show when there are no hits; for a failure, why it failed.
        hits: passages, when the tool is a search.
        error: why it failed; ``None`` when ``status`` is "ok".
    """

    status: Status
    text: str = ""
    hits: list[Hit] = []
    seconds: float = 0.0
    error: str | None = None


def read_value(value: Any) -> tuple[str, list[Hit]]:
    """Text and hits of what a tool returned.

    Reads strings, numbers, pydantic models, dataclasses, JSON-like values, lists of :class:`Hit`, of our
    :class:`Document` or of LangChain's, and LangChain's (content, artifact) pairs.
    """
    if value is None:
        return "done", []
    if isinstance(value, str):
        return well_formed(value[:MAX_CHARS]), []
    if isinstance(value, bool):
        return ("true" if value else "false"), []
    if isinstance(value, (int, float)):
        return str(value), []
    if isinstance(value, bytes):
        return value[:MAX_CHARS].decode("utf-8", "replace"), []
    if isinstance(value, (Hit, Document)) or _is_langchain_document(value):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(_is_passage(item) for item in value):
        return "", [_hit(item) for item in value]
    if isinstance(value, (list, tuple)) and not value:
        return "nothing found", []
    return well_formed(_json(value)[:MAX_CHARS]), []


def _is_langchain_document(value: Any) -> bool:
    return isinstance(getattr(value, "page_content", None), str) and hasattr(value, "metadata")


def _is_passage(value: Any) -> bool:
    return isinstance(value, (Hit, Document)) or _is_langchain_document(value)


def _hit(value: Any) -> Hit:
    if isinstance(value, Hit):
        return value
    if isinstance(value, Document):
        doc_id, title, text, metadata = value.id, value.title, value.text, dict(value.metadata)
    else:
        metadata = dict(value.metadata or {})
        text, title = value.page_content, str(metadata.get("title", ""))
        named = (
            getattr(value, "id", None),
            *(metadata.get(name) for name in ("doc_id", "_id", "id", "source")),
        )
        doc_id = next((str(n) for n in named if n not in (None, "")), "")
    text, title = well_formed(text), well_formed(title)
    digest = content_hash(title, text)
    doc_id = str(metadata.get("doc_id") or doc_id or digest[:16])
    start = metadata.get("start", metadata.get("start_index", 0))
    start = start if isinstance(start, int) and start >= 0 else 0
    chunk = Chunk(
        chunk_id=str(metadata.get("chunk_id") or f"{doc_id}:{start}"),
        doc_id=doc_id,
        title=title,
        text=text,
        start=start,
        end=start + len(text),
        content_hash=str(metadata.get("content_hash") or digest),
        metadata=metadata,
    )
    score = metadata.get("score", 0.0)
    return Hit(chunk=chunk, score=float(score) if isinstance(score, (int, float)) else 0.0)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


def _json(value: Any) -> str:
    if isinstance(value, (BaseModel, Mapping, list, tuple, set, frozenset)) or dataclasses.is_dataclass(value):
        return json.dumps(value, default=_plain, ensure_ascii=False, skipkeys=True)
    return str(value)
