"""Real questions over real documents, brought together: HotpotQA, MuSiQue, SQuAD and the questions of IRCoT."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from restill import read_questions
from restill.agents.question import Question
from restill.retrieval.load import load
from restill.retrieval.types import Document
from restill.selftrain.expert import told_apart

_PARAGRAPH = re.compile(r"^Wikipedia Title: ([^\n]+)\n(.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_ASKED = re.compile(r"^Q: ([^\n]+)\nA: ([^\n]+?)\s*So the answer is: ([^\n]+?)\.?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """Documents, whose ids no other part has, and labelled questions about them."""

    documents: list[Document]
    questions: list[Question]


def part(name: str, documents: Iterable[Document], questions: Iterable[Question]) -> Part:
    """Questions with gold titles, so that an expert can look them up, and ids apart from other parts'."""
    documents = [d.model_copy(update={"title": d.title.replace("_", " ")}) for d in documents]
    titles = {d.id: d.title for d in documents}
    asked = [
        q.model_copy(
            update={
                "gold": [f"{name}/{d}" for d in q.gold],
                "gold_titles": q.gold_titles or list(dict.fromkeys(titles[d] for d in q.gold)),
            }
        )
        for q in questions
    ]
    return Part([d.model_copy(update={"id": f"{name}/{d.id}"}) for d in documents], asked)


def read_part(questions: Path, corpus: Path) -> Part:
    """A file of questions over a file of documents."""
    return part(f"{questions.parent.name}/{questions.stem}", load(corpus).documents, read_questions(questions))


def read_demonstrations(folder: Path) -> Part:
    """IRCoT's demonstrations (Trivedi et al. 2212.10509): a question's gold titles are those its rationale names."""
    documents: dict[str, Document] = {}
    questions = list[Question]()
    for file in sorted(folder.glob("*.txt")):
        for number, block in enumerate(file.read_text().split("# METADATA: ")[1:]):
            asked = _ASKED.search(block)
            if asked is None:
                continue
            question, rationale, answer = asked.groups()
            shown = _PARAGRAPH.findall(block[: asked.start()])
            for title, text in shown:
                key = f"{len(documents)}"
                documents.setdefault(f"{title}: {text}", Document(id=key, title=title, text=" ".join(text.split())))
            if named := _named(dict.fromkeys(title for title, _ in shown), rationale.lower()):
                name = f"{file.stem}-{number}"
                questions.append(Question(id=name, question=question, answers=[answer], gold_titles=named))
    return part("ircot", documents.values(), questions)


def read_parts(data: Path) -> list[Part]:
    """HotpotQA's and MuSiQue's training questions, SQuAD's, and IRCoT's demonstrations."""
    sets = ("hotpotqa/train100", "musique/train100", "squad/dev")
    parts = [read_part(data / f"{name}.jsonl", (data / name).parent / "corpus.jsonl") for name in sets]
    return [*parts, read_demonstrations(data / "ircot")]


def some(questions: list[Question], most: int) -> list[Question]:
    """So many of them, always the same."""
    return random.Random("restill real questions").sample(questions, min(most, len(questions)))


def _named(titles: Iterable[str], text: str) -> list[str]:
    """Titles that a text in lower case names: whole, else by what all but their parentheses say."""
    titles = list(titles)
    whole = [t for t in titles if t.lower() in text]
    known = {told_apart(t) for t in whole}
    short = {t: told_apart(t) for t in titles if t not in whole}
    return whole + [t for t, name in short.items() if name not in known and name.lower() in text]
