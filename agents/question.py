"""Questions: what is asked, and, where they exist, the answers and the documents that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..models.errors import RestillError
from ..models.text import well_formed
from .shards import write_atomically

_KNOWN = frozenset({"id", "question", "answers", "gold", "gold_titles", "metadata"})


class Question(BaseModel):
    """One question.

    Also reads the spellings of public data sets: ``_id``; ``text`` (BEIR) for the question; ``answer`` with
    ``answer_aliases``; ``gold`` as one string; unknown keys go to ``metadata``. Without an id, one is made from
    the text.

    Attributes:
        answers: accepted answers; empty when there is no label.
        gold: ids of the documents that hold the answer.
        gold_titles: titles of such documents, to be resolved by an index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    question: str = Field(min_length=1)
    answers: list[str] = []
    gold: list[str] = []
    gold_titles: list[str] = []
    metadata: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_other_spellings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        row = dict(data)
        if "question" not in row and "text" in row:
            row["question"] = row.pop("text")
        text = row.get("question")
        if "_id" in row:
            row.setdefault("id", row.pop("_id"))
        if row.get("id") is None and isinstance(text, str):
            row["id"] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
        row["id"] = str(row["id"]) if isinstance(row.get("id"), int) else row.get("id")
        if isinstance(row["id"], str):  # half a surrogate pair could be written to no log
            row["id"] = well_formed(row["id"])
        answers = _as_list(row.get("answers"))
        for spelling in ("answer", "answer_aliases"):
            answers += [a for a in _as_list(row.pop(spelling, None)) if a not in answers]
        row["answers"] = answers
        row["gold"] = _as_list(row.get("gold"))
        row["gold_titles"] = _as_list(row.get("gold_titles"))
        extra = {name: row.pop(name) for name in list(row) if name not in _KNOWN}
        known = row.get("metadata") or {}
        if extra and isinstance(known, dict):
            row["metadata"] = {**known, **extra}
        return row

    @property
    def key(self) -> str:
        """The question's name in every run: 16 hex digits of a SHA-256 over text and id."""
        return hashlib.sha256(f"{self.question}\x1f{self.id}".encode("utf-8", "replace")).hexdigest()[:16]

    def to_json(self) -> str:
        """One line of JSON, empty fields left out; half a surrogate pair, which UTF-8 cannot hold, stays escaped."""
        row = self.model_dump(exclude_defaults=True)
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()

    def without_labels(self) -> Question:
        """The same question with nothing but id and text, for self-training that claims to need no labels."""
        return Question(id=self.id, question=self.question)

    @classmethod
    def of(cls, value: Any) -> Question:
        """Read a string, a mapping with ``question`` (or ``input``), or a ``Question``."""
        if isinstance(value, Question):
            return value
        if isinstance(value, dict) and "question" not in value and "input" in value:
            value = {"question": value["input"]}
        elif isinstance(value, dict):  # a graph's state may hold more than a question
            value = {k: v for k, v in value.items() if k in _KNOWN | {"_id", "answer", "answer_aliases"}}
        elif isinstance(value, str):
            value = {"question": value}
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise RestillError(f"not a question: {value!r:.80} ({_first(error)}); give a non-empty string") from None


def read_questions(path: str | os.PathLike[str], limit: int | None = None) -> list[Question]:
    """Read a JSONL file of questions, at most ``limit`` of them.

    Raises:
        RestillError: the file is missing or empty, or a line (which is named) is no question.
    """
    file = Path(path)
    if not file.is_file():
        raise RestillError(f"no question file at {str(path)!r}; give a JSONL file with one question a line")
    questions: list[Question] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(questions) >= limit:
                break
            if not line.strip():
                continue
            try:
                questions.append(Question.model_validate(json.loads(line.decode("utf-8-sig"))))
            except ValidationError as error:
                raise RestillError(f"{path}, line {number} is no question: {_first(error)}") from None
            except UnicodeDecodeError as error:
                raise RestillError(f"{path}, line {number} is not UTF-8 ({error.reason}); save it as that") from None
            except (ValueError, RecursionError) as error:
                raise RestillError(f"{path}, line {number} is not JSON: {error}") from None
    if not questions and limit != 0:
        raise RestillError(f"{str(path)!r} holds no questions; write one JSON object a line, with the key 'question'")
    return questions


def write_questions(path: str | os.PathLike[str], questions: Iterable[Question]) -> None:
    """Write questions as JSONL, one object a line, empty fields left out; the file is there whole or not at all.

    Raises:
        RestillError: it cannot be written.
    """
    write_atomically(Path(path), "".join(f"{question.to_json()}\n" for question in questions))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v for v in values]


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])
