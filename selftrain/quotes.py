"""What an expert quotes before it answers, so that its answers are seen to be read: where to look is learnt with them.

A small model reads badly from few examples in which a bare answer follows three paragraphs. Here the words that lead to
the answer come first (as in chains of thought with evidence; IRCoT, arXiv 2212.10509, has whole sentences).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..agents.grammar import MAX_THOUGHT
from ..agents.question import Question
from ..agents.scores import normalise

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”)]*\s+(?=[\"“(]?[A-Z0-9])")
_MARKS = 3
"""Characters around a quote: two quotation marks and a space."""


def quoting_thought(question: Question, names: Sequence[str], passages: Sequence[tuple[str, str]]) -> str:
    """``"... built by Hallow Works" "Hallow Works was founded by Ada Brann" So the answer is Ada Brann.``

    The last quote ends with the answer. Before it stands one from another passage: up to where that names the last one,
    else its beginning. Where the answer is yes, no or a name of the question, the beginnings of two are quoted.

    Args:
        question: with its answer.
        names: what the gold documents are called.
        passages: (name, text) of the gold passages that were shown, in the order in which to read them.

    Returns:
        at most ``MAX_THOUGHT`` characters.
    """
    answer, end = question.answers[0], f"So the answer is {question.answers[0]}."
    room = MAX_THOUGHT - len(end)
    chosen = f" {normalise(answer)} " in f" {normalise(question.question)} "
    holding = [] if chosen else [(name, text, at) for name, text in passages for at in _ends(text, answer)]
    # A long collection says the same words in many places: the sentence most like the question is meant.
    last = max(holding, key=lambda h: _shared(question.question, _sentence(h[1], h[2])), default=None)
    others = {name: text for name, text in reversed(passages) if last is None or name != last[0]}
    first = list(others.items())[::-1][: 1 if last else 2]
    share = room // (len(first) + (last is not None)) if first else room
    quotes = list[str]()
    for name, text in first:
        named = [at for other in names if other != name for at in _ends(text, other)] if last else []
        quotes.append(_until(text, named[0], share - _MARKS) if named else _beginning(text, share - _MARKS))
    if last is not None:
        left = room - sum(len(quote) + _MARKS for quote in quotes)
        quotes.append(_until(last[1], last[2], left - _MARKS))
    return " ".join([*(f'"{quote}"' for quote in quotes if quote), end])[:MAX_THOUGHT]


def _ends(text: str, phrase: str) -> Iterator[int]:
    """Where the phrase ends in the text, as whole words, whatever the case."""
    if phrase:
        yield from (m.end() for m in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def _start(text: str, at: int) -> int:
    return max((m.end() for m in _SENTENCE_END.finditer(text) if m.end() < at), default=0)


def _sentence(text: str, at: int) -> str:
    after = _SENTENCE_END.search(text, at)
    return text[_start(text, at) : after.start() if after else len(text)]


def _shared(question: str, sentence: str) -> int:
    return len(set(normalise(question).split()) & set(normalise(sentence).split()))


def _until(text: str, at: int, room: int) -> str:
    """From the start of the sentence, or as many words as there is room for, up to a place."""
    start = _start(text, at)
    if at - start > room:
        space = text.find(" ", max(at - room - 1, 0), at)
        start = at if room <= 0 else space + 1 if space >= 0 else at - room
    return text[start:at].strip()


def _beginning(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room, 0) + 1].rpartition(" ")[0]
