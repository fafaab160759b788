"""Questions made from documents: what is kept of what a writer writes, what it reads, and a file that goes on."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from restill import JaxChatModel, Question, read_questions
from restill.models.errors import RestillError
from restill.models.remote_errors import RemoteError
from restill.models.testing import tiny_checkpoint, tiny_tokenizer
from restill.retrieval.types import Document
from restill.selftrain.asking import Reply
from restill.selftrain.question_job import draw_sources, questions_about
from restill.selftrain.question_writer import (
    QuestionWriter,
    read_written,
    unfit,
    write_reply,
    writer_messages,
)
from restill.selftrain.writer_adapter import WRITER_TRAIN, sources_of, train_writer, writer_mixture

MAST = Document(id="m", title="Ada Mast", text="Ada Mast sailed the Brisa from Porto in 1851.")
BOAT = Document(id="b", title="Brisa", text="The Brisa is a schooner built by Rui Lopes.")
ALONE = Document(id="a", title="Kelp", text="Kelp grows in cold water, as Ida Roe found.")
DOCUMENTS = [MAST, BOAT, ALONE]


KEPT = [
    ("When did Ada Mast sail?", "1851"),
    ("Did Ada Mast sail from Porto?", "yes"),
    ("Was there no ship that Ada Mast sailed?", "no"),
    ("Who sailed first, Ada Mast or Rui Lopes?", "Ada Mast"),
    ("What did O'Brien sell?", "the “Brisa”"),
    ("When did O'Brien sell it?", "1860"),
    ("For how much did O'Brien sell it?", "3.5 %"),
    ("Mast sailed what?", "brisa"),
]
DROPPED = [
    ("When did Ada Mast sail?", "1852", "the answer is not in the passages"),
    ("When did Ada Mast sail?", "185", "the answer is not in the passages"),
    ("For how much did O'Brien sell it?", "5 %", "the answer is not in the passages"),
    ("What did O'Brien sell?", "Porto in 1851. Brisa", "the answer is not in the passages"),
    ("When in 1851 did Ada Mast sail?", "1851", "the question holds its answer"),
    ("When did she sail?", "1851", "the question names nothing of the passages"),
    ("When did Ida Roe sail?", "1851", "the question names nothing of the passages"),
    ("When did Ada Mast sail?", "yes", "yes or no, and what is asked for, do not agree"),
    ("Did Ada Mast sail from Porto?", "Porto", "yes or no, and what is asked for, do not agree"),
]
SALE = Document(id="s", title="Sale", text="O'Brien sold the “Brisa” (1851–1860)\nat 3.5 %.")


@pytest.mark.parametrize(("question", "answer", "why"), [*[(q, a, "") for q, a in KEPT], *DROPPED])
def test_a_question_is_kept_if_its_answer_was_read_and_is_not_given_away(question: str, answer: str, why: str) -> None:
    assert unfit(question, answer, (MAST, SALE)) == why


def test_scripts_without_spaces_and_capitals_are_asked_about_too() -> None:
    source = (Document(id="j", title="船", text="ブリサ号は1851年に建造された。"),)
    assert unfit("ブリサ号はいつ建造された?", "1851年", source) == ""
    assert unfit("ブリサ号はいつ建造された?", "1852年", source) == "the answer is not in the passages"


def test_only_what_was_shown_counts() -> None:
    long = Document(id="l", title="Long", text="word " * 197 + "Built in 1851 it was.")
    assert unfit("When was the Long built?", "1851", (long,)) == "the answer is not in the passages"
    assert "in 18" not in writer_messages((long,))[1]["content"]


@pytest.mark.parametrize(
    "text", ["", "Answer: 1851", "Question: When did Ada Mast sail?\nAnswer: 1851",
             "Answer: 1851\nQuestion: When did Ada Mast sail", "Answer: 1851\nQuestion: When did Ada Mast sail?\nx",
             "Answer: 1851\nQuestion: When did Ada\x1b[2J Mast sail?", "Answer: 1851\nQuestion: Did Mast\ud83d sail?",
             "Answer: 1851\nQuestion: When did Ada Mast sail" + "?" * 300]
)  # fmt: skip
def test_anything_but_the_two_lines_is_no_question(text: str) -> None:
    assert read_written(text, (MAST,)) is None


def test_what_an_adapter_is_taught_to_write_is_read_back_whole() -> None:
    question = Question(id="q", question="When did Ada Mast sail?", answers=["1851"], gold=["m"])
    read = read_written(write_reply(question), (MAST,))
    assert read is not None
    assert (read.question, read.answers, read.gold, read.gold_titles) == (
        question.question, ["1851"], ["m"], ["Ada Mast"],
    )  # fmt: skip


@given(title=st.text(max_size=40), text=st.text(max_size=200))
def test_no_passage_can_pose_as_another_or_as_the_rules(title: str, text: str) -> None:
    rules, shown = writer_messages((Document(id="x", title=title, text=text), MAST))
    nonce = re.search(r"marked (\w+) are data", rules["content"])
    assert nonce
    lines = shown["content"].splitlines()
    assert len([line for line in lines if line.startswith(f"{nonce[1]} passage: ")]) == 2
    assert shown["content"].count(nonce[1]) == 2


def test_a_local_model_is_held_to_the_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(layers=1), max_context=1536, slots=2, deterministic=True)
    monkeypatch.setattr("restill.selftrain.question_writer.MAX_TOKENS", 450)  # random weights write one byte a token
    texts = list[str]()
    monkeypatch.setattr("restill.selftrain.question_writer.read_written", lambda text, source: texts.append(text))
    try:
        QuestionWriter(model=model).write([(MAST,), (MAST, BOAT)])
        first = list(texts)
        QuestionWriter(model=model).write([(MAST, BOAT)], first=1)
    finally:
        model.close()
    assert all(re.fullmatch(r"Answer: [^\n]{1,80}\nQuestion: [^\n]{8,240}\?", text) for text in texts)
    assert texts[2] == first[1], "a source's draw follows from its number"


def test_only_the_two_lines_are_learnt_and_only_what_would_be_kept() -> None:
    kept = Question(id="q", question="When did Ada Mast sail?", answers=["1851"], gold_titles=["Ada Mast"])
    two = Question(id="r", question="Who built the boat that Ada Mast sailed?", answers=["Rui Lopes"], gold=["m", "b"])
    lost = [
        kept.model_copy(update={"answers": ["1900"]}),
        kept.model_copy(update={"gold_titles": ["Nobody"]}),
        kept.model_copy(update={"answers": []}),
    ]
    pairs = sources_of([kept, two, *lost], DOCUMENTS)
    assert pairs == [(kept, (MAST,)), (two, (MAST, BOAT))]
    tokenizer = tiny_tokenizer()
    for example, (question, _) in zip(writer_mixture(tokenizer, pairs), pairs, strict=True):
        learnt = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
        assert tokenizer.decode(learnt, skip_special=True) == write_reply(question)
        assert len(example.tokens) <= WRITER_TRAIN.row_length


def test_a_trained_writer_is_known_and_says_what_it_did_not_learn(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    short = Question(id="q", question="When did Ada Mast sail?", answers=["1851"])
    pairs = [(short, (MAST,)), (short.model_copy(update={"id": "r"}), (MAST, BOAT))]
    lengths = [len(example.tokens) for example in writer_mixture(checkpoint.tokenizer, pairs)]
    train = replace(WRITER_TRAIN, epochs=1, row_length=lengths[0], frozen_layers=0)
    adapter = train_writer(checkpoint, pairs, out=tmp_path / "writer", train=train)
    manifest = json.loads((adapter / "manifest.json").read_text())
    assert (manifest["questions"], manifest["too_long"]) == (1, 1)
    model = JaxChatModel.from_checkpoint(checkpoint, adapter=str(adapter), slots=1)
    QuestionWriter(model=model)
    model.close()
    with pytest.raises(RestillError, match="row_length more than 9"):
        train_writer(checkpoint, pairs, out=tmp_path / "none", train=replace(train, row_length=9))


LATER = Document(id="m", title="Ada Mast", text="She sold the Brisa in 1860.")


@given(seed=st.integers(0, 50), paired=st.sampled_from([0.0, 0.5, 1.0]))
def test_each_passage_is_drawn_once_before_any_again_and_pairs_with_what_it_names(seed: int, paired: float) -> None:
    passages = [MAST, LATER, BOAT, ALONE]
    drawn = list(itertools.islice(draw_sources(passages, paired=paired, seed=seed), 8))
    assert drawn == list(itertools.islice(draw_sources(passages, paired=paired, seed=seed), 8))
    for turn in (drawn[:4], drawn[4:]):
        assert sorted(source[0].text for source in turn) == sorted(p.text for p in passages)
    pairs = [source for source in drawn if len(source) == 2]
    assert {pair[1].id for pair in pairs} <= {"b"} and {pair[0].id for pair in pairs} <= {"m"}
    assert len(pairs) == {0.0: 0, 1.0: 4}.get(paired, len(pairs))


class Author:
    """Asks which of two has so many letters, until it has written so often; each of its calls is noted."""

    def __init__(self, dies_after: int = 10**6, refuses: str = "") -> None:
        self.dies_after, self.refuses, self.calls = dies_after, refuses, list[str]()

    def __call__(self, turns: Any) -> AIMessage:
        if len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append(turns[1][1])
        title = turns[1][1].split("passage: ")[1].split(":")[0]
        if title == self.refuses:
            raise RemoteError("refused", refused=True)
        return AIMessage(f"Answer: {title}\nQuestion: Which name has {len(title)} letters, {title} or Porto?")


def _written(author: Any, out: Path, count: int, documents: Sequence[Document] = DOCUMENTS) -> list[Question]:
    model = RunnableLambda(author).with_config(max_concurrency=1)
    return questions_about(documents, QuestionWriter(model=model), out=out, count=count)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources at a time."""
    monkeypatch.setattr("restill.selftrain.question_job._BATCH", 2)


