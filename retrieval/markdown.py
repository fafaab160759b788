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
# HTML blocks (4.6) end with a mark of their own,
_MARKED = re.compile(
    r" {0,3}<(?:(?P<text>(?i:pre|script|style|textarea))(?=[\s>]|\Z)"
    r"|(?P<comment>!--)|(?P<instruction>\?)|(?P<data>!\[CDATA\[)|(?P<declaration>![a-zA-Z]))"
)
_ENDS = {
    "text": re.compile(r"</(?:pre|script|style|textarea)>", re.I), "comment": re.compile("-->"),
    "instruction": re.compile(r"\?>"), "data": re.compile("]]>"), "declaration": re.compile(">"),
}  # fmt: skip
# or at a blank line: those of a tag that makes blocks, and those of any other that stands alone.
_BLOCK_TAG = re.compile(
    r" {0,3}</?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|dir"
    r"|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend|li|link"
    r"|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary|table|tbody|td|tfoot|th|thead"
    r"|title|tr|track|ul)(?:\s|/?>|\Z)",
    re.I,
)
_TAG = re.compile(
    r""" {0,3}<(?:[a-zA-Z][\w-]*(?:\s+[a-zA-Z_:][\w:.-]*(?:\s*=\s*(?:[^"'=<>`\s]+|'[^']*'|"[^"]*"))?)*\s*/?"""
    r"""|/[a-zA-Z][\w-]*\s*)>\s*""",
    re.A,
)
_UNDERLINE = re.compile(r" {0,3}(=|-)\1*[ \t]*\Z")
# Lists, quotes, rules, indented code: their lines, and lines that go on with them, are no headings.
_OTHER_BLOCK = re.compile(
    r" {0,3}(?:([-_*])[ \t]*(?:\1[ \t]*){2,}\Z|(?P<list>(?:[-+*]|\d{1,9}[.)])(?:[ \t]|\Z))|>)| {4}|\t"
)


class Heading(NamedTuple):
    """A heading: characters ``start:end`` of the text, with its marks; level 1 is the outermost."""

    start: int
    end: int
    level: int
    title: str


def headings(text: str) -> Iterator[Heading]:
    """Find the headings of ``text`` in order, both kinds: ``## Masts``, and lines underlined with = or -.

    As CommonMark 0.31 (4.2, 4.3) has them at the top level; those inside list items open no section, nor do
    lines in quotes. Front matter, fenced code and HTML blocks are stepped over. Linear in time, and nothing is kept: a
    whole parser (markdown-it-py) takes a second and 100 MB for a megabyte, which long files cannot afford. So lists
    within lists are taken as one, and HTML within them ends at a blank line.
    """
    position = front.end() if (front := _FRONT_MATTER.match(text)) else 0
    fence, paragraph, elsewhere = "", None, ""
    column = 0  # where the content of the open list item starts; 0: there is none
    while position < len(text):
        line = _LINE.match(text, position)
        start, position = position, line.end() if line else len(text)
        content = text[start:position].rstrip("\n")
        if column and content.strip():
            even = content.expandtabs(4)
            if not even[:column].strip():
                fence, elsewhere = _within(even[column:], fence, elsewhere)
                continue
            if elsewhere != "list":
                column, fence, elsewhere = 0, "", ""
        mark = _FENCE.match(content)
        if fence:
            if mark and mark[1].startswith(fence) and not content[mark.end() :].strip():
                fence = ""
        elif not content.strip():
            column = 0 if elsewhere == "empty" else column
            paragraph, elsewhere = None, ""
        elif elsewhere == "html":
            continue
        elif mark:
            fence, paragraph, elsewhere, column = mark[1], None, "", 0
        elif found := _ATX.match(content):
            yield Heading(start, start + len(content), len(found[1]), _CLOSING.sub("", found[2] or "").strip())
            paragraph, elsewhere, column = None, "", 0
        elif paragraph is not None and (under := _UNDERLINE.match(content)):
            title = " ".join(text[paragraph:start].split())
            yield Heading(paragraph, start + len(content), 1 if under[1] == "=" else 2, title)
            paragraph = None
        elif marked := _MARKED.match(content):
            closed = _ENDS[str(marked.lastgroup)].search(text, start)
            end = text.find("\n", closed.end()) if closed else -1
            position, paragraph = end + 1 if end >= 0 else len(text), None
            elsewhere, column = "", 0
        elif _BLOCK_TAG.match(content) or (paragraph is None and not elsewhere and _TAG.fullmatch(content)):
            paragraph, elsewhere, column = None, "html", 0
        elif (other := _OTHER_BLOCK.match(content)) and _starts(content, other, paragraph is not None):
            paragraph = None
            if other["list"]:
                column, fence, elsewhere = _item(
                    content.expandtabs(4), other.start("list") + len(other["list"].rstrip())
                )
            elif other[0].strip():
                column, elsewhere = 0, "" if other[1] else "quote"
        elif paragraph is None and not elsewhere:
            paragraph = start


def _item(content: str, marked: int) -> tuple[int, str, str]:
    """The column of a list item's content, then as ``_within``, after its first line: "empty" if nothing is on it.

    ``marked`` is where its marker ends.
    """
    rest = content[marked:]
    spaces = len(rest) - len(rest.lstrip())
    column = marked + (spaces if 1 <= spaces <= 4 and rest.strip() else 1)
    fence, elsewhere = _within(content[column:], "", "") if rest.strip() else ("", "empty")
    return column, fence, elsewhere


def _within(content: str, fence: str, elsewhere: str) -> tuple[str, str]:
    """The open fence, and what the next line may go on with, after a line of a list item: "list" after a paragraph."""
    mark = _FENCE.match(content)
    if fence:
        closed = mark and mark[1].startswith(fence) and not content[mark.end() :].strip()
        return "" if closed else fence, ""
    if mark:
        return mark[1], ""
    other = _OTHER_BLOCK.match(content)
    if elsewhere == "html" or _BLOCK_TAG.match(content):
        return "", "html"
    if marked := _MARKED.match(content):
        return "", "" if _ENDS[str(marked.lastgroup)].search(content) else "html"
    code = elsewhere != "list" and content.startswith((" " * 4, "\t"))
    underline = elsewhere == "list" and _UNDERLINE.match(content)
    return "", "" if code or underline or _ATX.match(content) or (other and other[1]) else "list"


def _starts(content: str, other: re.Match[str], paragraph: bool) -> bool:
    """Whether a line that looks like another block is one, after an open paragraph or not (CommonMark 5.2)."""
    if not paragraph:
        return True
    if other["list"]:
        return bool(content[other.end("list") :].strip()) and other["list"].strip() in ("-", "+", "*", "1.", "1)")
    return bool(other[0].strip())


def title(text: str) -> str:
    """The title in the front matter, else the first heading; empty if there is neither."""
    front = _FRONT_MATTER.match(text)
    if front and (named := _TITLE.search(front[1] or "")):
        return named[1].strip().strip("\"'")
    return next((heading.title for heading in headings(text) if heading.title), "")
