"""Cut documents into passages that the encoder reads whole."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..models.errors import RestillError
from .sections import Sections
from .types import Chunk, Document, Encoder, content_hash

CHARS_PER_TOKEN = 8
"""A passage has at most so many characters a token: a long unbroken run can be one (unknown) token."""

WINDOW = 1_000_000
"""Characters that are tokenised at a time."""

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


def context(title: str, headings: Sequence[str], encoder: Encoder, max_tokens: int | None = None) -> str:
    """What is embedded before a passage: its title and heading path, joined by `` > ``.

    The title takes at most a quarter of ``max_tokens`` (see ``split``), the path an eighth of the encoder's: the
    innermost headings are kept. A first heading that repeats the title is left out.
    """
    title = _shortened(title, encoder, _limit(encoder, max_tokens) // 4)
    path = list(headings[1:] if headings and headings[0] == title else headings)
    while len(path) > 1 and len(encoder.token_offsets(" > ".join(path))) > encoder.max_tokens // 8:
        path.pop(0)
    below = _shortened(" > ".join(path), encoder, encoder.max_tokens // 8)
    return f"{title} > {below}" if title and below else title or below


def _shortened(text: str, encoder: Encoder, limit: int) -> str:
    if not text:
        return ""
    offsets, limit = encoder.token_offsets(text), max(1, limit)
    return text if len(offsets) <= limit else text[: offsets[limit][0]].rstrip()


def _limit(encoder: Encoder, max_tokens: int | None) -> int:
    return min(max_tokens or encoder.max_tokens, encoder.max_tokens)


def embedded_text(chunk: Chunk, encoder: Encoder, max_tokens: int | None = None) -> str:
    """What the encoder reads for a chunk: title and headings, when there are any, and the passage.

    Args:
        max_tokens: what the chunk was cut with.
    """
    before = context(chunk.title, chunk.headings, encoder, max_tokens)
    return f"{before}\n{chunk.text}" if before else chunk.text


def split(
    document: Document, encoder: Encoder, *, max_tokens: int | None = None, overlap: int | None = None
) -> list[Chunk]:
    """Cut ``document`` into passages of whole sentences, in order.

    Title and passage together fit ``max_tokens``, and with the heading path before it a passage fits the
    encoder's own maximum. Passages of one text have about the same length; a document that fits is one
    passage. Markdown is cut between sections: the largest sections that fit stay whole, and one too small to
    be found by itself (under a quarter of the tokens) joins the next beside or below it.

    Args:
        document: its ``format`` says whether it has headings.
        encoder: measures in its tokens.
        max_tokens: tokens of title and passage; the encoder's maximum if not given, and never more.
        overlap: a passage starts with the last whole sentences of the one before, up to so many tokens, but
            never with those of another section. If not given: an eighth, and inside a paragraph only.

    Raises:
        RestillError: ``max_tokens`` leaves no room for text, or ``overlap`` no room for what is new.
    """
    text = document.text
    sections = Sections(text, markdown=document.format == "markdown")
    budget = _budget(document, sections, encoder, max_tokens)
    if overlap is not None and not 0 <= overlap <= budget // 2:
        raise RestillError(
            f"overlap={overlap}: passages of {document.id!r} have {budget} tokens; give 0 to {budget // 2}"
        )
    ruler = _Ruler(text, encoder, budget)
    spans = [
        whole
        for start, end in sections.spans(ruler)
        for passage in _passages(text, start, end, ruler, overlap)
        for whole in _counted(text, *passage, encoder, budget)
    ]
    return [
        Chunk(
            chunk_id=f"{document.id}#{number}",
            doc_id=document.id,
            title=document.title,
            text=text[start:end],
            start=start,
            end=end,
            content_hash=content_hash(document.title, text[start:end], path := sections.path(start, end)),
            metadata=document.metadata,
            headings=path,
        )
        for number, (start, end) in enumerate(spans)
    ]


def sentence_span(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole sentences of ``text`` that ``start:end`` touches, to show what a citation rests on.

    Returns (start, end) without blanks at either side. ``text`` may be a document's, with the offsets of a
    ``Citation``, or a chunk's with offsets in it.

    Raises:
        RestillError: ``start:end`` does not lie in the text.
    """
    if not 0 <= start < end <= len(text):
        raise RestillError(f"{start}:{end} is no span of a text of {len(text)} characters")
    start, end = _trim(text, start, end)
    # No sentence goes over an empty line, so that the search may start at the last one.
    first = text.rfind("\n\n", 0, start) + 1
    for boundary in _boundaries(text, first):
        if boundary.end() <= start:
            first = boundary.end()
        elif boundary.start() >= end:
            return _trim(text, first, boundary.start())
    return _trim(text, first, len(text))


