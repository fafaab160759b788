"""The headings of a Markdown text: where they stand and how deep they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?:(.*?)\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_TITLE = re.compile(r"^title:[ \t]*(\S.*)$", re.M)
_LINE = re.compile(r"[^\n]*\n?")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*\Z)|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?\Z")
_CLOSING = re.compile(r"(?:\A|[ \t])#+[ \t]*\Z")
_UNDERLINE = re.compile(r" {0,3}(=|-)\1*[ \t]*\Z")
# Lists, quotes, rules, HTML, indented code: their lines, and lines that go on with them, are no headings.
_OTHER_BLOCK = re.compile(
    r" {0,3}(?:([-_*])[ \t]*(?:\1[ \t]*){2,}\Z|(?P<list>(?:[-+*]|\d{1,9}[.)])(?:[ \t]|\Z))|>|<[a-zA-Z!?/])| {4}|\t"
)


class Heading(NamedTuple):
    """A heading: characters ``start:end`` of the text, with its marks; level 1 is the outermost."""

    start: int
    end: int
    level: int
    title: str


def headings(text: str) -> Iterator[Heading]:
    """Find the headings of ``text`` in order, both kinds: ``## Masts``, and lines underlined with = or -.

    As CommonMark 0.31 (4.2, 4.3) has them at the top level; underlined lines inside lists, quotes and HTML open
    no section. Front matter, fenced code and comments are stepped over. Linear in time, and nothing is kept:
    a whole parser (markdown-it-py) takes a second and 100 MB for a megabyte, which long files cannot afford.
    """
    position = front.end() if (front := _FRONT_MATTER.match(text)) else 0
    fence, paragraph, elsewhere = "", None, ""
    listed = False  # a list item stands above, open to indented lines after a blank one
    while position < len(text):
        line = _LINE.match(text, position)
        start, position = position, line.end() if line else len(text)
        content = text[start:position].rstrip("\n")
        listed = listed and not content[:1].strip()
        mark = _FENCE.match(content)
        if fence:
            if mark and mark[1].startswith(fence) and not content[mark.end() :].strip():
                fence = ""
        elif not content.strip():
            listed, paragraph, elsewhere = listed or elsewhere == "list", None, ""
        elif mark:
            fence, paragraph, elsewhere = mark[1], None, ""
        elif (found := _ATX.match(content)) and not (elsewhere == "list" and content[0] == " "):
            yield Heading(start, start + len(content), len(found[1]), _CLOSING.sub("", found[2] or "").strip())
            paragraph, elsewhere = None, ""
        elif paragraph is not None and (under := _UNDERLINE.match(content)):
            title = " ".join(text[paragraph:start].split())
            yield Heading(paragraph, start + len(content), 1 if under[1] == "=" else 2, title)
            paragraph = None
        elif content.lstrip().startswith("<!--"):
            closed = text.find("-->", start)
            closed = text.find("\n", closed) if closed >= 0 else -1
            position, paragraph = closed + 1 if closed >= 0 else len(text), None
            if content[0] == "<" and elsewhere != "html":
                elsewhere = ""
        elif (other := _OTHER_BLOCK.match(content)) and (paragraph is None or other[0].strip()):
            paragraph = None
            if other[0].strip():
                elsewhere = "" if other[1] else "list" if other["list"] else "quote" if other[0][-1] == ">" else "html"
            elif listed:
                elsewhere = "list"
        elif paragraph is None and not elsewhere:
            paragraph = start


def title(text: str) -> str:
    """The title in the front matter, else the first heading; empty if there is neither."""
    front = _FRONT_MATTER.match(text)
    if front and (named := _TITLE.search(front[1] or "")):
        return named[1].strip().strip("\"'")
    return next((heading.title for heading in headings(text) if heading.title), "")
