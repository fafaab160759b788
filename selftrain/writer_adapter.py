"""Training a question writer: labelled questions and the documents behind them in, a LoRA out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..agents.model import ChatTokenizer
from ..agents.question import Question
from ..models.errors import RestillError
from .feedback_adapter import train_adapter
from .mixture import Example, Mixture
from .question_writer import WRITER_FORMAT, Source, read_written, write_reply, writer_messages
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

    Questions whose passages are too long for a row of the training are left out; ``manifest.json`` says how many.

    Raises:
        RestillError: no labels, all are too long, or ``out`` holds an adapter that was trained differently.
    """
    train = train or WRITER_TRAIN
    mixture = writer_mixture(checkpoint.tokenizer, questions)
    fit = Mixture.of(example for example in mixture if len(example.tokens) <= train.row_length)
    if mixture and not fit:
        raise RestillError(f"all {len(mixture)} questions are longer than a row; give row_length more than "
                           f"{train.row_length}, or shorter documents")  # fmt: skip
    hashes = sorted({q.key for q, _ in questions})
    facts = {"questions": len(fit), "too_long": len(mixture) - len(fit), "train_question_hashes": hashes}
    return train_adapter(
        checkpoint, fit, out=out, format=WRITER_FORMAT, train=train, manifest=facts,
        progress=progress,
    )  # fmt: skip


def sources_of(questions: Iterable[Question], documents: Iterable[Document]) -> list[tuple[Question, Source]]:
    """Labelled questions with their gold documents (by id, else by title), for :func:`train_writer`.

    Left out: questions of which a gold document is missing or shares its title with others, and those that the writer
    would not be allowed to write.
    """
    by_id: dict[str, Document] = {}
    by_title: dict[str, list[Document]] = {}
    for document in documents:
        by_id[document.id] = document
        by_title.setdefault(document.title, []).append(document)
    found = list[tuple[Question, Source]]()
    for question in questions:
        named = [by_title.get(title, []) for title in question.gold_titles]
        gold = [[by_id[key]] if key in by_id else [] for key in question.gold] or named
        source = tuple(documents[0] for documents in gold if len(documents) == 1)
        whole = bool(source) and len(source) == len(gold)
        if whole and question.answers and read_written(write_reply(question), source) is not None:
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
