"""One ranking of documents from several: reciprocal rank fusion and weighted score fusion.

A list is one searcher's results, ``(document id, score)`` best first; its scores mean nothing beside another list's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from ..models.errors import RestillError

Id = TypeVar("Id", bound=Hashable)

RRF_K = 60
"""Damps the first places: the constant of Cormack et al."""


def best_of(hits: Iterable[tuple[int, float]], document: Callable[[int], Id]) -> list[tuple[Id, float]]:
    """Documents for passages: each at the place, and with the score, of its best passage.

    Args:
        hits: (row, score) of passages, best first.
        document: the document that a row belongs to.
    """
    best: dict[Id, float] = {}
    for row, score in hits:
        best.setdefault(document(row), score)
    return list(best.items())


def reciprocal_rank_fusion(
    lists: Sequence[Sequence[tuple[Id, float]]], weights: Sequence[float] | None = None, *, k: int = RRF_K
) -> list[tuple[Id, float]]:
    """Sum of ``weight / (k + rank)`` over the lists that hold the document, rank 1 being the first.

    Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet, SIGIR 2009. It looks at ranks only. Equal
    sums keep the order of the lists.

    Args:
        lists: best first; each names a document once.
        weights: one a list, 1.0 each if not given.
        k: how little the first places count more than those after.

    Raises:
        RestillError: weights or ``k`` do not fit, or a list names a document twice.
    """
    if k < 0:
        raise RestillError(f"k={k}: reciprocal rank fusion needs k of 0 or more; 60 is usual")
    shares = [
        [(document, weight / (k + rank)) for rank, (document, _) in enumerate(hits, 1)]
        for hits, weight in zip(lists, _weights(lists, weights), strict=True)
    ]
    return _summed(shares)


def weighted_score_fusion(
    lists: Sequence[Sequence[tuple[Id, float]]],
    weights: Sequence[float] | None = None,
    *,
    floors: Sequence[float | None] | None = None,
) -> list[tuple[Id, float]]:
    """Sum of ``weight * (score - floor) / (best - floor)``; a document that a list lacks gets nothing from it.

    Each list is scaled so that its best document has 1 and its floor 0. The floor is the score that says "no evidence":
    0 for BM25; for a cosine, where no such score exists, the last of the list (None), which then has to be as deep in
    every call: the depth decides what the floor is. Convex combination as in Bruch et al., arXiv 2210.11934.

    Args:
        lists: best first; each names a document once. A list all of whose scores are equal counts 1 for each.
        weights: one a list, 1.0 each if not given.
        floors: one a list, None for the list's last score; all None if not given. Scores below the floor count as it.

    Raises:
        RestillError: weights or floors do not fit, a score is not finite, or a list names a document twice.
    """
    floors = [None] * len(lists) if floors is None else floors
    if len(floors) != len(lists):
        raise RestillError(f"{len(floors)} floors for {len(lists)} lists; give one for each")
    shares = [
        [(document, weight * share) for (document, _), share in zip(hits, scaled(hits, floor), strict=True)]
        for hits, weight, floor in zip(lists, _weights(lists, weights), floors, strict=True)
    ]
    return _summed(shares)


def scaled(hits: Sequence[tuple[Id, float]], floor: float | None = None) -> list[float]:
    """Scores between 0 (``floor``, or the last score) and 1 (the best), as ``weighted_score_fusion`` adds them."""
    scores = [score for _, score in hits]
    if not all(map(math.isfinite, scores)):
        raise RestillError(f"a score is not finite: {next(s for s in scores if not math.isfinite(s))}")
    if not scores:
        return []
    low, high = min(scores) if floor is None else floor, max(scores)
    if high <= low:
        return [1.0 if score >= low else 0.0 for score in scores]
    return [max(0.0, score - low) / (high - low) for score in scores]


def _weights(lists: Sequence[object], weights: Sequence[float] | None) -> Sequence[float]:
    weights = [1.0] * len(lists) if weights is None else weights
    if len(weights) != len(lists):
        raise RestillError(f"{len(weights)} weights for {len(lists)} lists; give one for each")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise RestillError(f"weights {list(weights)}: each must be a number of 0 or more")
    return weights


def _summed(shares: Sequence[Sequence[tuple[Id, float]]]) -> list[tuple[Id, float]]:
    parts: dict[Id, list[float]] = {}
    for hits in shares:
        if len({document for document, _ in hits}) < len(hits):
            raise RestillError("a list names a document twice; fuse documents, not passages (see best_of)")
        for document, share in hits:
            parts.setdefault(document, []).append(share)
    # fsum is exact, so the order of the lists cannot change a sum's last bit.
    return sorted(((d, math.fsum(p)) for d, p in parts.items()), key=lambda item: -item[1])
