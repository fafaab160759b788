"""The ways a collection is searched: by meaning, by words, by both, and along links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, get_args

from ..models.errors import RestillError
from .filters import Where
from .pipeline import FirstStage, Ranked, Settings, hops, hybrid
from .types import Encoder, titled
from .view import Allowed, Found, Snapshot

Mode = Literal["dense", "sparse", "hybrid", "hops"]
"""``dense``: cosine of passage vectors. ``sparse``: BM25. ``hybrid``: their weighted sum, by document. ``hops``: what
the first documents lead to as well (``pipeline.hops``); the first such search builds the graph of links."""

MODES: tuple[Mode, ...] = get_args(Mode)


def checked_mode(mode: str) -> Mode:
    """``mode``, if it is one.

    Raises:
        RestillError: it is not.
    """
    if mode not in MODES:
        raise RestillError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    return mode


def check_k(mode: Mode, k: int, settings: Settings | None = None) -> None:
    """Check that the mode can find so many.

    Raises:
        RestillError: it cannot.
    """
    depth = (settings or Settings()).depth
    if mode in ("hybrid", "hops") and k > depth:
        raise RestillError(f"k={k}: mode {mode!r} ranks {depth} passages; ask for no more")


def check_rerank_depth(mode: Mode, depth: int, settings: Settings | None = None) -> None:
    """Check that the mode finds as many passages as a re-ranker is to order again.

    Raises:
        RestillError: it does not.
    """
    ranked = (settings or Settings()).depth
    if mode in ("hybrid", "hops") and depth > ranked:
        raise RestillError(f"rerank_depth={depth}: mode {mode!r} ranks {ranked} passages; give {ranked} or fewer")


def search(
    snapshot: Snapshot,
    encoder: Encoder,
    mode: Mode,
    queries: Sequence[str],
    k: int,
    where: Where | None = None,
    settings: Settings | None = None,
) -> Found:
    """The ``k`` best (row, score) of each query. ``hybrid`` and ``hops`` give one passage of each document."""

    allowed = snapshot.allowed(where)
    embed = getattr(encoder, "encode_queries", encoder.encode)

    def dense(texts: Sequence[str], depth: int) -> Found:
        return snapshot.search_dense(embed(texts), depth, allowed)

    def sparse(texts: Sequence[str], depth: int) -> Found:
        return snapshot.search_sparse(texts, depth, allowed)

    if mode == "dense":
        return dense(queries, k)
    if mode == "sparse":
        return sparse(queries, k)
    settings = settings or Settings()
    check_k(mode, k, settings)
    stage = _first_stage(snapshot, dense, sparse, allowed)
    ranked: Sequence[Sequence[Ranked]]
    if mode == "hybrid":
        ranked = hybrid(queries, stage, settings)
    else:
        ranked = hops(queries, stage, snapshot.graph, settings)
    return [[(found.row, found.score) for found in question[:k]] for question in ranked]


def _first_stage(
    snapshot: Snapshot,
    dense: Callable[[Sequence[str], int], Found],
    sparse: Callable[[Sequence[str], int], Found],
    allowed: Allowed | None,
) -> FirstStage:
    documents: dict[int, str] = {}
    passing = None if allowed is None else frozenset(snapshot.joined(allowed).tolist())

    def known(found: Found) -> Found:
        """Look up the documents of all that was found at once."""
        new = {row for hits in found for row, _ in hits} - documents.keys()
        documents.update(snapshot.documents_of(sorted(new)))
        return found

    @cache
    def rows(doc_id: str) -> list[int]:
        return [row for row in snapshot.rows_of(doc_id) if passing is None or row in passing]

    def text(row: int) -> str:
        (chunk,) = snapshot.chunks_at([row])
        return titled(chunk.title, chunk.text)

    return FirstStage(
        dense=lambda texts, depth: known(dense(texts, depth)),
        sparse=lambda texts, depth: known(sparse(texts, depth)),
        document=documents.__getitem__,
        rows=rows,
        text=text,
    )
