"""``restill eval-retrieval`` on a random encoder: its figures are those of the retriever's own rankings."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from restill import Retriever
from restill.cli import app
from restill.models.testing import save_tiny_encoder

PAGES = {f"p{i}": (f"Page {i % 5}", f"{word} was built in {1900 + i}.") for i, word in enumerate("abcdefgh")}
QUESTIONS = [
    {"id": "1", "question": "When was a built?", "gold": ["p0", "p3"]},
    {"id": "2", "question": "When was b built?", "gold_titles": ["page  1"]},  # of p1 and p6
    {"id": "3", "question": "When was c built?", "answer": "1902"},
]


def run(*args, code=0):
    result = CliRunner().invoke(app, ["eval-retrieval", *map(str, args)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval-retrieval")
    save_tiny_encoder(folder / "encoder")
    documents = [{"_id": name, "title": title, "text": text} for name, (title, text) in PAGES.items()]
    Retriever.from_documents(documents, str(folder / "encoder")).save(folder / "index")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return folder


def test_figures_are_those_of_the_rankings(place):
    result = run(place / "questions.jsonl", "--index", place / "index", "--k", 2, "--k", 8, "--json")
    report = json.loads(result.stdout)
    assert (report["questions"], report["left_out"], report["unknown_gold"]) == (2, 1, 0)
    dense = report["modes"]["dense"]
    hits = Retriever.open(place / "index").search([row["question"] for row in QUESTIONS[:2]], k=8)
    found = [[hit.chunk.doc_id for hit in ranking] for ranking in hits]
    expected = [len({"p0", "p3"}.intersection(found[0][:2])) / 2, len({"p1", "p6"}.intersection(found[1][:2])) / 2]
    assert dense["recall@2"]["mean"] == pytest.approx(sum(expected) / 2)
    assert dense["recall@8"]["mean"] == dense["all-gold@8"]["mean"] == 1
    assert 0 < dense["MAP"]["mean"] <= dense["MRR"]["mean"] <= 1
    low, high = dense["nDCG@8"]["interval"]
    assert low <= dense["nDCG@8"]["mean"] <= high


def test_further_modes_are_compared_with_the_first(place):
    args = [place / "questions.jsonl", "--index", place / "index", "--mode", "dense", "--mode", "sparse"]
    report = json.loads(run(*args, "--json").stdout)
    one, two = report["modes"]["dense"]["MRR"], report["modes"]["sparse"]["MRR"]
    assert "difference" not in one
    assert two["difference"] == pytest.approx(two["mean"] - one["mean"])
    low, high = two["difference_interval"]
    assert low <= two["difference"] <= high
    assert "sparse" in run(*args).stdout


def test_judgements_of_a_beir_collection(place, tmp_path):
    (tmp_path / "queries.jsonl").write_text('{"_id": "7", "text": "When was a built?"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n7\tp0\t2\n7\tp9\t1\n7\tp1\t0\n")
    result = run(
        tmp_path / "queries.jsonl", "--index", place / "index", "--qrels", tmp_path / "qrels.tsv", "--k", 8, "--json"
    )
    report = json.loads(result.stdout)
    assert report["unknown_gold"] == 1 and "not in the index" in result.stderr
    assert report["modes"]["dense"]["recall@8"]["mean"] == 0.5


def test_a_title_that_no_document_has_is_a_miss(place, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "?", "gold_titles": ["Page 0", "Nowhere"]}) + "\n")
    report = json.loads(run(tmp_path / "q.jsonl", "--index", place / "index", "--k", 8, "--json").stdout)
    assert report["unknown_gold"] == 1
    assert report["modes"]["dense"]["recall@8"]["mean"] == pytest.approx(2 / 3)  # p0 and p5 bear the title Page 0


def test_bad_input_is_named(place, tmp_path):
    questions = place / "questions.jsonl"
    assert "dense" in run(questions, "--index", place / "index", "--mode", "psychic", code=1).stderr
    (tmp_path / "q.jsonl").write_text('{"question": "no gold?"}\n')
    assert "gold_titles" in run(tmp_path / "q.jsonl", "--index", place / "index", code=1).stderr


def test_documents_may_be_urls(place, monkeypatch):
    monkeypatch.setattr("restill.commands.making.fetch", lambda names: None)
    url = "http://127.0.0.1:1/page"  # no public address: refused before anything is sent
    assert url in run(place / "questions.jsonl", "--docs", url, code=1).stderr.replace("\n", "")
