"""Questions in every spelling that public data sets use."""

from __future__ import annotations

from pathlib import Path

import pytest

from restill.agents.question import Question, read_questions, write_questions
from restill.models.errors import RestillError


def test_other_spellings_are_read() -> None:
    row = {
        "_id": 7,
        "question": "Who?",
        "answer": "Ada",
        "answer_aliases": ["Ada L.", "Ada"],
        "gold": "p0",
        "gold_titles": ["Ada"],
        "type": "bridge",
    }
    question = Question.model_validate(row)
    assert question.id == "7"
    assert question.answers == ["Ada", "Ada L."]
    assert (question.gold, question.gold_titles) == (["p0"], ["Ada"])
    assert question.metadata == {"type": "bridge"}


def test_the_key_depends_on_text_and_id_alone() -> None:
    plain, labelled = Question(id="1", question="Who?"), Question(id="1", question="Who?", answers=["Ada"])
    assert plain.key == labelled.key and len(plain.key) == 16
    assert Question(id="2", question="Who?").key != plain.key
    assert Question.of("Who?").key == Question.of("Who?").key


def test_without_labels_nothing_but_the_question_is_left() -> None:
    question = Question(id="1", question="Who?", answers=["Ada"], gold=["p0"], metadata={"hint": "Ada"})
    assert question.without_labels() == Question(id="1", question="Who?")


def test_a_graphs_state_is_a_question() -> None:
    assert Question.of({"question": "Who?", "messages": []}).question == "Who?"
    assert Question.of({"input": "Who?"}).question == "Who?"


@pytest.mark.parametrize("value", ["", 3, None, {}, {"question": 3}])
def test_what_is_no_question_is_refused(value: object) -> None:
    with pytest.raises(RestillError, match="not a question"):
        Question.of(value)


def test_questions_survive_a_file(tmp_path: Path) -> None:
    questions = [Question(question="Wer? ü", answers=["x"]), Question(id="b", question="Who?", gold=["p"])]
    write_questions(tmp_path / "q.jsonl", questions)
    assert read_questions(tmp_path / "q.jsonl") == questions
    assert read_questions(tmp_path / "q.jsonl", limit=1) == questions[:1]
    windows = b"\xef\xbb\xbf" + (tmp_path / "q.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "q.jsonl").write_bytes(windows)
    assert read_questions(tmp_path / "q.jsonl") == questions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no questions"),
        ('{"question": "a"}\n{', "line 2 is not JSON"),
        ('{"answer": "a"}', "line 1 is no question"),
        ('{"question": "a", "metadata": "b", "c": 1}', "line 1 is no question: metadata"),
        ('{"question": "K\xf6ln"}', "line 1 is not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(RestillError, match=expected):
        read_questions(file)
    with pytest.raises(RestillError, match="no question file"):
        read_questions(tmp_path / "other.jsonl")