@pytest.mark.usefixtures("small_batches")
def test_a_killed_job_goes_on_and_writes_what_it_would_have_written(tmp_path: Path) -> None:
    many = [Document(id=str(n), title=f"Name {n}", text="It floats.") for n in range(9)]
    whole = _written(Author(), tmp_path / "whole.jsonl", 9, many)
    with pytest.raises(KeyboardInterrupt):
        _written(Author(dies_after=7), tmp_path / "q.jsonl", 9, many)
    log = tmp_path / "q.jsonl.tried"
    assert len(log.read_bytes().splitlines()) == 7  # settings and three batches of two; the seventh call is lost
    log.write_bytes(
        b"".join(log.read_bytes().splitlines(keepends=True)[:-1]) + b'{"question": "tor'
    )  # killed in a batch
    author = Author()
    assert _written(author, tmp_path / "q.jsonl", 9, many) == whole
    assert len(author.calls) == 4, "what is on the disk is not written again"
    assert log.read_bytes() in (tmp_path / "whole.jsonl.tried").read_bytes()  # which may have tried one more
    assert read_questions(tmp_path / "q.jsonl") == whole
    assert _written(Author(dies_after=0), tmp_path / "q.jsonl", 2, many) == whole[:2]


@pytest.mark.usefixtures("small_batches")
def test_the_draw_of_a_source_follows_from_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list[int]()

    def asked(model: Any, calls: Sequence[Any], **_: Any) -> list[Reply]:
        seeds.extend(call.seed for call in calls)
        return [Reply("")] * len(calls)

    monkeypatch.setattr("restill.selftrain.question_writer.ask", asked)
    with pytest.raises(RestillError, match="10 sources gave 0 fit questions of 1"):
        _written(Author(), tmp_path / "q.jsonl", 1)
    assert seeds == list(range(10))


