"""The sections of a document: which stay whole, and the path of headings above each passage."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from os.path import commonprefix
from typing import NamedTuple, Protocol

from .markdown import headings


class Ruler(Protocol):
    """Measures spans of a text in tokens."""

    budget: int

    def tokens(self, start: int, end: int) -> int:
        """Tokens of ``start:end``."""
        ...

    def fits(self, start: int, end: int) -> bool:
        """True if ``start:end`` can be one passage."""
        ...


class _Section(NamedTuple):
    """A heading (characters ``start:body``) and the text below it up to the next heading."""

    start: int
    body: int
    end: int
    level: int
    path: tuple[str, ...]


class Sections:
    """The sections of a Markdown text; any other text is one section.

    Attributes:
        paths: every heading path of the text, the empty one included.
    """

    def __init__(self, text: str, *, markdown: bool) -> None:
        found = list(headings(text)) if markdown else []
        ends = [*(heading.start for heading in found), len(text)]
        self._text = text
        # What stands before the first heading is a section of level 0: all others are below it.
        self._sections = [_Section(0, 0, ends[0], 0, ())]
        above: list[tuple[int, str]] = []
        for heading, end in zip(found, ends[1:], strict=True):
            above = [(level, title) for level, title in above if level < heading.level]
            above.append((heading.level, heading.title))
            path = tuple(title for _, title in above if title)
            self._sections.append(_Section(heading.start, heading.end, end, heading.level, path))
        self.paths = {section.path for section in self._sections}

    def spans(self, ruler: Ruler) -> Iterator[tuple[int, int]]:
        """Cut the text between sections: (start, end) of what belongs together, in order, without gaps.

        The largest sections that fit one passage stay whole with all that is below them. A span under a
        quarter of the budget joins the next, unless that is a section further out.
        """
        first = None
        start = end = 0
        for section, below in self._whole(0, len(self._sections), ruler):
            if first is not None and (
                section.level < first.level
                or ruler.tokens(start, end) >= ruler.budget // 4
                or not ruler.fits(start, below)
            ):
                yield start, end
                first, start = None, end
            end = below
            if first is None and self._text[start:end].strip():
                first = section
        yield start, end

    def _whole(self, first: int, last: int, ruler: Ruler) -> Iterator[tuple[_Section, int]]:
        """Sections ``first`` to ``last``, the others below the first: each that fits, and where it ends."""
        section, end = self._sections[first], self._sections[last - 1].end
        if last == first + 1 or ruler.fits(section.start, end):
            yield section, end
            return
        yield section, section.end
        child = first + 1
        while child < last:
            following = child + 1
            while following < last and self._sections[following].level > self._sections[child].level:
                following += 1
            yield from self._whole(child, following, ruler)
            child = following

    def path(self, start: int, end: int) -> tuple[str, ...]:
        """The headings above all of the text in ``start:end``; the heading lines themselves do not count."""
        number = bisect_right(self._sections, start, key=lambda section: section.start) - 1
        touched = []
        while number < len(self._sections) and self._sections[number].start < end:
            touched.append(self._sections[number])
            number += 1
        with_text = [s for s in touched if self._text[max(s.body, start) : min(s.end, end)].strip()]
        return commonprefix([section.path for section in with_text or touched])  # type: ignore[return-value]
