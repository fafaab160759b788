"""The World: a fictional closed world with documents, and questions whose answers are known exactly.

Everything in it is invented, so nothing about it was learnt before; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agents.question import Question, read_questions, write_questions
from ..models.errors import RestillError
from ..retrieval.types import Document
from .world_facts import Entity, Fact, build, describe
from .world_names import KINDS_OF_FIRM, NameMaker
from .world_questions import MOST_HOPS, Asked, split
from .world_relations import FIRM, RELATIONS, VALUES, YEAR, spoken
from .world_text import OCCUPATIONS, article

WORLD_VERSION = 1
"""Version of the files and of the generator: another one may give other bytes for the same seed."""

MOST_ENTITIES = 100_000
"""Where the search for a World large enough gives up."""

DEFAULT_HOPS: Mapping[int, float] = {1: 0.15, 2: 0.6, 3: 0.25}
"""Number of hops -> share of the questions."""


@dataclass(frozen=True)
class World:
    """A document collection about invented entities, and questions on it.

    Attributes:
        documents: one per entity, in random order.
        train, heldout: questions; the two share no text, no composition and no paraphrase family.
            ``metadata`` holds ``hops``, ``family``, ``chain`` (relations) and ``plan``, per hop: title of
            the ``entity``, ``relation``, ``query``, what it ``yields`` (title or value), and ``spoken``,
            ``spoken_yields``: the two as they stand in a sentence.
        facts: all that the documents say about relations.
        parameters: what the World was generated with.
    """

    documents: list[Document]
    train: list[Question]
    heldout: list[Question]
    facts: list[Fact]
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def generate(
        cls,
        *,
        entities: int = 200,
        seed: int = 0,
        train: int = 200,
        heldout: int = 100,
        hops: Mapping[int, float] = DEFAULT_HOPS,
        relations: Sequence[str] = tuple(RELATIONS),
    ) -> World:
        """Make a World.

        Args:
            entities: number of documents.
            seed: names, facts, wordings and questions follow from it.
            train, heldout: number of questions.
            hops: number of hops (1 to 4) -> share of the questions, of any sum.
            relations: those that questions ask for; the documents tell of all.

        Raises:
            RestillError: a number is out of range, or so many questions cannot be made about so few entities
                (the message says how many entities would do).
        """
        shares = _check(train, heldout, hops)
        if unknown := [name for name in relations if name not in RELATIONS]:
            raise RestillError(f"there is no relation {unknown[0]!r}; choose among {', '.join(RELATIONS)}")
        wanted = _quotas(train, shares), _quotas(heldout, shares)
        people = build(entities, seed)
        by_title = {entity.title: entity for entity in people}
        asked = split(by_title, seed, *wanted, relations)
        if (len(asked.train), len(asked.heldout)) != (train, heldout):
            enough = _enough(entities, seed, train, heldout, wanted, relations)
            raise RestillError(
                f"{train} training and {heldout} held-out questions cannot be made about entities={entities}"
                f"; use entities={enough} or ask for fewer questions"
            )
        rng = random.Random(f"restill-world text {seed}")
        documents = [
            Document(id=_slug(e.title), title=e.title, text=describe(e, rng), metadata={"kind": e.kind}) for e in people
        ]
        rng.shuffle(documents)
        return cls(
            documents=documents,
            train=[_question(by_title, a, f"w{seed}-train-{i:04d}") for i, a in enumerate(asked.train)],
            heldout=[_question(by_title, a, f"w{seed}-heldout-{i:04d}") for i, a in enumerate(asked.heldout)],
            facts=[Fact(e.title, relation, o) for e in people for relation, o in e.facts.items()],
            parameters={
                "entities": entities,
                "seed": seed,
                "train": train,
                "heldout": heldout,
                "hops": {str(length): share for length, share in sorted(shares.items())},
                "relations": list(relations),
            },
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``corpus.jsonl``, ``train.jsonl``, ``heldout.jsonl``, ``world.json``; returns the folder."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "corpus.jsonl").open("w", encoding="utf-8") as out:
            for document in self.documents:
                out.write(json.dumps(document.model_dump(by_alias=True), ensure_ascii=False) + "\n")
        write_questions(folder / "train.jsonl", self.train)
        write_questions(folder / "heldout.jsonl", self.heldout)
        world = {"format": "restill-world", "version": WORLD_VERSION, "parameters": self.parameters}
        text = json.dumps({**world, "facts": [list(fact) for fact in self.facts]}, ensure_ascii=False)
        (folder / "world.json").write_text(text + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> World:
        """Read a folder written by :meth:`save`.

        Raises:
            RestillError: a file is missing, or ``world.json`` is no World of this version.
        """
        folder = Path(path)
        for name in ("world.json", "corpus.jsonl", "train.jsonl", "heldout.jsonl"):
            if not (folder / name).is_file():
                raise RestillError(f"{str(folder)!r} holds no World: {name} is missing; write one with World.save")
        try:
            world = json.loads((folder / "world.json").read_text(encoding="utf-8"))
            if (world["format"], world["version"]) != ("restill-world", WORLD_VERSION):
                raise RestillError(
                    f"{str(folder / 'world.json')!r} has version {world['version']!r}, this restill reads "
                    f"{WORLD_VERSION}; generate the World again"
                )
            facts = [Fact(*fact) for fact in world["facts"]]
            lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
            documents = [Document.model_validate(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise RestillError(f"{str(folder)!r} is no readable World ({error}); generate it again") from None
        questions = {
            name: read_questions(folder / name) if (folder / name).stat().st_size else []
            for name in ("train.jsonl", "heldout.jsonl")
        }
        return cls(documents, questions["train.jsonl"], questions["heldout.jsonl"], facts, world["parameters"])

    def swap(self, question: Question, seed: int = 0) -> tuple[list[Document], str]:
        """The documents of a world in which another answer is true, and that answer.

        An entity is given a fresh invented name everywhere it occurs; a year or an occupation is changed in
        the one document that tells it. An agent that reads changes its answer, one that remembers does not.

        Raises:
            RestillError: the question is not of this World.
        """
        plan = question.metadata.get("plan") or [{}]
        answer = str(plan[-1].get("yields"))
        relation = plan[-1].get("relation")
        kinds = {document.title: document.metadata.get("kind") for document in self.documents}
        if plan[0].get("entity") not in kinds or relation not in RELATIONS:
            raise RestillError(f"question {question.id!r} is not about this World; swap takes its own questions")
        rng = random.Random(f"restill-world swap {self.parameters.get('seed')} {question.id} {seed}")
        kind = RELATIONS[relation].object
        if kind in VALUES:
            fresh = _other_value(kind, answer, rng)
            only = {question.gold[-1]}
        else:
            trade = KINDS_OF_FIRM.index(answer.split()[-1]) if kind == FIRM else 0  # a press stays a press
            fresh = NameMaker(rng, kinds).title(kind, trade)
            only = {document.id for document in self.documents}
        pattern = re.compile(rf"\b{re.escape(answer)}\b")
        return [
            _replaced(document, pattern, fresh) if document.id in only else document for document in self.documents
        ], fresh


def _replaced(document: Document, pattern: re.Pattern[str], fresh: str) -> Document:
    title = pattern.sub(fresh, document.title)
    changed = {"title": title, "text": pattern.sub(fresh, document.text)}
    return document.model_copy(update=changed | ({"id": _slug(title)} if title != document.title else {}))


def _other_value(kind: str, value: str, rng: random.Random) -> str:
    if kind == YEAR:
        return str(int(value) + rng.choice([step for step in range(-15, 16) if abs(step) > 2]))
    return rng.choice([o for o in OCCUPATIONS if o != value and article(o) == article(value)])


def _check(train: int, heldout: int, hops: Mapping[int, float]) -> dict[int, float]:
    if train < 0 or heldout < 0:
        raise RestillError(f"train={train}, heldout={heldout}: a number of questions cannot be negative")
    shares = {int(length): float(share) for length, share in hops.items() if share}
    if not shares or min(shares.values()) < 0 or not set(shares) <= set(range(1, MOST_HOPS + 1)):
        raise RestillError(f"hops={dict(hops)} must give shares above 0 to numbers of hops from 1 to {MOST_HOPS}")
    return shares


def _quotas(total: int, shares: Mapping[int, float]) -> dict[int, int]:
    """Whole numbers in the given proportions that add up to ``total`` (largest remainder)."""
    exact = {length: total * share / sum(shares.values()) for length, share in sorted(shares.items())}
    quotas = {length: int(value) for length, value in exact.items()}
    for length in sorted(exact, key=lambda k: quotas[k] - exact[k])[: total - sum(quotas.values())]:
        quotas[length] += 1
    return quotas


def _enough(
    entities: int,
    seed: int,
    train: int,
    heldout: int,
    wanted: tuple[dict[int, int], dict[int, int]],
    relations: Sequence[str],
) -> int:
    """The first size, growing by a quarter, that gives the wanted questions."""
    while entities < MOST_ENTITIES:
        entities = -(-entities * 5 // 4 // 10) * 10
        made = split({e.title: e for e in build(entities, seed)}, seed, *wanted, relations)
        if (len(made.train), len(made.heldout)) == (train, heldout):
            return entities
    raise RestillError(
        f"{train} + {heldout} questions cannot be made of relations={list(relations)}; name more of them"
    )


def _question(entities: Mapping[str, Entity], asked: Asked, name: str) -> Question:
    path, relations = asked.instance.path, asked.instance.relations
    plan = []
    for title, target, relation in zip(path, path[1:], relations, strict=False):
        subject = spoken(entities[title].kind, title)
        kind = RELATIONS[relation].object
        plan.append(
            {
                "entity": title,
                "relation": relation,
                "query": RELATIONS[relation].query(subject),
                "yields": target,
                "spoken": subject,
                "spoken_yields": target if kind in VALUES else spoken(kind, target),
            }
        )
    return Question(
        id=name,
        question=asked.text,
        answers=[path[-1]],
        gold=[_slug(title) for title in path[:-1]],
        metadata={"hops": len(relations), "family": asked.family, "chain": list(relations), "plan": plan},
    )


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")
