"""Pairs of questions and the passages that answered them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restill.agents.evidence import evidence_pairs
from restill.agents.trajectory import Trajectory
from restill.models.testing import save_tiny_encoder
from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Citation


def trajectory(question: str, cited: list[Citation], **values: Any) -> Trajectory:
    known = {"protocol": "react-1", "question_key": question, "agent": "a", "question_id": question}
    return Trajectory(
        **{**known, "question": question, "status": "answered", "answer": "x", "citations": cited, **values}
    )


def test_what_an_answer_cites_is_paired_with_its_question_once(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path)
    documents = [{"_id": name, "title": name.upper(), "text": f"About {name}."} for name in "abc"]
    retriever = Retriever.from_documents(documents, str(tmp_path))
    a, b, _ = (Citation(doc_id=c.doc_id, chunk_id=c.chunk_id, start=c.start, end=c.end) for c in retriever.chunks)
    gone = Citation(doc_id="z", chunk_id="z", start=0, end=1)
    runs = [
        trajectory("one", [a, b]),
        trajectory("one", [a, gone]),
        trajectory("two", [b], forced=True),
        trajectory("three", [b], answer=None, status="budget"),
    ]
    assert evidence_pairs(runs, retriever) == [("one", "A\nAbout a."), ("one", "B\nAbout b.")]
    assert evidence_pairs(runs, retriever, lambda t: t.forced) == [("two", "B\nAbout b.")]
