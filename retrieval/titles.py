"""Where a text names documents of the collection: every title looked up at every word, in one pass."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")
_BRACKETS = re.compile(r"\s*\([^()]*\)\s*$")

MAX_NAMESAKES = 10
"""A name that more documents bear says nothing about which is meant, and is not looked for."""

MAX_LOWER = 0.3
"""A one-word name is a common word if more than this share of the texts with the word have it in lower case."""

_MIN_LETTERS = 3
"""Shorter one-word names are more often something else."""


def words(text: str) -> list[str]:
    """The words of ``text`` without accents, case kept."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text)


def bare(title: str) -> str:
    """The title without a bracketed disambiguation at its end: ``Ed Wood (film)`` is written ``Ed Wood``."""
    return _BRACKETS.sub("", title)


class TitleFinder:
    """Finds titles of documents in texts: whole words, the longest title first, no accents.

    A title is looked for as ``bare`` writes it; documents with the same bare title are all meant. The words that a
    title capitalises must be capitalised in the text too, unless the text has no capitals at all. One-word titles must
    be capitalised, and must not be numbers or common words (see ``MAX_LOWER``), for which the texts are needed.

    The cost of a text is one dictionary look-up a word, and one for each length of the titles that start with it.

    Args:
        titles: of the documents, by number; empty ones are never found.
        texts: of the documents; read once.
    """

    def __init__(self, titles: Sequence[str], texts: Iterable[str] = ()) -> None:
        self._titles: dict[tuple[str, ...], list[int]] = {}
        self._capitals: dict[tuple[str, ...], tuple[bool, ...]] = {}
        for number, title in enumerate(titles):
            spelt = words(bare(title)) or words(title)
            if not spelt:
                continue
            name = tuple(word.lower() for word in spelt)
            self._titles.setdefault(name, []).append(number)
            capitals = tuple(word[0].isupper() for word in spelt)
            known = self._capitals.get(name, capitals)
            self._capitals[name] = tuple(a and b for a, b in zip(known, capitals, strict=True))
        # What is looked for in texts; any title can be looked up.
        self._documents = {name: several for name, several in self._titles.items() if len(several) <= MAX_NAMESAKES}
        self._drop_common_words(texts)
        lengths: dict[str, set[int]] = {}
        for name in self._documents:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(several, reverse=True) for first, several in lengths.items()}

    def find(self, text: str) -> dict[int, int]:
        """The documents whose title ``text`` names, in order of the first mention, each with its number of namesakes.

        The number is 1 where only one document has the title.
        """
        spelt = words(text)
        any_case = text == text.lower()
        lower = [word.lower() for word in spelt]
        found: dict[int, int] = {}
        at = 0
        while at < len(spelt):
            step = 1
            for length in self._lengths.get(lower[at], ()):
                name = tuple(lower[at : at + length])
                documents = self._documents.get(name)
                if documents and (any_case or self._spelt_alike(name, spelt[at : at + length])):
                    found.update((document, len(documents)) for document in documents if document not in found)
                    step = length
                    break
            at += step
        return found

    def documents(self, title: str) -> list[int]:
        """All documents with this title, brackets, case and accents apart, also if texts are not searched for it."""
        return list(self._titles.get(tuple(word.lower() for word in words(bare(title)) or words(title)), ()))

    def _spelt_alike(self, name: tuple[str, ...], spelt: list[str]) -> bool:
        capitals = self._capitals[name]
        if len(name) == 1 or any(capitals[1:]):  # a name, not a phrase that merely starts with a capital
            return all(not needed or word[0].isupper() for needed, word in zip(capitals, spelt, strict=True))
        return True

    def _drop_common_words(self, texts: Iterable[str]) -> None:
        single = {name[0] for name in self._documents if len(name) == 1}
        total: Counter[str] = Counter()
        lowered: Counter[str] = Counter()
        for text in texts:
            here = set(words(text))
            in_lower = single & here
            lowered.update(in_lower)
            total.update(in_lower | single.intersection(word.lower() for word in here if not word.islower()))
        for word in single:
            has_case = word != word.upper()  # numbers and many scripts have none
            common = has_case and lowered[word] > MAX_LOWER * total[word]
            if common or word.isdigit() or len(word) < _MIN_LETTERS:
                del self._documents[(word,)]
