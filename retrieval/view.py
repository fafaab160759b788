"""What one search sees: the store at one moment and the vectors of the same moment."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..models.errors import RestillError
from . import faiss_file, sparse
from .dense import DenseIndex
from .filters import Where, matching_rows
from .store import Store
from .types import Chunk, Hit
from .write import folded

if TYPE_CHECKING:
    from .hops import DocumentGraph

STORE = "store.db"
Found = list[list[tuple[int, float]]]
"""For each query the (row, score) found, best first."""

Allowed = list[np.ndarray]
"""The rows of each shard that a search may return, int64, by the shard's own numbers."""

_SHARD_BITS = 40
_ROW = (1 << _SHARD_BITS) - 1
"""A row of several indexes searched as one is shard << 40 | row."""


class View:
    """One index at one generation. Never changed; `refreshed` gives the next one."""

    def __init__(self, folder: Path, store: Store, meta: dict[str, Any], dense: DenseIndex) -> None:
        self.folder, self.store, self.meta, self.dense = folder, store, meta, dense

    @classmethod
    def open(cls, folder: Path, threads: int | None = None, *, derived: bool = True) -> View:
        """What is committed in ``folder`` now; without ``derived`` for reading the store alone.

        Raises:
            RestillError: a file is missing, or is not what was recorded.
        """
        attempts = 5
        for attempt in range(attempts):
            store = Store.snapshot(folder / STORE)
            meta = store.meta()
            base, kind = None, "flat"
            if not derived:
                return cls(folder, store, meta, DenseIndex(meta["dim"], threads=threads))
            try:
                if meta.get("faiss"):
                    base, record = faiss_file.read(folder, meta["faiss"])
                    kind = record.kind
            except FileNotFoundError as error:  # compaction put another in its place since the snapshot
                if attempt == attempts - 1:
                    raise RestillError(
                        f"{error.filename} is missing; `restill index --repair` makes it again"
                    ) from error
                continue
            dense = DenseIndex(meta["dim"], base=base, kind=kind, threads=threads)
            return cls(folder, store, meta, cls._caught_up(store, meta, dense, since=-1))
        raise AssertionError("unreachable")

    def refreshed(self, *, anyway: bool = False) -> View:
        """What is committed now: this view if nothing was, unless a new one is wanted ``anyway``."""
        store = Store.snapshot(self.folder / STORE)
        meta = store.meta()
        same = meta["generation"] == self.meta["generation"] and meta.get("faiss") == self.meta.get("faiss")
        if same and not anyway:
            store.close()
            return self
        # What was deleted up to ``purged`` is listed no more; without a FAISS file nothing else tells.
        if meta.get("faiss") != self.meta.get("faiss") or meta.get("purged", 0) > self.meta["generation"]:
            store.close()
            return View.open(self.folder, self.dense.threads)
        dense = self._caught_up(store, meta, self.dense, since=self.meta["generation"])
        return View(self.folder, store, meta, dense)

    @staticmethod
    def _caught_up(store: Store, meta: dict[str, Any], dense: DenseIndex, since: int) -> DenseIndex:
        dim = meta["dim"]
        for rows, vectors in store.vectors_after(dense.last_row, dim):
            dense = dense.extended(rows, vectors)
        removed = np.array(
            [row for (row,) in store.select("SELECT row FROM deleted WHERE generation > ?", [since])], np.int64
        )
        none = np.empty((0, dim), np.float32)
        return dense.extended(removed[:0], none, removed, lambda rows: store.vectors(rows, dim))

    def allowed(self, where: Where | None) -> np.ndarray | None:
        """The rows that pass ``where``, int64 ascending; None (all of them) without a filter.

        Raises:
            RestillError: ``where`` names a key that no document has.
        """
        if where is None:
            return None
        if callable(where):
            return np.fromiter((row for row, chunk in self.store.all_chunks() if where(chunk)), np.int64)
        with self.store.lock:
            return matching_rows(self.store.connection, where)

    def search_sparse(self, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> Found:
        """BM25; see `sparse.search`."""
        with self.store.lock:
            return sparse.search(self.store.connection, queries, k, allowed)


class Snapshot:
    """One or several indexes (shards) searched as one. Rows of the second and later ones have high bits set."""

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        self._lock = threading.Lock()  # from Python 3.12 on, cached_property has none
        self._graph: DocumentGraph | None = None

    def search_dense(self, vectors: np.ndarray, k: int, allowed: Allowed | None = None) -> Found:
        """The ``k`` nearest (row, cosine) of each vector f32 [B, dim], equal scores in the order of rows."""
        shards = zip(self.views, allowed or [None] * len(self.views), strict=True)
        return self._merged([view.dense.search(vectors, k, rows) for view, rows in shards], k)

    def search_sparse(self, queries: Sequence[str], k: int, allowed: Allowed | None = None) -> Found:
        """The ``k`` best (row, BM25) of each query. A shard's word statistics are its own."""
        shards = zip(self.views, allowed or [None] * len(self.views), strict=True)
        return self._merged([view.search_sparse(queries, k, rows) for view, rows in shards], k)

    def chunks_at(self, rows: Sequence[int]) -> list[Chunk]:
        """The passages of ``rows``, in this order."""
        found: dict[int, Chunk] = {}
        for shard, view in enumerate(self.views):
            ours = [row for row in rows if row >> _SHARD_BITS == shard]
            found.update(zip(ours, view.store.chunks(row & _ROW for row in ours), strict=True))
        return [found[row] for row in rows]

    def hits(self, found: Found) -> list[list[Hit]]:
        """What was found, with the passages themselves; each is read once."""
        rows = sorted({row for hits in found for row, _ in hits})
        chunks = dict(zip(rows, self.chunks_at(rows), strict=True))
        return [[Hit(chunk=chunks[row], score=score) for row, score in hits] for hits in found]

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Every passage in order of rows, read when asked for."""
        return _Chunks(self)

    @cached_property
    def rows(self) -> np.ndarray:
        """All rows, int64 ascending."""
        return np.concatenate([view.dense.rows | shard << _SHARD_BITS for shard, view in enumerate(self.views)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over encoder and passages, whatever the order and the history they were added in.

        The store keeps the sum of all documents' SHA-256 modulo 2^256, so this costs the same at any size.
        """
        total = sum(int(view.meta["contents"], 16) for view in self.views) % (1 << 256)
        return hashlib.sha256(f"{self.views[0].meta['encoder_fingerprint']} {total:x}".encode()).hexdigest()

    @property
    def graph(self) -> DocumentGraph:
        """The links between the documents; reads all of them, once, however many threads ask."""
        from .hops import DocumentGraph

        with self._lock:
            if self._graph is None:
                documents = itertools.chain.from_iterable(view.store.all_documents() for view in self.views)
                self._graph = DocumentGraph.build(documents)
            return self._graph

    def documents_of(self, rows: Sequence[int]) -> dict[int, str]:
        """The document id of each of ``rows``."""
        statement = (
            "SELECT row, doc_id FROM chunks JOIN documents USING (document) "
            "WHERE row IN (SELECT value FROM json_each(?))"
        )
        found: dict[int, str] = {}
        for shard, view in enumerate(self.views):
            ours = [row & _ROW for row in rows if row >> _SHARD_BITS == shard]
            if ours:
                pairs = view.store.select(statement, [json.dumps(ours)])
                found |= {row | shard << _SHARD_BITS: doc_id for row, doc_id in pairs}
        return found

    def rows_of(self, doc_id: str) -> list[int]:
        """The rows of a document's passages, in their order; none if it is not there."""
        statement = "SELECT row FROM chunks JOIN documents USING (document) WHERE doc_id = ? ORDER BY start"
        return [
            row | shard << _SHARD_BITS
            for shard, view in enumerate(self.views)
            for (row,) in view.store.select(statement, [doc_id])
        ]

    def allowed(self, where: Where | None) -> Allowed | None:
        """The rows that pass ``where``, None without one. Takes long for a function: call it once a search.

        Raises:
            RestillError: ``where`` names a key that no document has; one that only some shards have is no error.
        """
        if where is None:
            return None
        found: list[np.ndarray] = []
        unknown: list[RestillError] = []
        for view in self.views:
            try:
                rows = view.allowed(where)
                assert rows is not None
                found.append(rows)
            except RestillError as error:
                unknown.append(error)
                found.append(np.empty(0, np.int64))
        if len(unknown) == len(self.views):
            raise unknown[0]
        return found

    def joined(self, allowed: Allowed) -> np.ndarray:
        """``allowed`` as rows of all shards, int64."""
        return np.concatenate([rows | shard << _SHARD_BITS for shard, rows in enumerate(allowed)])

    def resolve_title(self, title: str) -> list[str]:
        """Ids of all documents with this title; if none has it, of those that differ in case or spacing."""
        for column, wanted in (("title", title), ("folded", folded(title))):
            statement = (
                f"SELECT doc_id FROM documents WHERE {column} = ? AND "
                "EXISTS (SELECT 1 FROM chunks WHERE chunks.document = documents.document) ORDER BY document"
            )
            found = [doc_id for view in self.views for (doc_id,) in view.store.select(statement, [wanted])]
            if title and found:
                return list(dict.fromkeys(found))
        return []

    @staticmethod
    def _merged(shards: list[Found], k: int) -> Found:
        if len(shards) == 1:
            return shards[0]
        merged: Found = []
        for parts in zip(*shards, strict=True):
            hits = [(row | shard << _SHARD_BITS, score) for shard, part in enumerate(parts) for row, score in part]
            merged.append(sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k])
        return merged


class _Chunks(Sequence[Chunk]):
    """The passages as a sequence that reads from the store."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.rows)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> list[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | list[Chunk]:
        rows = self._snapshot.rows[index]
        return (
            self._snapshot.chunks_at([int(rows)])[0]
            if isinstance(index, int)
            else self._snapshot.chunks_at(rows.tolist())
        )

    def __iter__(self) -> Iterator[Chunk]:
        return itertools.chain.from_iterable(
            (chunk for _, chunk in view.store.all_chunks()) for view in self._snapshot.views
        )
