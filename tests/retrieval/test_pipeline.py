"""Hybrid and hops over a small collection with a real sparse-like and a real dense-like first stage."""

import re

import pytest

from restill.retrieval.hops import DocumentGraph
from restill.retrieval.pipeline import FirstStage, Settings, hops, hybrid, uncovered
from restill.retrieval.types import Document, titled

DOCUMENTS = [
    Document(id="kate", title="Kate Ramsay", text="Kate Ramsay is a character of the soap opera Neighbours."),
    Document(id="sophie", title="Sophie Ramsay", text="Sophie Ramsay is a fictional character of an opera."),
    Document(id="soap", title="Neighbours", text="It was devised by Reg Watson."),
    Document(id="bread", title="Bread", text="Flour and water, made by bakers."),
]
QUESTION = "Kate Ramsay is a fictional character of a series that who made?"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _search(texts: list[str], queries, k):
    """Rows by the number of words they share with the query."""
    found = []
    for query in queries:
        scores = [(row, float(len(_words(query) & _words(text)))) for row, text in enumerate(texts)]
        found.append(sorted((hit for hit in scores if hit[1]), key=lambda hit: -hit[1])[:k])
    return found


def stage(documents=DOCUMENTS, *, gone=()) -> FirstStage:
    """Two rows a document: title, then text."""
    texts = [part for d in documents for part in (d.title, d.text)]
    ids = [d.id for d in documents]

    def search(queries, k):
        hits = _search(texts, queries, len(texts))
        return [[hit for hit in each if ids[hit[0] // 2] not in gone][:k] for each in hits]

    return FirstStage(
        dense=search,
        sparse=search,
        document=lambda row: ids[row // 2],
        rows=lambda d: () if d in gone or d not in ids else (2 * ids.index(d), 2 * ids.index(d) + 1),
        text=lambda row: titled(documents[row // 2].title, documents[row // 2].text),
    )


@pytest.fixture(scope="module")
def graph() -> DocumentGraph:
    return DocumentGraph.build(DOCUMENTS)


def _order(ranked):
    return [result.doc_id for result in ranked]


def test_hybrid_ranks_documents_once_with_their_best_passage():
    (ranked,) = hybrid([QUESTION], stage())
    assert _order(ranked)[:2] == ["kate", "sophie"]
    assert len(set(_order(ranked))) == len(ranked)
    assert ranked[0].row == 1
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)


def test_hops_finds_the_document_that_only_a_link_leads_to(graph):
    assert "soap" not in _order(hybrid([QUESTION], stage())[0])[:3]
    (ranked,) = hops([QUESTION], stage(), graph)
    assert _order(ranked)[:2] == ["kate", "soap"]
    assert ranked[1].row // 2 == 2


def test_hops_without_its_parts_is_hybrid(graph):
    settings = Settings(title=0, novelty=0, walk=0)
    assert hops([QUESTION], stage(), graph, settings) == hybrid([QUESTION], stage())


def test_what_the_first_hit_covers_counts_less_for_others(graph):
    before = {r.doc_id: r.score for r in hybrid([QUESTION], stage())[0]}
    after = {r.doc_id: r.score for r in hops([QUESTION], stage(), graph, Settings(title=0, walk=0))[0]}
    assert after["kate"] == before["kate"]
    assert after["sophie"] < before["sophie"]
    assert after["bread"] == before["bread"]  # "made" is what remains to be asked


def test_a_first_hit_that_leads_nowhere_leaves_the_others_as_they_were():
    alone = DocumentGraph.build([d for d in DOCUMENTS if d.id in ("sophie", "bread")])
    only = Settings(title=0, walk=0)
    assert hops([QUESTION], stage(), alone, only) == hybrid([QUESTION], stage())


def test_a_title_in_the_question_counts(graph):
    question = "Is it Bread or a fictional character of an opera?"
    assert _order(hybrid([question], stage())[0])[0] == "sophie"
    assert _order(hops([question], stage(), graph, Settings(title=2.0))[0])[0] == "bread"


def test_what_the_filter_excludes_is_not_brought_back_by_the_graph(graph):
    assert "soap" not in _order(hops([QUESTION, "Neighbours"], stage(gone={"soap"}), graph)[0])
    assert "soap" not in _order(hops(["Neighbours"], stage(gone={"soap"}), graph)[0])


def test_a_batch_gives_what_single_questions_give(graph):
    questions = [QUESTION, "Bread", "xyzzy", "Neighbours by Reg Watson"]
    assert hops(questions, stage(), graph) == [hops([q], stage(), graph)[0] for q in questions]
    assert hops([], stage(), graph) == []
    assert hops(["xyzzy"], stage(), graph) == [[]]


@pytest.mark.parametrize(
    "question, text, left",
    [
        ("Which city did Kate visit?", "Kate saw it", "Which city did visit"),
        ("directors of films", "directed a film", "directors of"),  # "direct-ors", "direct-ed": no prefix of the other
        ("the director films", "direct film", "the"),
        ("Alû", "alu", ""),
        ("", "x", ""),
    ],
)
def test_what_is_left_of_a_question(question, text, left):
    assert uncovered(question, text) == left
