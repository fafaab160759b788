"""From first-stage results to ranked documents: ``hybrid`` fuses dense and sparse, ``hops`` also follows links."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .fusion import best_of, weighted_score_fusion
from .hops import DocumentGraph

Hits = Sequence[tuple[int, float]]
"""(row, score) of passages, best first."""

Search = Callable[[Sequence[str], int], Sequence[Hits]]
"""Queries and a depth in; for each query so many passages at most out."""

_WORD = re.compile(r"\w+")
_SUFFIX = 3
"""Letters by which forms of a word differ at most: ``direct`` and ``directors``."""
_STEM = 4
"""Shorter words have no forms."""


class Ranked(NamedTuple):
    """A document, the passage of it that fits best, and the score they are ranked by."""

    doc_id: str
    row: int
    score: float


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """What a collection answers; under a filter all of it is confined to the passages that pass.

    Attributes:
        dense: search by vectors; the score is a cosine.
        sparse: BM25; scores are above 0, and a question's is the sum of its words'.
        document: the document id of a row.
        rows: the rows of a document, in order; none if the document is gone or filtered out.
        text: title and text of a row.
    """

    dense: Search
    sparse: Search
    document: Callable[[int], str]
    rows: Callable[[str], Sequence[int]]
    text: Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much each part counts; 0 leaves the part out. Tuned on the training questions of HotpotQA and MuSiQue.

    Attributes:
        dense: weight of the dense score, scaled from 0 (the last of ``depth``) to 1 (the best).
        sparse: weight of the sparse score over the best one's.
        title: added for a document whose title the question names, over the root of the number of namesakes.
        novelty: share of the sparse score that a document loses for words that the first hit already holds.
        walk: weight of the walk on the graph.
        seeds: documents that the walk starts from.
        sharpness: the walk starts from a document in proportion to its score to this power.
        depth: passages fetched from each first stage. The dense scale depends on it.
    """

    dense: float = 0.4
    sparse: float = 0.6
    title: float = 0.5
    novelty: float = 1.0
    walk: float = 1.0
    seeds: int = 10
    sharpness: float = 3.0
    depth: int = 100


def hybrid(queries: Sequence[str], stage: FirstStage, settings: Settings | None = None) -> list[list[Ranked]]:
    """Documents by the weighted sum of dense and sparse scores, best first (``dense``, ``sparse`` and ``depth`` of the
    settings)."""
    return [question.ranked() for question in _first_stage(queries, stage, settings or Settings())]


def hops(
    queries: Sequence[str], stage: FirstStage, graph: DocumentGraph, settings: Settings | None = None
) -> list[list[Ranked]]:
    """Documents for questions that need several: what the question names, what it asks for, and what links the two.

    1. Dense and sparse scores are summed, as ``hybrid`` does; documents whose title the question names gain.
    2. Words of the question that the first document holds count less for all others: what is left of the question
       asks for the next document. One more sparse search, in one batch.
    3. A walk on the graph from the best documents adds those they are linked to.

    Documents of the graph that the collection lacks, or that do not pass its filter, are left out.
    """
    settings = settings or Settings()
    questions = _first_stage(queries, stage, settings)
    if settings.title:
        for question in questions:
            _add_titles(question, graph, settings)
    if settings.novelty:
        _discount(questions, stage, graph, settings)
    if settings.walk:
        for question in questions:
            _walk(question, graph, settings)
    return [question.ranked() for question in questions]


