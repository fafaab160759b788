"""Exact vector search: all rows compared, some of them masked, ties told from the order of batches."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from .faiss_file import Kind

_SPARE = 8
"""Neighbours fetched beyond ``k``, to see whether there are ties at the k-th place."""

DIGITS = 5
"""Decimals of a score that count: the last bits of a float sum depend on how queries are batched."""

_BLAS_FROM = 20
"""From so many queries FAISS multiplies matrices, which is 25 times as fast but knows no filter."""

_BLAS_WORK = 4_000
# FAISS 1.15 does so from queries x dimensions of 128,000 on; here it pays from 16 queries of 384 (64 of them over
# 100,000 vectors: 27 instead of 156 ms). Earlier versions count queries alone.
faiss.cvar.distance_compute_blas_threshold = min(_BLAS_WORK, faiss.cvar.distance_compute_blas_threshold)

_DROPPED, _COPIED = 1_000, 200_000
"""A batch whose filter leaves out so few rows is searched without it; one that few enough pass, on a copy of them."""

Nearest = tuple[np.ndarray, np.ndarray]
"""Scores f64 [B, F] and rows int64 [B, F]; -inf and -1 where there are fewer than F."""


def stored_vectors(index: Any, kind: Kind) -> np.ndarray:
    """The vectors in a flat or hnsw index, f32 [N, dim], not copied: also those of a mapped file."""
    flat: Any = faiss.downcast_index(index.storage) if kind == "hnsw" else index
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def marked(rows: np.ndarray, dead: np.ndarray | None, removed: np.ndarray) -> np.ndarray | None:
    """Which of ``rows`` (ascending) are dead, bool [N], once ``removed`` are too; None means none is."""
    places = _places(rows, removed)
    if not len(places):
        return dead
    dead = np.zeros(len(rows), bool) if dead is None else dead.copy()
    dead[places] = True
    return dead


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where the ``wanted`` rows are in ``rows`` (ascending); those that are not there are left out."""
    at = np.searchsorted(rows, wanted)
    at, wanted = at[at < len(rows)], wanted[at < len(rows)]
    return at[rows[at] == wanted]


def passing_places(rows: np.ndarray, dead: np.ndarray | None, allowed: np.ndarray | None) -> np.ndarray | None:
    """Which places of ``rows`` may be found, bool [N]: those ``allowed`` and not ``dead``; None means all of them."""
    if allowed is None:
        return None if dead is None else ~dead
    mask = np.zeros(len(rows), bool)
    mask[_places(rows, np.asarray(allowed, np.int64))] = True
    return mask if dead is None else mask & ~dead


def none_found(queries: int) -> Nearest:
    """No result for each of so many queries."""
    return np.empty((queries, 0)), np.empty((queries, 0), np.int64)


def nearest(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int, mask: np.ndarray | None) -> Nearest:
    """The best rows that pass ``mask``, in any number from ``k`` on (or all that pass), by cosine rounded to `DIGITS`.

    Args:
        queries: f32 [B, dim], unit length like ``vectors``.
        vectors: f32 [N, dim].
        rows: int64 [N], the row of each vector.
        k: how many are wanted; all rows as good as the k-th are among the results.
        mask: bool [N]; None lets all pass.
    """
    passing = len(rows) if mask is None else int(np.count_nonzero(mask))
    if not passing:
        return none_found(len(queries))
    dropped, post = len(rows) - passing, False
    if mask is not None and len(queries) >= _BLAS_FROM:
        post = dropped <= _DROPPED
        if not post and passing <= _COPIED:
            vectors, rows, mask = vectors[mask], rows[mask], None
    fetch = min(passing, k + _SPARE)
    while True:
        take = fetch + dropped if post else fetch
        scores, places = _knn(queries, vectors, take, None if post else mask)
        scores = np.round(scores.astype(np.float64), DIGITS)
        if post and mask is not None:
            scores[~mask[places]] = -np.inf
            best = np.argsort(-scores, axis=1, kind="stable")[:, :fetch]
            scores, places = np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)
        if fetch == passing or (scores[:, k - 1] > scores[:, -1]).all():
            return scores, rows[places]
        fetch = min(passing, 4 * fetch)  # a tie reaches beyond what was fetched, and FAISS breaks ties at random


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int, mask: np.ndarray | None) -> Nearest:
    """The ``k`` highest inner products of each query and their places; ``k`` of them pass ``mask``."""
    scores = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # pyright: ignore
    pointers = [faiss.swig_ptr(array) for array in (queries, vectors, scores, places)]
    faiss.knn_inner_product(*pointers[:2], queries.shape[1], len(queries), len(vectors), k, *pointers[2:], selector)  # pyright: ignore[reportCallIssue]
    return scores, places