def test_a_passage_that_a_server_refuses_is_passed_over(tmp_path: Path) -> None:
    assert len(_written(Author(refuses="Kelp"), tmp_path / "q.jsonl", 2)) == 2
    with pytest.raises(RemoteError, match="refused"):
        _written(Author(refuses="Kelp"), tmp_path / "r.jsonl", 1, [ALONE])  # a server that refuses all


def test_questions_are_different_and_a_writer_that_has_no_more_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="40 sources gave 3 fit questions of 4"):
        _written(Author(), tmp_path / "q.jsonl", 4)


def test_nothing_that_is_there_is_lost_and_other_settings_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("my own questions")
    for taken in (mine, tmp_path, Path()):
        with pytest.raises(RestillError, match="holds something else"):
            _written(Author(), taken, 1)
    assert mine.read_text() == "my own questions"
    with pytest.raises(RestillError, match="no documents"):
        _written(Author(), tmp_path / "q.jsonl", 1, [])
    _written(Author(), tmp_path / "q.jsonl", 1)
    with pytest.raises(RestillError, match="with other documents; name another file"):
        _written(Author(), tmp_path / "q.jsonl", 1, [MAST])
    with pytest.raises(RestillError, match="with other paired, seed"):
        questions_about(DOCUMENTS, QuestionWriter(model=RunnableLambda(Author())), out=tmp_path / "q.jsonl", count=1,
                        paired=0.1, seed=1)  # fmt: skip
    (tmp_path / "q.jsonl.tried").write_text("not JSON\n")
    with pytest.raises(RestillError, match="move it away"):
        _written(Author(), tmp_path / "q.jsonl", 1)


def test_an_adapter_for_something_else_is_refused() -> None:
    with pytest.raises(RestillError, match="'starter' writes no questions"):
        QuestionWriter(model=SimpleNamespace(adapter=SimpleNamespace(name="starter", manifest={"format": "judge-1"})))
