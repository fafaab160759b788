"""Training a question writer: labelled questions and the documents behind them in, a LoRA out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..agents.model import ChatTokenizer
from ..agents.question import Question
from .feedback_adapter import train_adapter
from .mixture import Example, Mixture
from .question_writer import WRITER_FORMAT, Source, unfit, write_reply, writer_messages
from .trainer import TrainConfig

if TYPE_CHECKING:
    from ..models.checkpoint.load import Checkpoint
    from ..retrieval.types import Document

WRITER_TRAIN = TrainConfig(lr=3e-3, epochs=2, rows=1, row_length=1024, frozen_layers=10)


def writer_mixture(tokenizer: ChatTokenizer, questions: Iterable[tuple[Question, Source]]) -> Mixture:
    """One example a question with an answer; weight on the two lines."""
    return Mixture.of(_example(tokenizer, question, source) for question, source in questions if question.answers)


def train_writer(
    checkpoint: Checkpoint,
    questions: Sequence[tuple[Question, Source]],
    *,
    out: str | Path,
    train: TrainConfig | None = None,
    progress: bool = False,
) -> Path:
    """Train an adapter on questions, each with what it was made from; serve it with ``QuestionWriter(model=...)``.

    Raises:
        RestillError: no labels, or ``out`` holds an adapter that was trained differently.
    """
    mixture = writer_mixture(checkpoint.tokenizer, questions)
    facts = {"questions": len(mixture), "train_question_hashes": sorted({q.key for q, _ in questions})}
    return train_adapter(
        checkpoint, mixture, out=out, format=WRITER_FORMAT, train=train or WRITER_TRAIN, manifest=facts,
        progress=progress,
    )  # fmt: skip


def sources_of(questions: Iterable[Question], documents: Iterable[Document]) -> list[tuple[Question, Source]]:
    """Labelled questions with their gold documents (by id, else by title), for :func:`train_writer`.

    Left out: questions without, and those of which the writer would not keep what it is taught.
    """
    documents = list(documents)
    by_id = {d.id: d for d in documents}
    by_title: dict[str, Document] = {}
    for document in documents:
        by_title.setdefault(document.title, document)
    found = list[tuple[Question, Source]]()
    for question in questions:
        source = tuple(by_id[key] for key in question.gold if key in by_id)
        source = source or tuple(by_title[title] for title in question.gold_titles if title in by_title)
        if source and question.answers and not unfit(question.question, question.answers[0], source):
            found.append((question, source))
    return found


def _example(tokenizer: ChatTokenizer, question: Question, source: Source) -> Example:
    prompt = tokenizer.chat(writer_messages(source))
    said = [*tokenizer.encode(write_reply(question)), tokenizer.eos_ids[0]]
    return Example(
        tokens=(*prompt, *said),
        weights=(*[0.0] * len(prompt), *[1.0] * len(said)),
        provenance={"question_key": question.key, "documents": len(source)},
    )
