"""Measures of a ranking, against ir-measures (which is trec_eval)."""

from __future__ import annotations

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, nDCG

from restill.models.errors import RestillError
from restill.retrieval.metrics import (
    all_gold,
    average_precision,
    ndcg,
    rank_documents,
    read_qrels,
    recall,
    reciprocal_rank,
    score,
)
from restill.retrieval.types import Chunk, Hit

documents = st.sampled_from([f"d{i}" for i in range(12)])
rankings = st.lists(documents, unique=True, max_size=12)
relevances = st.dictionaries(documents, st.integers(-1, 3), min_size=1).filter(lambda r: max(r.values()) > 0)
questions = st.lists(st.tuples(rankings, relevances), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(questions, st.integers(1, 12))
def test_every_measure_is_that_of_ir_measures(asked, k):
    qrels = {str(q): relevance for q, (_, relevance) in enumerate(asked)}
    run = {
        str(q): {document: float(-rank) for rank, document in enumerate(ranking)}
        for q, (ranking, _) in enumerate(asked)
    }
    theirs = {
        (str(m.measure), m.query_id): m.value
        for m in ir_measures.iter_calc([R @ k, nDCG @ k, RR, AP], qrels, {q: r for q, r in run.items() if r})
    }
    ours = score([ranking for ranking, _ in asked], [relevance for _, relevance in asked], cutoffs=[k])
    for mine, name in {f"recall@{k}": f"R@{k}", f"nDCG@{k}": f"nDCG@{k}", "MRR": "RR", "MAP": "AP"}.items():
        assert ours[mine] == pytest.approx([theirs.get((name, str(q)), 0.0) for q in range(len(asked))])
    assert ours[f"all-gold@{k}"] == [float(value == 1) for value in ours[f"recall@{k}"]]


def test_by_hand():
    ranking, relevance = ["a", "b", "c", "d"], {"b": 1, "d": 1, "e": 1}
    assert recall(ranking, relevance, 2) == pytest.approx(1 / 3)
    assert recall(ranking, relevance, 4) == pytest.approx(2 / 3)
    assert all_gold([*ranking, "e"], relevance, 4) == 0 and all_gold([*ranking, "e"], relevance, 5) == 1
    assert reciprocal_rank(ranking, relevance) == 0.5
    assert average_precision(ranking, relevance) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert ndcg(["b", "d", "e"], relevance, 10) == 1


def test_a_question_without_relevant_documents_has_no_score():
    for relevance in ({}, {"a": 0}, {"a": -1}):
        with pytest.raises(RestillError, match="no document is relevant"):
            score([["a"]], [relevance])


def test_passages_are_no_documents():
    with pytest.raises(RestillError, match="'a' is ranked twice"):
        recall(["a", "b", "a"], {"a": 1}, 5)


@settings(deadline=None)
@given(st.lists(st.lists(documents, max_size=40), max_size=4), st.integers(1, 6))
def test_documents_are_ranked_by_their_best_passage(found, depth):
    def hit(document):
        return Hit(chunk=Chunk(chunk_id="", doc_id=document, text="", start=0, end=0, content_hash=""), score=0)

    def search(queries, k):
        return [[hit(document) for document in found[int(query)][:k]] for query in queries]

    ranked = rank_documents(search, [str(i) for i in range(len(found))], depth)
    assert ranked == [list(dict.fromkeys(passages))[:depth] for passages in found]


def test_no_passages_are_fetched_after_all_documents_are_ranked():
    fetched = []

    def search(queries, k):
        fetched.append((len(queries), k))
        found = [f"d{i % 3}" for i in range(1000)]
        chunks = [Chunk(chunk_id="", doc_id=d, text="", start=0, end=0, content_hash="") for d in found[:k]]
        return [[Hit(chunk=chunk, score=0) for chunk in chunks] for _ in queries]

    ranked = rank_documents(search, [str(i) for i in range(300)], 10, documents=3)
    assert ranked == [["d0", "d1", "d2"]] * 300
    assert sum(count for count, _ in fetched) == 300 and max(count for count, _ in fetched) < 300


def test_mrr_and_map_look_at_the_first_hundred_whatever_the_cut_offs():
    ranking = [str(i) for i in range(200)]
    values = score([ranking], [{"150": 1}], (200,))
    assert (values["recall@200"], values["MRR"], values["MAP"]) == ([1.0], [0.0], [0.0])


def test_qrels_are_read_from_beirs_form(tmp_path):
    file = tmp_path / "qrels.tsv"
    file.write_text("query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\n2\td1\t1\n\n")
    assert read_qrels(file) == {"1": {"d1": 2, "d2": 0}, "2": {"d1": 1}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [("header\n1 d1 1\n", "line 2"), ("header\n1\td1\tyes\n", "line 2"), ("header\n", "no judgements")],
)
def test_broken_qrels_are_named(tmp_path, content, problem):
    file = tmp_path / "qrels.tsv"
    file.write_text(content)
    with pytest.raises(RestillError, match=problem):
        read_qrels(file)
    with pytest.raises(RestillError, match="cannot be read"):
        read_qrels(tmp_path / "missing.tsv")
