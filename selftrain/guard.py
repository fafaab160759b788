"""What is judged, and what of it can be refused by rules alone: no model is asked where there is nothing to weigh."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..agents.scores import normalise
from ..models.errors import RestillError

_HERE = "\0"  # stands for a reference where an answer names one
_PERHAPS = r"(?:(?:either|maybe|perhaps|possibly|probably|rather|else|(?:it|that) (?:is|was|(?:could|may|might) be)) )*"
_OR = r"(?:or|and/or|versus|vs\.?)"
_FIRST = rf"{_HERE}['\"*)]*,? {_OR} (?!(?:so|more|less|about)\b)"
_SECOND = rf"(?<!more )\b{_OR},? {_PERHAPS}(?:the )?['\"*(]*{_HERE}"
_JOINED = re.compile(f"{_FIRST}|{_SECOND}")
_ITEMS = re.compile(r"\n|;|\||\s/\s")
_GRADING = re.compile(r"\breference\b(?! (?:to|for|in|book|work|point|frame|library)\b)|\bverdict\s*:")
_DOUBT = re.compile(
    r"\b(?:although|though|but|however|yet|unless|while)\b[^.;]*"
    r"\b(?:seems?|appears?|may|might|could|perhaps|maybe|suggests?|otherwise|not (?:sure|certain))\b"
)
_OPENING = frozenset(
    "answer answers be believe final guess here i is it my question reply so that think to was would".split()
)
_MARK = re.compile(r"^\s*(?:\(?\d{1,2}[.)]\s+|[-*•]\s+)|\[\d+\]")
MOST_WORDS = 6
"""Of a candidate in a list; longer items are taken for explanations."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer to judge; it is right when it implies any of the ``references``."""

    question: str
    answer: str | None
    references: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(reference.strip() for reference in self.references):
            raise RestillError(f"there is no reference answer to {self.question!r:.80}; give at least one")


def guard(case: Case) -> str:
    """Why no model need be asked: "empty", "single character", "question", "grading", "doubt" or "candidates"; else "".

    An answer with no letter or digit is empty, and so is one of nothing but words to begin an answer with; one with a
    single letter or digit is a single character (unless a reference is that short too). The question is what says its
    words and no others, most of them, and no reference. Grading is what speaks of a reference or gives a verdict, where
    question and references do not: nobody who answers knows of them. Doubt is what takes back what it says ("but",
    "although", and then "seems", "may" and their like), where the question does not. Candidates are what joins a
    reference to something else by "or", or lists it with at least two others.
    """
    said = normalise(case.answer or "")
    signs = sum(c.isalnum() for c in said)
    if not signs or (set(said.split()) <= _OPENING and said not in map(normalise, case.references)):
        return "empty"
    if signs == 1 and said not in map(normalise, case.references):
        return "single character"
    if _restates(case, said):
        return "question"
    if _grades(case):
        return "grading"
    if _DOUBT.search((case.answer or "").casefold()) and not _DOUBT.search(case.question.casefold()):
        return "doubt"
    return "candidates" if _lists(case) else ""


def _restates(case: Case, said: str) -> bool:
    asked = normalise(case.question)
    if asked and not said.replace(asked, "").strip():
        return True
    words, known = set(said.split()), set(asked.split())
    named = any(f" {reference} " in f" {said} " for reference in map(normalise, case.references) if reference)
    return not named and words <= known and 2 * len(words) > len(known)


def _grades(case: Case) -> bool:
    there = " ".join([case.question, *case.references]).casefold()
    return any(found[0].rstrip(" :") not in there for found in _GRADING.finditer((case.answer or "").casefold()))


def _lists(case: Case) -> bool:
    text = (case.answer or "").casefold().replace(case.question.casefold(), " ").replace(_HERE, " ")
    for reference in sorted({r.strip().casefold() for r in case.references if r.strip()}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(reference)}(?!\w)", _HERE, text)
    if _HERE not in text:
        return False
    asks_which = " or " in f" {normalise(case.question)} "
    if not asks_which and _JOINED.search(re.sub(r"\s+", " ", text)):
        return True
    items = [_MARK.sub("", item).strip(" \t.,'\"*") for item in _ITEMS.split(text)]
    others = [item for item in items if any(map(str.isalnum, item)) and _HERE not in item]
    return _HERE in items and len(others) > 1 and all(len(item.split()) <= MOST_WORDS for item in others)
