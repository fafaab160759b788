"""How good a ranking of documents is, as trec_eval defines it.

A ranking is a list of document ids, best first, each once. A relevance maps a question's document ids to grades; a
document is relevant if its grade is above 0, and one without a grade is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..models.errors import RestillError
from .types import Hit

Ranking = Sequence[str]
Relevance = Mapping[str, float]
Search = Callable[[Sequence[str], int], Sequence[Sequence[Hit]]]
"""Queries and k in; for each query the k best passages out, best first."""

DEPTH = 100
"""Documents of a ranking that MRR and MAP look at."""
_AT_ONCE = 128


def recall(ranking: Ranking, relevance: Relevance, k: int) -> float:
    """Share of the relevant documents among the first ``k``."""
    relevant = _relevant(ranking, relevance)
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def all_gold(ranking: Ranking, relevance: Relevance, k: int) -> float:
    """1.0 if every relevant document is among the first ``k``, else 0.0: can a question of several hops be answered?"""
    return float(_relevant(ranking, relevance) <= set(ranking[:k]))


def ndcg(ranking: Ranking, relevance: Relevance, k: int) -> float:
    """Discounted cumulative gain of the first ``k`` over that of the best order (Järvelin and Kekäläinen, 2002).

    The gain is the grade itself, the discount log2(1 + rank).
    """
    _relevant(ranking, relevance)
    best = sorted((grade for grade in relevance.values() if grade > 0), reverse=True)
    return _dcg([max(relevance.get(document, 0.0), 0.0) for document in ranking[:k]]) / _dcg(best[:k])


def reciprocal_rank(ranking: Ranking, relevance: Relevance) -> float:
    """1 / rank of the first relevant document, 0.0 if none is ranked; its mean is MRR."""
    relevant = _relevant(ranking, relevance)
    return next((1 / rank for rank, document in enumerate(ranking, 1) if document in relevant), 0.0)


def average_precision(ranking: Ranking, relevance: Relevance) -> float:
    """Mean over the relevant documents of the precision at their rank, 0 for those not ranked; its mean is MAP."""
    relevant = _relevant(ranking, relevance)
    ranks = [rank for rank, document in enumerate(ranking, 1) if document in relevant]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(relevant)


def score(
    rankings: Sequence[Ranking], relevances: Sequence[Relevance], cutoffs: Sequence[int] = (5, 10)
) -> dict[str, list[float]]:
    """Every measure's value for each question, under the names ``recall@5``, ``all-gold@5``, ``nDCG@5``, ``MRR``...

    Raises:
        RestillError: a question has no relevant document, or a ranking names one twice.
        ValueError: there are more rankings than relevances, or fewer.
    """
    pairs = list(zip(rankings, relevances, strict=True))
    values: dict[str, list[float]] = {}
    for name, measure in {"recall": recall, "all-gold": all_gold, "nDCG": ndcg}.items():
        for k in cutoffs:
            values[f"{name}@{k}"] = [measure(ranking, relevance, k) for ranking, relevance in pairs]
    values["MRR"] = [reciprocal_rank(ranking[:DEPTH], relevance) for ranking, relevance in pairs]
    values["MAP"] = [average_precision(ranking[:DEPTH], relevance) for ranking, relevance in pairs]
    return values


def rank_documents(
    search: Search, queries: Sequence[str], depth: int = DEPTH, documents: int | None = None
) -> list[list[str]]:
    """The first ``depth`` documents for each query, each at the rank of its best passage.

    Passages are fetched until they belong to so many documents, or there are no more.

    Args:
        documents: how many there are; a ranking of all of them needs no more passages.
    """
    enough = depth if documents is None else min(depth, documents)
    return [
        ranking
        for start in range(0, len(queries), _AT_ONCE)  # hits have texts: not those of all queries in memory
        for ranking in _ranked(search, queries[start : start + _AT_ONCE], depth, enough)
    ]


def _ranked(search: Search, queries: Sequence[str], depth: int, enough: int) -> list[list[str]]:
    rankings: list[list[str]] = [[] for _ in queries]
    waiting, passages = list(range(len(queries))), depth
    while waiting:
        short = []
        for query, hits in zip(waiting, search([queries[i] for i in waiting], passages), strict=True):
            rankings[query] = list(dict.fromkeys(hit.chunk.doc_id for hit in hits))[:depth]
            if len(rankings[query]) < enough and len(hits) >= passages:
                short.append(query)
        waiting, passages = short, 4 * passages
    return rankings


def read_qrels(path: str | Path) -> dict[str, dict[str, float]]:
    """Grades by question id and document id, from BEIR's TSV: a header, then question, document, grade.

    Raises:
        RestillError: the file cannot be read, or a line (which is named) is malformed.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RestillError(
            f"{path}: cannot be read ({error}); give a TSV file with query-id, corpus-id, score"
        ) from None
    qrels: dict[str, dict[str, float]] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            question, document, grade = line.split("\t")
            qrels.setdefault(question, {})[document] = float(int(grade))
        except ValueError:
            raise RestillError(
                f"{path}, line {number} is {line!r:.80}; it must be question id, document id, whole grade, by tabs"
            ) from None
    if not qrels:
        raise RestillError(f"{path} holds no judgements; give a header line, then question id, document id and grade")
    return qrels


def _relevant(ranking: Ranking, relevance: Relevance) -> set[str]:
    if len(set(ranking)) < len(ranking):
        twice = next(document for i, document in enumerate(ranking) if document in ranking[:i])
        raise RestillError(f"document {twice!r} is ranked twice; rank documents, not their passages")
    relevant = {document for document, grade in relevance.items() if grade > 0}
    if not relevant:
        raise RestillError("no document is relevant; leave questions without gold documents out")
    return relevant


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains, 1))