class _Question:
    """One question's documents and their scores so far."""

    def __init__(self, text: str, dense: Hits, sparse: Hits, stage: FirstStage, settings: Settings) -> None:
        self.text = text
        self._stage = stage
        lists = [best_of(hits, stage.document) for hits in (dense, sparse)]
        weights, floors = [settings.dense, settings.sparse], [None, 0.0]
        self.scores = dict(weighted_score_fusion(lists, weights, floors=floors))
        self.sparse = dict(lists[1])
        self._rows: dict[str, int] = {}
        for row, _ in weighted_score_fusion([dense, sparse], weights, floors=floors):
            self._rows.setdefault(stage.document(row), row)

    def add(self, doc_id: str, score: float) -> None:
        """Raise a document's score, or begin it, if it has a passage that may be found."""
        if doc_id in self.scores or self._stage.rows(doc_id):
            self.scores[doc_id] = self.scores.get(doc_id, 0.0) + score

    def row(self, doc_id: str) -> int:
        """The document's best passage; its first if only the graph led here."""
        return self._rows[doc_id] if doc_id in self._rows else self._stage.rows(doc_id)[0]

    def ranked(self) -> list[Ranked]:
        """All documents that have a score, best first."""
        order = sorted(self.scores.items(), key=lambda item: -item[1])
        return [Ranked(doc_id, self.row(doc_id), score) for doc_id, score in order]


def _first_stage(queries: Sequence[str], stage: FirstStage, settings: Settings) -> list[_Question]:
    dense, sparse = stage.dense(queries, settings.depth), stage.sparse(queries, settings.depth)
    return [_Question(*each, stage, settings) for each in zip(queries, dense, sparse, strict=True)]


def _add_titles(question: _Question, graph: DocumentGraph, settings: Settings) -> None:
    for number, namesakes in graph.finder.find(question.text).items():
        question.add(graph.ids[number], settings.title / math.sqrt(namesakes))


def _discount(questions: Sequence[_Question], stage: FirstStage, graph: DocumentGraph, settings: Settings) -> None:
    """Take from every document but the first what it scored by words that the first holds.

    Not where the first is linked to nothing: it leads nowhere, so the best others are those that say the same.
    """
    reduced: list[tuple[_Question, str, str]] = []
    for question in questions:
        if question.sparse:
            first = max(question.scores, key=question.scores.__getitem__)
            if not graph.is_linked(first):
                continue
            reduced.append((question, first, uncovered(question.text, stage.text(question.row(first)))))
    asked = [(i, left) for i, (_, _, left) in enumerate(reduced) if left]
    found = dict(zip([i for i, _ in asked], stage.sparse([left for _, left in asked], settings.depth), strict=True))
    for i, (question, first, _) in enumerate(reduced):
        still = dict(best_of(found.get(i, ()), stage.document))
        factor = settings.sparse * settings.novelty / max(question.sparse.values())
        for doc_id, score in question.sparse.items():
            if doc_id != first:
                question.scores[doc_id] -= factor * max(0.0, score - still.get(doc_id, 0.0))


def _walk(question: _Question, graph: DocumentGraph, settings: Settings) -> None:
    """Add the square root of what the walk spends at a document, over that of the most visited: the first of a walk
    takes nearly all, and those after it would hardly count."""
    best = sorted(question.scores.items(), key=lambda item: -item[1])[: settings.seeds]
    top = best[0][1] if best else 0.0
    if top <= 0:
        return
    restart = {doc_id: (score / top) ** settings.sharpness for doc_id, score in best if score > 0}
    prior = {doc_id: max(score, 0.0) for doc_id, score in question.scores.items()}
    visits = graph.walk(restart, prior)
    most = max(visits.values(), default=0.0)
    for doc_id, share in visits.items():
        question.add(doc_id, settings.walk * math.sqrt(share / most))


def uncovered(question: str, text: str) -> str:
    """The words of ``question`` of which ``text`` holds no form: what remains to be asked once ``text`` is found.

    A form is told by its beginning, so that no language's grammar is needed.
    """
    held = {_folded(word) for word in _WORD.findall(text)}
    stems = {word[:-cut] for word in held for cut in range(1, _SUFFIX + 1) if len(word) - cut >= _STEM}
    left = []
    for word in _WORD.findall(question):
        folded = _folded(word)
        forms = {folded[: len(folded) - cut] for cut in range(1, _SUFFIX + 1) if len(folded) - cut >= _STEM}
        if folded not in held and folded not in stems and held.isdisjoint(forms):
            left.append(word)
    return " ".join(left)


def _folded(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
