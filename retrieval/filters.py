"""Metadata filters: which rows of an index a search may return.

Every value of a document's metadata is a term in a table with an index, so a filter costs what passes it, not what
is there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..models.errors import RestillError
from .types import Chunk

Where = Mapping[str, Any] | Callable[[Chunk], bool]
"""A filter: every named key must have the value given, or one of several given as list, tuple or set.

Keys are ``doc_id``, ``chunk_id``, ``title`` and those of the documents' metadata; a metadata value that is a list
matches if it holds a wanted value. Or a function that is asked for every passage, which reads them all.
"""

SCHEMA = """
CREATE TABLE IF NOT EXISTS terms (
    key TEXT NOT NULL, value TEXT NOT NULL, document INTEGER NOT NULL,
    PRIMARY KEY (key, value, document)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS terms_of_document ON terms (document);
"""

_FIELDS = {"doc_id": "documents.doc_id", "chunk_id": "chunks.chunk_id", "title": "documents.title"}
_LONGEST = 80


def terms(metadata: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The (key, value) pairs of one document. The empty value says that the key is there at all."""
    found = {(key, "") for key in metadata}
    for key, value in metadata.items():
        found |= {(key, _term(one)) for one in _several(value)}
    return found


def matching_rows(connection: sqlite3.Connection, where: Mapping[str, Any]) -> np.ndarray:
    """The rows that pass ``where``, int64 ascending.

    Raises:
        RestillError: ``where`` names a key that no document has.
    """
    clauses: list[str] = []
    values: list[str] = []
    for key, wanted in where.items():
        several = _several(wanted)
        if key in _FIELDS:
            clauses.append(f"{_FIELDS[key]} IN (SELECT value FROM json_each(?))")
            values.append(json.dumps([value for value in several if isinstance(value, str)]))
            continue
        if not connection.execute("SELECT 1 FROM terms WHERE key = ? LIMIT 1", (key,)).fetchone():
            keys = {name for (name,) in connection.execute("SELECT DISTINCT key FROM terms WHERE value = ''")}
            known = ", ".join(sorted(keys.union(_FIELDS)))
            raise RestillError(f"where names {key!r}, which no document has; known keys: {known}")
        clauses.append(
            "documents.document IN (SELECT document FROM terms WHERE key = ? AND value IN "
            "(SELECT value FROM json_each(?)))"
        )
        values += [key, json.dumps([_term(value) for value in several])]
    statement = (
        "SELECT chunks.row FROM documents JOIN chunks USING (document) WHERE "
        + (" AND ".join(clauses) or "TRUE")
        + " ORDER BY chunks.row"
    )
    return np.fromiter((row for (row,) in connection.execute(statement, values)), np.int64)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _term(value: Any) -> str:
    """A text that is equal for equal values: 1, 1.0 and True are one value, as in Python."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    text = f"{'s' if isinstance(value, str) else 'j'}{text}"
    return text if len(text) <= _LONGEST else "h" + hashlib.sha256(text.encode()).hexdigest()
