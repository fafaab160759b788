"""Vector search: a FAISS file, the rows added since, and those deleted since, searched as one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from ..models.errors import RestillError
from .exact import DIGITS, Nearest, marked, nearest, none_found, passing_places, stored_vectors
from .faiss_file import Kind

_FEW = 10_000
"""Up to so many rows that pass a filter are compared one by one, whatever the kind."""

_OVERSAMPLE = 4
"""Candidates taken from 8-bit codes for each result; the best are then chosen by their whole vectors."""

EF_SEARCH = 128
"""Candidates HNSW keeps in a search."""

Vectors = Callable[[np.ndarray], np.ndarray]
"""Rows int64 [N] to their vectors f32 [N, dim]."""


def set_threads(threads: int | None) -> int:
    """Threads of a vector search from this thread on: ``threads``, else ``$RESTILL_THREADS``, else all cores.

    Raises:
        RestillError: no positive number.
    """
    given = os.environ.get("RESTILL_THREADS") or None if threads is None else threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        wanted = cores if given is None else int(given)
    except ValueError:
        wanted = 0
    if wanted < 1:
        raise RestillError(f"threads={given!r}: give a number of at least 1 (threads= or RESTILL_THREADS)")
    faiss.omp_set_num_threads(wanted)  # OpenMP keeps this number for each calling thread
    return wanted


def probes(lists: int) -> int:
    """IVF clusters looked into of ``lists``."""
    return min(lists, max(48, lists // 16))


class DenseIndex:
    """Unit vectors and their rows (ascending integers); inner product is then the cosine.

    Never changed: `extended` gives a new one that shares memory, so that searches in other threads go on.

    Args:
        dim: length of a vector.
        base: an index from `faiss_file.read`, or None.
        kind: what ``base`` is.
        vectors: whole vectors of rows; an ivf base needs it, since its codes are rounded.
        threads: see `set_threads`.
    """

    def __init__(
        self,
        dim: int,
        *,
        base: faiss.IndexIDMap | None = None,
        kind: Kind = "flat",
        vectors: Vectors | None = None,
        threads: int | None = None,
    ) -> None:
        self.dim, self.kind, self.threads = dim, kind, threads
        self._base = base
        self._vectors = vectors
        self._base_rows = np.empty(0, np.int64) if base is None else faiss.vector_to_array(base.id_map)
        self._inner: Any = None if base is None else faiss.downcast_index(base.index)
        self._base_dead: np.ndarray | None = None
        self._tail = _Tail(dim, 0)
        self._length = 0
        self._tail_dead: np.ndarray | None = None
        if base is not None and base.d != dim:
            raise RestillError(f"the vectors' file has dimension {base.d}, the index {dim}; run --repair")

    def __len__(self) -> int:
        return self._live(self._base_rows, self._base_dead) + self._live(self._tail_rows, self._tail_dead)

    @property
    def rows(self) -> np.ndarray:
        """The live rows, int64 ascending."""
        parts = ((self._base_rows, self._base_dead), (self._tail_rows, self._tail_dead))
        return np.concatenate([rows if dead is None else rows[~dead] for rows, dead in parts])

    @property
    def last_row(self) -> int:
        """The highest row ever added, -1 if none was."""
        rows = self._tail_rows if self._length else self._base_rows
        return int(rows[-1]) if len(rows) else -1

    @property
    def stale(self) -> int:
        """Rows outside the file, and dead ones within: what compaction would save."""
        return self._length + (0 if self._base_dead is None else int(self._base_dead.sum()))

    @property
    def _tail_rows(self) -> np.ndarray:
        return self._tail.rows[: self._length]

    def extended(
        self, rows: np.ndarray, vectors: np.ndarray, removed: np.ndarray | None = None, source: Vectors | None = None
    ) -> DenseIndex:
        """With ``rows`` (int64 [N], ascending, above all before) and their ``vectors`` [N, dim], without ``removed``.

        Args:
            source: replaces ``vectors`` of the constructor.

        Raises:
            RestillError: the shape is wrong, or a vector holds NaN or infinity (it could never be found).
        """
        vectors = self._checked(vectors)
        if len(rows) != len(vectors) or (len(rows) and (rows[0] <= self.last_row or (np.diff(rows) <= 0).any())):
            raise RestillError(f"{len(rows)} rows for {len(vectors)} vectors, or not ascending above {self.last_row}")
        new = object.__new__(DenseIndex)
        new.__dict__.update(self.__dict__)
        new._vectors = source or self._vectors
        new._tail, new._length = self._tail.with_more(self._length, rows, vectors)
        if new._tail_dead is not None:
            new._tail_dead = np.concatenate([new._tail_dead, np.zeros(len(rows), bool)])
        if removed is not None and len(removed):
            new._base_dead = marked(new._base_rows, new._base_dead, removed)
            new._tail_dead = marked(new._tail_rows, new._tail_dead, removed)
        return new

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[list[tuple[int, float]]]:
        """The ``k`` best (row, score) of each query ``[B, dim]``, best first, equal scores by row.

        Exact for a flat base and for rows outside the file, under any filter. An approximate base may miss rows,
        unless at most 10,000 pass the filter; its scores are exact.

        Args:
            queries: f32 ``[B, dim]``.
            k: at most this many results; fewer rows than that are all returned (by an exact search).
            allowed: the rows to search among (int64); None means all. Rows that are not there are ignored.
        """
        queries = self._checked(queries)
        if not len(queries):
            return []
        set_threads(self.threads)
        parts = [self._search_base(queries, k, allowed), self._search_tail(queries, k, allowed)]
        scores, rows = (np.concatenate(list(values), axis=1) for values in zip(*parts, strict=True))
        order = np.lexsort((rows, -scores))[:, :k]
        return [
            [(int(rows[query, i]), float(scores[query, i])) for i in best if rows[query, i] >= 0]
            for query, best in enumerate(order)
        ]

    def _search_tail(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Nearest:
        mask = passing_places(self._tail_rows, self._tail_dead, allowed)
        return nearest(queries, self._tail.vectors[: self._length], self._tail_rows, k, mask)

    def _search_base(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Nearest:
        rows, inner = self._base_rows, self._inner
        if inner is None or not len(rows):
            return none_found(len(queries))
        mask = passing_places(rows, self._base_dead, allowed)
        if self.kind == "flat":
            return nearest(queries, stored_vectors(inner, self.kind), rows, k, mask)
        passing = len(rows) if mask is None else int(np.count_nonzero(mask))
        wanted = min(passing, k if self.kind == "hnsw" else _OVERSAMPLE * k)
        if passing > _FEW or mask is None:
            places = self._approximate(queries, wanted, mask, passing / len(rows))
            if (places >= 0).sum(1).min() == wanted:
                return self._rescored(queries, places)
        # Few pass, or the graph lost some of them: compare them all.
        places = np.arange(len(rows)) if mask is None else np.flatnonzero(mask)
        best = none_found(len(queries))
        for at in range(0, len(places), _FEW):
            part = places[at : at + _FEW]
            found = nearest(queries, self._whole(part), rows[part], k, None)
            best = tuple(np.concatenate(pair, axis=1) for pair in zip(best, found, strict=True))
            keep = np.lexsort((best[1], -best[0]))[:, :k]
            best = tuple(np.take_along_axis(values, keep, axis=1) for values in best)
        return best  # pyright: ignore[reportReturnType]

    def _approximate(self, queries: np.ndarray, wanted: int, mask: np.ndarray | None, share: float) -> np.ndarray:
        """Places in the file [B, wanted], -1 where fewer were found; fewer passing rows mean a wider search."""
        selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # pyright: ignore
        if self.kind == "hnsw":
            width = int(max(EF_SEARCH, 2 * wanted) / share)
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=width)  # pyright: ignore
        else:
            lists = self._inner.nlist
            width = min(lists, int(probes(lists) / share))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=width)  # pyright: ignore
        return self._inner.search(queries, wanted, params=parameters)[1]

    def _rescored(self, queries: np.ndarray, places: np.ndarray) -> Nearest:
        """The cosines of whole vectors, so that a passage has the same score under every kind."""
        unique, inverse = np.unique(places, return_inverse=True)
        inverse = inverse.reshape(places.shape)
        whole = self._whole(unique)
        scores = np.empty(places.shape)
        for query, which in enumerate(inverse):
            scores[query] = whole[which] @ queries[query]
        return np.round(scores, DIGITS), self._base_rows[places]

    def _whole(self, places: np.ndarray) -> np.ndarray:
        if self.kind == "hnsw":
            return stored_vectors(self._inner, self.kind)[places]
        if self._vectors is None:
            raise RestillError("an ivf index needs the store's vectors; open it through Index.open")
        return self._vectors(self._base_rows[places])

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise RestillError(f"vectors have shape {vectors.shape}, the index needs (N, {self.dim})")
        if not np.isfinite(vectors).all():
            raise RestillError("a vector holds NaN or infinity; the encoder's weights are probably broken")
        return vectors

    @staticmethod
    def _live(rows: np.ndarray, dead: np.ndarray | None) -> int:
        return len(rows) - (0 if dead is None else int(np.count_nonzero(dead)))


class _Tail:
    """Room for vectors in memory. Only grows, so that older views of its start stay right."""

    def __init__(self, dim: int, room: int) -> None:
        self.vectors = np.empty((room, dim), np.float32)
        self.rows = np.empty(room, np.int64)
        self.used = 0

    def with_more(self, length: int, rows: np.ndarray, vectors: np.ndarray) -> tuple[_Tail, int]:
        """The tail that holds the first ``length`` and then these, and its new length."""
        end, tail = length + len(rows), self
        if self.used != length or end > len(self.rows):
            tail = _Tail(self.vectors.shape[1], max(end, 2 * length) if length else end)
            tail.vectors[:length], tail.rows[:length] = self.vectors[:length], self.rows[:length]
        tail.vectors[length:end], tail.rows[length:end] = vectors, rows
        tail.used = end
        return tail, end
