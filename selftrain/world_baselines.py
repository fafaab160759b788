"""What a World gives away to those who do not follow the chain: baselines that an agent must beat by far.

Each is a generous upper bound, so that a low score proves the World cannot be gamed that way.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

from ..agents.question import Question
from ..retrieval.types import Document
from .world import World

Search = Callable[[Sequence[str]], Sequence[Document]]
"""Queries to the best document of each."""


def no_search(world: World) -> dict[str, float]:
    """Exact match on the held-out questions of always guessing the most common training answer.

    Most common among: all questions, those with the same chain, the same last relation, the same question
    word, the same starting entity. No document is read. Returns group name -> share of right guesses.
    """
    groups: dict[str, Callable[[Question], Hashable]] = {
        "all": lambda question: "",
        "chain": lambda question: tuple(question.metadata["chain"]),
        "last relation": lambda question: question.metadata["chain"][-1],
        "question word": lambda question: question.question.split()[0],
        "start": lambda question: question.metadata["plan"][0]["entity"],
    }
    scores = {}
    for name, group in groups.items():
        seen: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
        for question in world.train:
            seen[group(question)][question.answers[0]] += 1
        guesses = [max(seen[group(q)].items(), key=lambda kv: kv[1], default=("", 0))[0] for q in world.heldout]
        scores[name] = _share([guess in q.answers for guess, q in zip(guesses, world.heldout, strict=True)])
    return scores


def top_passage(world: World, search: Search | None = None) -> float:
    """Share of held-out questions whose answer stands anywhere in the best passage for the question.

    No pattern over that passage can score higher, however well it knows what is asked for.

    Args:
        search: finds the best document of each query; BM25 if None.
    """
    search = search or BM25(world.documents)
    best = search([question.question for question in world.heldout])
    return _share(
        [
            any(re.search(rf"\b{re.escape(answer)}\b", f"{document.title}: {document.text}") for answer in q.answers)
            for q, document in zip(world.heldout, best, strict=True)
        ]
    )


class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75) in memory, for small collections."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = list(documents)
        self._counts = [Counter(_words(f"{d.title} {d.text}")) for d in self._documents]
        self._average = sum(c.total() for c in self._counts) / max(1, len(self._counts))
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        for place, counts in enumerate(self._counts):
            for word in counts:
                self._holders[word].append(place)

    def __call__(self, queries: Sequence[str]) -> list[Document]:
        """The best document for each query; the earliest of equals."""
        return [self._documents[self._best(_words(query))] for query in queries]

    def _best(self, words: Sequence[str]) -> int:
        scores: defaultdict[int, float] = defaultdict(float)
        for word in words:
            places = self._holders.get(word, [])
            rarity = math.log(1 + (len(self._documents) - len(places) + 0.5) / (len(places) + 0.5))
            for place in places:
                counts = self._counts[place]
                times, length = counts[word], counts.total() / self._average
                scores[place] += rarity * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length))
        return min(scores, key=lambda place: (-scores[place], place), default=0)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0