def _budget(document: Document, sections: Sections, encoder: Encoder, max_tokens: int | None) -> int:
    """Tokens left for the text of a passage."""
    limit = _limit(encoder, max_tokens)

    def taken(headings: Sequence[str]) -> int:
        before = context(document.title, headings, encoder, max_tokens)
        return encoder.count_tokens(f"{before}\n" if before else "")

    budget = limit - taken(())
    if budget < 4:
        raise RestillError(
            f"max_tokens={limit} leaves {budget} tokens for a passage's text of {document.id!r}; give at least 32"
        )
    return min(budget, encoder.max_tokens - max(map(taken, sections.paths)))


class _Ruler:
    """Measures spans of one text in tokens, after tokenising it once."""

    def __init__(self, text: str, encoder: Encoder, budget: int) -> None:
        self.starts = array("L")
        begin = 0
        while begin < len(text):
            # A long text in pieces: a token's offsets take some hundred bytes.
            end = _window(text, begin)
            self.starts.extend(begin + left for left, right in encoder.token_offsets(text[begin:end]) if right > left)
            begin = end
        self.budget = budget
        self.max_chars = budget * CHARS_PER_TOKEN

    def tokens(self, start: int, end: int) -> int:
        """Number of tokens that begin within ``start:end``."""
        return bisect_left(self.starts, end) - bisect_left(self.starts, start)

    def fits(self, start: int, end: int) -> bool:
        """Whether ``start:end`` is short enough for a passage."""
        return end - start <= self.max_chars and self.tokens(start, end) <= self.budget

    def furthest(self, start: int) -> int:
        """The largest end for which ``start:end`` fits."""
        token = bisect_left(self.starts, start) + self.budget
        end = start + self.max_chars
        return max(start + 1, min(end, self.starts[token]) if token < len(self.starts) else end)


def _window(text: str, begin: int) -> int:
    """Where to cut a text for the tokenizer: after a blank, if there is one."""
    end = begin + WINDOW
    if end >= len(text):
        return len(text)
    blank = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))
    return blank + 1 if blank > begin else end


def _passages(text: str, start: int, end: int, ruler: _Ruler, overlap: int | None) -> Iterator[tuple[int, int]]:
    start, end = _trim(text, start, end)
    if start == end:
        return
    if ruler.fits(start, end):
        yield start, end
        return
    units = list(_units(text, start, end, ruler))
    total = ruler.tokens(start, end)
    target = math.ceil(total / max(1, math.ceil(total / ruler.budget)))
    first = following = 0
    while True:
        last = following  # all before was in the passage before
        while last + 1 < len(units) and ruler.fits(units[first].start, units[last + 1].end):
            size = ruler.tokens(units[first].start, units[last].end)
            if size >= target or (units[last + 1].new_paragraph and size >= 0.75 * target):
                break
            last += 1
        yield units[first].start, units[last].end
        following = last + 1
        if following == len(units):
            return
        if overlap is None and units[following].new_paragraph:
            first = following
        else:
            first = _overlap(units, first, following, ruler, ruler.budget // 8 if overlap is None else overlap)


def _overlap(units: list[_Unit], first: int, following: int, ruler: _Ruler, limit: int) -> int:
    """The unit that the next passage starts with: ``following``, or a sentence before it."""
    start = following
    while (
        start - 1 > first
        and ruler.tokens(units[start - 1].start, units[following - 1].end) <= limit
        and ruler.fits(units[start - 1].start, units[following].end)
    ):
        start -= 1
    return start


def _counted(text: str, start: int, end: int, encoder: Encoder, budget: int) -> Iterator[tuple[int, int]]:
    """The passage, halved until it fits if it begins or ends inside a word, whose parts are other tokens."""
    inside = (start and not text[start - 1].isspace()) or (end < len(text) and not text[end].isspace())
    if not inside or end - start <= 1 or len(encoder.token_offsets(text[start:end])) <= budget:
        yield start, end
        return
    middle = (start + end) // 2
    for half in (_trim(text, start, middle), _trim(text, middle, end)):
        if half[0] < half[1]:
            yield from _counted(text, *half, encoder, budget)


def _boundaries(text: str, start: int, end: int | None = None) -> Iterator[re.Match[str]]:
    for boundary in _BOUNDARY.finditer(text, start, len(text) if end is None else end):
        if not (boundary["stop"] and _ABBREVIATION.search(text, max(start, boundary.start() - 12), boundary.start())):
            yield boundary


def _units(text: str, start: int, end: int, ruler: _Ruler) -> Iterator[_Unit]:
    begin, new_paragraph = start, True
    for boundary in _boundaries(text, start, end):
        yield from _pieces(text, begin, boundary.end(), new_paragraph, ruler)
        begin, new_paragraph = boundary.end(), boundary["paragraph"] is not None
    yield from _pieces(text, begin, end, new_paragraph, ruler)


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
