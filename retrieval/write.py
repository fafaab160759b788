"""Writing to the store: documents put, replaced and deleted, each call one transaction.

A replaced document keeps the rows, and so the vectors, of all passages whose content did not change.
"""

from __future__ import annotations

import hashlib
import html
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import to_json

from ..models.errors import RestillError
from . import filters, sparse
from .store import Store
from .types import Chunk, Document

_IN_COLUMNS = {"id", "source", "chunk_id", "doc_id", "title", "text", "start", "end", "content_hash", "metadata"}
_COLUMNS = "source, title, folded, text, metadata, extra, hash, digest"
_MODULUS = 1 << 256


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A document as it is written.

    Attributes:
        chunks: all its passages, in order.
        vectors: content hash to vector f32 [dim]; those that the store has for this document may be missing.
    """

    document: Document
    chunks: Sequence[Chunk]
    vectors: Mapping[str, np.ndarray] = field(repr=False)


def write(store: Store, entries: Sequence[Entry], *, delete: Sequence[str] = (), replace: bool = False) -> int:
    """Delete and put documents in one transaction; returns the new generation.

    Passages of a replaced document whose content hash is the same keep their row and vector.

    Args:
        delete: ids of documents to delete; they must be there.
        replace: allow documents that are there already.

    Raises:
        RestillError: a document is there already (without ``replace``) or given twice, one to delete is not there, or
            metadata is not JSON. Nothing is written then.
    """
    with store.transaction():
        writing = _Writing(store)
        for doc_id in delete:
            writing.delete(doc_id)
        for entry in entries:
            writing.put(entry, replace)
        return writing.finish()


class _Writing:
    """What one transaction changes, collected so that tables are written in bulk."""

    def __init__(self, store: Store) -> None:
        self.store, self.connection = store, store.connection
        self.meta = store.meta()
        self.generation = self.meta["generation"] + 1
        self.contents = int(self.meta["contents"], 16)
        self.documents, self.count = self.meta["documents"], self.meta["chunks"]
        last = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
        self.row = last[0] if last else 0
        self.seen: set[str] = set()
        self.chunks: list[tuple] = []
        self.vectors: list[tuple[int, bytes, bytes]] = []
        self.sparse: list[tuple[int, str, str]] = []
        self.removed: list[int] = []
        self.terms: list[tuple[str, str, int]] = []

    def put(self, entry: Entry, replace: bool) -> None:
        """Write a document, and collect what its passages change."""
        document = entry.document
        if document.id in self.seen:
            raise RestillError(f"document id {document.id!r} occurs twice; ids must be unique")
        self.seen.add(document.id)
        metadata = encoded(document.metadata)
        digest = chunks_digest(entry.chunks)
        values = (
            document.source,
            document.title,
            folded(document.title),
            document.text,
            metadata,
            encoded(document.model_dump(exclude=_IN_COLUMNS)),
            document_hash(document),
            digest,
        )
        known = self.connection.execute(
            "SELECT document, digest FROM documents WHERE doc_id = ?", (document.id,)
        ).fetchone()
        kept: dict[str, list[int]] = {}
        if known is None:
            number = self.connection.execute(
                f"INSERT INTO documents (doc_id, {_COLUMNS}) VALUES (?{', ?' * len(values)})", (document.id, *values)
            ).lastrowid
            self.documents += 1
        elif not replace:
            raise RestillError(f"document {document.id!r} is in the index already; use update to replace it")
        else:
            number = known[0]
            self.contents -= int(known[1], 16)
            self.connection.execute(
                f"UPDATE documents SET ({_COLUMNS}) = (?{', ?' * (len(values) - 1)}) WHERE document = ?",
                (*values, number),
            )
            self.connection.execute("DELETE FROM terms WHERE document = ?", (number,))
            for row, content in self.connection.execute(
                "SELECT row, content_hash FROM chunks WHERE document = ? ORDER BY row DESC", (number,)
            ):
                kept.setdefault(content, []).append(row)
        assert number is not None
        self.contents += int(digest, 16)
        self.terms += [(key, value, number) for key, value in filters.terms(json.loads(metadata))]
        originals = {content: rows[-1] for content, rows in kept.items()}
        for chunk in entry.chunks:
            extra = encoded(chunk.model_dump(exclude=_IN_COLUMNS))
            place = (chunk.chunk_id, chunk.start, chunk.end, extra)
            if rows := kept.get(chunk.content_hash):
                self.connection.execute(
                    'UPDATE chunks SET chunk_id = ?, start = ?, "end" = ?, extra = ? WHERE row = ?',
                    (*place, rows.pop()),
                )
                continue
            self.row += 1
            blob = self._vector(entry, chunk, originals)
            self.vectors.append((self.row, blob, vector_hash(blob)))
            self.chunks.append((self.row, number, *place, chunk.content_hash, chunk.text))
            self.sparse.append((self.row, chunk.title, chunk.text))
        self._remove([row for rows in kept.values() for row in rows])

    def delete(self, doc_id: str) -> None:
        """Delete a document and its passages."""
        found = self.connection.execute("SELECT document, digest FROM documents WHERE doc_id = ?", (doc_id,)).fetchone()
        if found is None:
            raise RestillError(f"no document {doc_id!r} is in the index")
        rows = self.connection.execute("SELECT row FROM chunks WHERE document = ?", found[:1])
        self._remove([row for (row,) in rows])
        self.connection.execute("DELETE FROM terms WHERE document = ?", found[:1])
        self.connection.execute("DELETE FROM documents WHERE document = ?", found[:1])
        self.contents -= int(found[1], 16)
        self.documents -= 1

    def finish(self) -> int:
        """Write what was collected; returns the new generation."""
        many = self.connection.executemany
        many(
            'INSERT INTO chunks (row, document, chunk_id, start, "end", extra, content_hash, text) '
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self.chunks,
        )
        many("INSERT INTO vectors VALUES (?, ?, ?)", self.vectors)
        many("INSERT INTO terms VALUES (?, ?, ?)", self.terms)
        sparse.add(self.connection, self.sparse)
        self.store.set_meta(
            generation=self.generation,
            documents=self.documents,
            chunks=self.count + len(self.chunks) - len(self.removed),
            contents=f"{self.contents % _MODULUS:x}",
        )
        return self.generation

    def _vector(self, entry: Entry, chunk: Chunk, originals: Mapping[str, int]) -> bytes:
        vector = entry.vectors.get(chunk.content_hash)
        if vector is not None:
            return np.asarray(vector, "<f4").tobytes()
        if chunk.content_hash not in originals:
            raise RestillError(
                f"document {entry.document.id!r} was changed by another writer at the same time; run it again"
            )
        row = originals[chunk.content_hash]
        return self.connection.execute("SELECT vector FROM vectors WHERE row = ?", (row,)).fetchone()[0]

    def _remove(self, rows: list[int]) -> None:
        if not rows:
            return
        sparse.remove(self.connection, rows)
        for table in ("vectors", "chunks"):
            self.connection.executemany(f"DELETE FROM {table} WHERE row = ?", [(row,) for row in rows])
        self.connection.executemany("INSERT INTO deleted VALUES (?, ?)", [(row, self.generation) for row in rows])
        self.removed += rows


def encoded(value: Any) -> str:
    """``value`` (a model too) as JSON, with NaN and infinity.

    Raises:
        RestillError: it cannot be written as JSON.
    """
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError as error:
        raise RestillError(f"a document's metadata cannot be written as JSON ({error})") from error


def document_hash(document: Document) -> str:
    """SHA-256 over all of a document: equal hashes need no new index."""
    return hashlib.sha256(encoded(document).encode()).hexdigest()


def chunks_digest(chunks: Iterable[Chunk]) -> str:
    """SHA-256 over all of a document's passages."""
    return hashlib.sha256(b"\n".join(encoded(chunk).encode() for chunk in chunks)).hexdigest()


def vector_hash(blob: bytes) -> bytes:
    """16 bytes that change when a vector does."""
    return hashlib.blake2b(blob, digest_size=16).digest()


def folded(title: str) -> str:
    """Case, spacing, underscores (Wikipedia's URLs) and HTML entities do not tell titles apart."""
    return " ".join(unicodedata.normalize("NFKC", html.unescape(title)).replace("_", " ").casefold().split())
