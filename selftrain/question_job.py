"""Questions for a whole collection: what to write them from, and a job that goes on until there are enough."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agents.model import identity, nameless
from ..agents.question import Question, write_questions
from ..agents.scores import normalise
from ..agents.shards import ShardWriter
from ..models.errors import RestillError
from .files import hash_json
from .progress import Meter
from .question_writer import WRITER_FORMAT, QuestionWriter, Source

if TYPE_CHECKING:
    from ..retrieval.hops import DocumentGraph
    from ..retrieval.types import Document

MOST_TRIES = 10
"""Sources tried for each question wanted, before a writer is given up."""


def draw_sources(
    passages: Sequence[Document], *, graph: DocumentGraph | None = None, paired: float = 0.5, seed: int = 0
) -> Iterator[Source]:
    """What to write questions from, without end: every passage is drawn once before any is drawn again.

    Args:
        passages: those that may be drawn: documents, or parts of long ones, with the ids of their documents.
        graph: knows titles, for pairs: a passage, then the first of a document that it names. Without one there are no
            pairs.
        paired: the chance of a pair, for a passage that names a document.

    Raises:
        RestillError: no passages.
    """
    if not passages:
        raise RestillError("there are no documents to write questions about")
    rng = random.Random(f"restill-sources {seed}")
    firsts: dict[str, Document] = {}
    for passage in passages:
        firsts.setdefault(passage.id, passage)
    while True:
        for passage in rng.sample(passages, len(passages)):
            named = [] if graph is None or rng.random() >= paired else _named(graph, passage, firsts)
            yield (passage, rng.choice(named)) if named else (passage,)


def _named(graph: DocumentGraph, passage: Document, firsts: Mapping[str, Document]) -> list[Document]:
    ids = [graph.ids[number] for number in graph.finder.find(passage.text)]
    return [firsts[key] for key in ids if key in firsts and key != passage.id]


def questions_about(
    passages: Sequence[Document],
    writer: QuestionWriter,
    *,
    out: str | Path,
    count: int,
    graph: DocumentGraph | None = None,
    paired: float = 0.5,
    seed: int = 0,
    batch: int = 128,
    progress: bool = False,
) -> list[Question]:
    """Write ``count`` different questions about a collection.

    Args:
        out: the JSONL file of questions. Beside it ``<name>.tried`` holds the settings, then a line for each source
            tried: killed at any time, the same call goes on, and so does one with a larger ``count``.
        passages, graph, paired, seed: see :func:`draw_sources`.
        batch: sources in one call of the model, and lost at most when killed.

    Raises:
        RestillError: ``out`` was written from other documents, by another model or otherwise, or the writer's questions
            are hardly ever fit.
    """
    path = Path(out).with_name(Path(out).name + ".tried")
    sources = draw_sources(passages, graph=graph, paired=paired, seed=seed)
    settings = {
        "format": WRITER_FORMAT, "documents": hash_json([[d.id, d.title, d.text] for d in passages]),
        "paired": paired if graph else 0.0, "seed": seed, "model": nameless(identity(writer.model)),
        "temperature": writer.temperature, "writer_seed": writer.seed,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    file = ShardWriter(path)
    try:
        head, *rows = [json.loads(line) for line in path.read_bytes().splitlines()] or [None]
        if head is None:
            file.write(json.dumps(settings).encode(), 0)
        elif head != settings:
            other = [name for name in settings if not isinstance(head, dict) or head.get(name) != settings[name]]
            raise RestillError(f"{path} was written with other {', '.join(other)}; name another file with --out")
        found: dict[str, Question] = {}
        for row in rows:
            _keep(found, row)
        tried = len(rows)
        next(islice(sources, tried, tried), None)
        with Meter("questions", total=count, done=min(len(found), count), show=progress) as meter:
            while len(found) < count:
                if tried >= MOST_TRIES * count:
                    raise RestillError(
                        f"{tried} sources gave {len(found)} fit questions of {count}; train a writer (train_writer), "
                        "use a larger model, or ask for fewer"
                    )
                drawn = list(islice(sources, batch))
                for question in writer.write(drawn, first=tried):
                    row = None if question is None else question.model_dump(exclude_defaults=True)
                    file.write(json.dumps(row, ensure_ascii=False).encode(), tried)
                    tried += 1
                    if _keep(found, row) and len(found) <= count:
                        meter.advance(f"{100 * len(found) / tried:.0f} % fit")
    finally:
        file.close()
    questions = list(found.values())[:count]
    write_questions(out, questions)
    return questions


def _keep(found: dict[str, Question], row: Any) -> bool:
    """Whether a row holds a question that was not there yet."""
    if row is None:
        return False
    question = Question.model_validate(row)
    return found.setdefault(normalise(question.question), question) is question
