"""Questions for a whole collection: what to write them from, and a job that goes on until there are enough."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..agents.model import identity, nameless
from ..agents.question import Question, write_questions
from ..agents.scores import normalise
from ..agents.shards import ShardWriter
from ..models.errors import RestillError
from ..retrieval.titles import TitleFinder
from .progress import Meter
from .question_writer import WRITER_FORMAT, QuestionWriter, Source

if TYPE_CHECKING:
    from ..retrieval.types import Document

MOST_TRIES = 10
"""Sources tried for each question wanted, before a writer is given up."""

_BATCH = 64
"""Sources in one call of the model, and lost at most when killed."""


def draw_sources(passages: Sequence[Document], *, paired: float = 0.5, seed: int = 0) -> Iterator[Source]:
    """What to write questions from, without end: every passage is drawn once before any is drawn again.

    Args:
        passages: documents, or parts of long ones, with the ids and titles of their documents.
        paired: the chance that a passage which names other documents by their titles stands before the first passage
            of one of those.

    Raises:
        RestillError: no passages.
    """
    if not passages:
        raise RestillError("there are no documents to write questions about")
    return _drawn(passages, paired, random.Random(f"restill-sources {seed}"))


def _drawn(passages: Sequence[Document], paired: float, rng: random.Random) -> Iterator[Source]:
    firsts: dict[str, Document] = {}
    for passage in passages:
        firsts.setdefault(passage.id, passage)
    leads = list(firsts.values())
    finder = TitleFinder([p.title for p in leads], (p.text for p in leads)) if paired else None
    while True:
        for passage in rng.sample(passages, len(passages)):
            named: list[Document] = []
            if finder is not None and rng.random() < paired:
                named = [leads[n] for n in finder.find(passage.text) if leads[n].id != passage.id]
            yield (passage, rng.choice(named)) if named else (passage,)


def questions_about(
    passages: Sequence[Document],
    writer: QuestionWriter,
    *,
    out: str | Path,
    count: int,
    paired: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> list[Question]:
    """Write ``count`` different questions about a collection.

    Args:
        out: the JSONL file of questions. Beside it ``<name>.tried`` holds the settings, then a line for each source
            tried: killed at any time, the same call goes on, and so does one with another ``count``.
        passages, paired, seed: see :func:`draw_sources`.

    Raises:
        RestillError: there is no passage; ``out`` is there and was not made by this; it was made from other passages,
            by another model or otherwise; or the writer's questions are hardly ever fit.
    """
    path, sources = Path(out), draw_sources(passages, paired=paired, seed=seed)
    tried = path.parent / f"{path.name}.tried"
    if path.is_dir() or (path.exists() and not tried.exists()):
        raise RestillError(f"{path} is there and holds something else; name another file for the questions")
    settings = {
        "format": WRITER_FORMAT, "documents": _hash(passages), "paired": paired, "seed": seed,
        "model": nameless(identity(writer.model)), "temperature": writer.temperature, "writer_seed": writer.seed,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    log = ShardWriter(tried)
    try:
        rows = _rows(tried, settings)
        if rows is None:
            log.write(json.dumps(settings).encode(), 0)
        found, done = dict[str, Question](), 0
        with Meter("questions", total=count, show=progress) as meter:
            for row in rows or []:
                done += 1
                _keep(found, row, count, meter, done)
            next(islice(sources, done, done), None)
            while len(found) < count:
                if (left := MOST_TRIES * count - done) <= 0:
                    raise RestillError(
                        f"{done} sources gave {len(found)} fit questions of {count}; use a larger model or an "
                        "adapter that writes questions (train_writer), or ask for fewer"
                    )
                batch = list(islice(sources, min(_BATCH, 2 * (count - len(found)), left)))
                for question in writer.write(batch, first=done):
                    log.write((b"null" if question is None else question.to_json().encode()), done)
                    done += 1
                    _keep(found, question, count, meter, done)
        questions = list(found.values())[:count]
        write_questions(path, questions)
    finally:
        log.close()
    return questions


def _keep(found: dict[str, Question], question: Question | None, count: int, meter: Meter, done: int) -> None:
    new = question is not None and found.setdefault(normalise(question.question), question) is question
    note = f"{100 * len(found) / done:.0f} % of {done} fit"
    if new and len(found) <= count:
        meter.advance(note)
    else:
        meter.note(note)


def _rows(tried: Path, settings: dict[str, Any]) -> list[Question | None] | None:
    """What was written before for each source; ``None`` if nothing was begun."""
    lines = tried.read_bytes().splitlines()
    if not lines:
        return None
    try:
        head, *rows = map(json.loads, lines)
        questions = [None if row is None else Question.model_validate(row) for row in rows]
    except (ValueError, ValidationError):
        raise RestillError(f"{tried} holds something else; move it away") from None
    if head != settings:
        other = [name for name in settings if not isinstance(head, dict) or head.get(name) != settings[name]]
        raise RestillError(f"{tried} was written with other {', '.join(other)}; name another file for the questions")
    return questions


def _hash(passages: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps([passage.id, passage.title, passage.text]).encode())
    return digest.hexdigest()
