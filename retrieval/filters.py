"""Metadata filters: which rows of an index a search may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..models.errors import RestillError
from .types import Chunk

Where = Mapping[str, Any] | Callable[[Chunk], bool]
"""A filter: every named key must have the value given, or one of several given as list, tuple or set.

Keys are ``doc_id``, ``chunk_id``, ``title`` and those of the metadata; a metadata value that is a list
matches if it holds a wanted value. Or a function that is asked for every chunk.
"""

_FIELDS = ("doc_id", "chunk_id", "title")


def allowed_rows(chunks: Sequence[Chunk], where: Where | None) -> np.ndarray | None:
    """The rows whose chunk passes ``where``, int64 ascending; None (all of them) without a filter.

    Raises:
        RestillError: ``where`` names a key that no chunk has.
    """
    if where is None:
        return None
    if not isinstance(where, Mapping):
        return _rows(map(where, chunks))
    unknown = where.keys() - set(_FIELDS)
    for chunk in chunks:
        if not unknown:
            break
        unknown -= chunk.metadata.keys()
    if unknown:
        known = ", ".join(sorted({key for chunk in chunks for key in chunk.metadata}.union(_FIELDS)))
        raise RestillError(f"where names {min(unknown)!r}, which no document has; known keys: {known}")
    wanted = {key: _several(value) for key, value in where.items()}
    return _rows(all(_passes(chunk, key, values) for key, values in wanted.items()) for chunk in chunks)


def _rows(passes: Any) -> np.ndarray:
    return np.flatnonzero(np.fromiter(passes, bool)).astype(np.int64)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _passes(chunk: Chunk, key: str, values: list[Any]) -> bool:
    if key in _FIELDS:
        return getattr(chunk, key) in values
    if key not in chunk.metadata:
        return False
    return any(value in values for value in _several(chunk.metadata[key]))
