"""Cut documents into passages that the encoder reads whole."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from ..models.errors import RestillError
from .types import Chunk, Document, Encoder, content_hash

CHARS_PER_TOKEN = 8
"""A passage has at most so many characters a token: a long unbroken run can be one (unknown) token."""

# A boundary ends with the match. No alternative starts with \s*, so long runs of blanks stay linear.
_BOUNDARY = re.compile(
    r"""
      (?P<paragraph> \n[ \t]*\n\s* )
    | \n (?= [ \t]* (?: [-*+•] | \d{1,3}[.)] | \#{1,6} ) [ \t] )       # a list item or heading starts
    | (?P<stop> (?<=[.!?…]) ["'”’»)\]]* \s+ (?= [^\sa-z] ) )           # a sentence ends
    | (?<=[。！？])
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|vs|No|Fig|Gen|Col|Lt|Capt|Rev|Hon|Inc|Ltd|Co|Corp|approx))\.\Z"
)


class _Unit(NamedTuple):
    """The smallest piece that is kept together: a sentence, or a part of one that is too long."""

    start: int
    end: int
    new_paragraph: bool


def heading(title: str, encoder: Encoder) -> str:
    """What is embedded of ``title`` before each passage: all, up to a quarter of the encoder's tokens."""
    if not title:
        return ""
    offsets, limit = encoder.token_offsets(title), max(1, encoder.max_tokens // 4)
    return title if len(offsets) <= limit else title[: offsets[limit][0]].rstrip()


def embedded_text(chunk: Chunk, encoder: Encoder) -> str:
    """What the encoder reads for a chunk: the title, when there is one, and the passage."""
    title = heading(chunk.title, encoder)
    return f"{title}\n{chunk.text}" if title else chunk.text


def split(document: Document, encoder: Encoder, *, max_tokens: int | None = None) -> list[Chunk]:
    """Cut ``document`` into passages of whole sentences, in order.

    Title and passage together fit the encoder's ``max_tokens`` (or the smaller ``max_tokens`` given). A
    passage that ends inside a paragraph shares its last short sentence (at most an eighth of the tokens) with
    the next. Passages of one document have about the same length; a document that fits is one passage.

    Raises:
        RestillError: ``max_tokens`` leaves no room for text.
    """
    limit = min(max_tokens or encoder.max_tokens, encoder.max_tokens)
    head = heading(document.title, encoder)
    budget = limit - encoder.count_tokens(f"{head}\n" if head else "")
    if budget < 4:
        raise RestillError(f"max_tokens={limit} leaves {budget} tokens for a passage's text; give at least 32")
    text = document.text
    ruler = _Ruler(text, encoder, budget)
    return [
        Chunk(
            chunk_id=f"{document.id}#{number}",
            doc_id=document.id,
            title=document.title,
            text=text[start:end],
            start=start,
            end=end,
            content_hash=content_hash(document.title, text[start:end]),
            metadata=document.metadata,
        )
        for number, (start, end) in enumerate(_passages(text, ruler))
    ]


class _Ruler:
    """Measures spans of one text in tokens, after tokenising it once."""

    def __init__(self, text: str, encoder: Encoder, budget: int) -> None:
        self.starts = [start for start, end in encoder.token_offsets(text) if end > start]
        self.budget = budget
        self.max_chars = budget * CHARS_PER_TOKEN

    def tokens(self, start: int, end: int) -> int:
        return bisect_left(self.starts, end) - bisect_left(self.starts, start)

    def fits(self, start: int, end: int) -> bool:
        return end - start <= self.max_chars and self.tokens(start, end) <= self.budget

    def furthest(self, start: int) -> int:
        """The largest end for which ``start:end`` fits."""
        token = bisect_left(self.starts, start) + self.budget
        end = start + self.max_chars
        return max(start + 1, min(end, self.starts[token]) if token < len(self.starts) else end)


def _passages(text: str, ruler: _Ruler) -> Iterator[tuple[int, int]]:
    start, end = _trim(text, 0, len(text))
    if start == end:
        return
    if ruler.fits(start, end):
        yield start, end
        return
    units = list(_units(text, ruler))
    total = ruler.tokens(start, end)
    target = math.ceil(total / max(1, math.ceil(total / ruler.budget)))
    first = 0
    while True:
        last = first
        while last + 1 < len(units) and ruler.fits(units[first].start, units[last + 1].end):
            size = ruler.tokens(units[first].start, units[last].end)
            if size >= target or (units[last + 1].new_paragraph and size >= 0.75 * target):
                break
            last += 1
        yield units[first].start, units[last].end
        following = last + 1
        if following == len(units):
            return
        first = following if units[following].new_paragraph else _overlap(units, first, following, ruler)


def _overlap(units: list[_Unit], first: int, following: int, ruler: _Ruler) -> int:
    """The unit that the next passage starts with: ``following``, or a short sentence before it."""
    start = following
    while (
        start - 1 > first
        and ruler.tokens(units[start - 1].start, units[following - 1].end) <= ruler.budget // 8
        and ruler.fits(units[start - 1].start, units[following].end)
    ):
        start -= 1
    return start


def _units(text: str, ruler: _Ruler) -> Iterator[_Unit]:
    begin, new_paragraph = 0, True
    for boundary in _BOUNDARY.finditer(text):
        if boundary["stop"] and _ABBREVIATION.search(text, max(0, boundary.start() - 12), boundary.start()):
            continue
        yield from _pieces(text, begin, boundary.end(), new_paragraph, ruler)
        begin, new_paragraph = boundary.end(), boundary["paragraph"] is not None
    yield from _pieces(text, begin, len(text), new_paragraph, ruler)


def _pieces(text: str, start: int, end: int, new_paragraph: bool, ruler: _Ruler) -> Iterator[_Unit]:
    """One sentence, cut where it is too long: after a line, else after a word, else anywhere."""
    start, end = _trim(text, start, end)
    while start < end:
        cut = end
        if not ruler.fits(start, end):
            cut = min(end, ruler.furthest(start))
            for blank in "\n ":
                if (at := text.rfind(blank, start + (cut - start) // 2, cut)) > start:
                    cut = at
                    break
        left, right = _trim(text, start, cut)
        if left < right:
            yield _Unit(left, right, new_paragraph)
            new_paragraph = False
        start, _ = _trim(text, cut, end)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Narrow ``start:end`` to leave no blanks at either side."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
