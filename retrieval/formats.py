"""One reader a file format: bytes in, title and text out."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from ..models.errors import RestillError
from .decode import UnreadableFile, decode, valid
from .markdown import title as markdown_title
from .types import Document
from .word import read_docx

# These libraries report odd files through logging; without a handler Python prints that to stderr.
for _library in ("pypdf", "trafilatura"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

HTML_BYTES = 32 << 20
"""The largest page that is parsed: its tree takes ten times that."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is refused, and how text that is not Unicode is read.

    Attributes:
        max_bytes: largest file that is read (for DOCX: also unpacked; for JSONL: a line). About four times as
            much memory is needed while it is.
        fallback_encoding: see ``decode``; None refuses text that is not Unicode.
    """

    max_bytes: int = 256 << 20
    fallback_encoding: str | None = "cp1252"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RestillError: Python knows no such encoding, or the limit is not positive.
        """
        if self.max_bytes < 1:
            raise RestillError(f"max_bytes={self.max_bytes}: must be at least 1")
        try:
            if self.fallback_encoding is not None:
                "".encode(codecs.lookup(self.fallback_encoding).name)
        except LookupError as error:
            raise RestillError(f"fallback_encoding={self.fallback_encoding!r}: {error}") from error


class _Content(NamedTuple):
    text: str
    title: str = ""
    metadata: dict[str, Any] = {}
    format: Literal["text", "markdown"] = "text"
    warning: str = ""


def read_document(name: str, place: str, data: bytes, suffix: str, options: LoadOptions) -> tuple[Document, str]:
    """Read a file or page that holds one document; returns it and a warning, empty if all is well.

    The title is the first heading (HTML: ``<h1>``, else ``<title>``; PDF and DOCX: the title in the properties,
    DOCX: else the first heading), or the stem of ``name``, which becomes the id. HTML and DOCX become Markdown.

    Args:
        name: the document's id.
        place: path or URL, for messages.
        data: all of its bytes.
        suffix: key of ``READERS``.
        options: limits and encoding.

    Raises:
        UnreadableFile: it cannot be decoded or parsed, or holds no text.
    """
    content = READERS[suffix](place, data, options)
    text = valid(content.text)
    if not text.strip():
        raise UnreadableFile(f"{place}: holds no text" if data else f"{place}: is empty (0 bytes)")
    title = valid(" ".join(content.title.split())) or PurePath(name).stem or name
    document = Document(id=name, title=title, text=text, metadata=content.metadata, format=content.format)
    return document, content.warning


def _text(place: str, data: bytes, options: LoadOptions) -> _Content:
    text, warning = decode(place, data, options.fallback_encoding)
    return _Content(text, warning=warning)


def _markdown(place: str, data: bytes, options: LoadOptions) -> _Content:
    text, warning = decode(place, data, options.fallback_encoding)
    return _Content(text, markdown_title(text), format="markdown", warning=warning)


def _docx(place: str, data: bytes, options: LoadOptions) -> _Content:
    text, title = read_docx(place, data, options.max_bytes)
    return _Content(text, title or markdown_title(text), format="markdown")


_DECLARED = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?([A-Za-z0-9_:-]{1,40})""", re.I)


def _html(place: str, data: bytes, options: LoadOptions) -> _Content:
    import trafilatura
    from trafilatura.xml import xmltotxt

    if len(data) > HTML_BYTES:
        raise UnreadableFile(f"{place}: {len(data)} bytes of HTML, more than the {HTML_BYTES} that are parsed")
    text, warning = _decode_html(place, data, options)
    try:
        tree = trafilatura.load_html(text)
        if tree is None:
            raise UnreadableFile(f"{place}: holds no HTML" if data else f"{place}: is empty (0 bytes)")
        heading, title = tree.find(".//h1"), tree.find(".//title")
        titles = [" ".join(tag.text_content().split()) for tag in (heading, title) if tag is not None]
        # The main text without menus; a page too small or odd for that gives all its text. Only headings, lists
        # and tables are marked: bold and italics would stand between words.
        main = trafilatura.bare_extraction(tree, include_comments=False, include_formatting=False)
        body = None if main is None or isinstance(main, dict) else main.body
        markdown = xmltotxt(body, include_formatting=True) if body is not None else ""
        plain = "" if markdown.strip() else trafilatura.html2txt(text)
    except RestillError:
        raise
    except Exception as error:  # both parsers raise many kinds on broken input
        raise UnreadableFile(f"{place}: cannot be parsed as HTML ({type(error).__name__}: {error})") from error
    title = next(filter(None, titles), "")
    return _Content(plain or markdown, title, format="text" if plain else "markdown", warning=warning)


def _decode_html(place: str, data: bytes, options: LoadOptions) -> tuple[str, str]:
    """As ``decode``, but what the page declares goes before the fallback."""
    text, warning = decode(place, data, options.fallback_encoding)
    declared = _DECLARED.search(data[:4096])
    if warning and declared:
        try:
            return data.decode(declared[1].decode("ascii")), ""
        except (LookupError, ValueError):
            pass
    return text, warning


def _pdf(place: str, data: bytes, options: LoadOptions) -> _Content:
    import pypdf
    from pypdf.errors import DependencyError

    if not data:
        raise UnreadableFile(f"{place}: is empty (0 bytes)")
    pages: list[str] = []
    failed: dict[int, str] = {}
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableFile(f"{place}: is encrypted; save it without a password first")
        for number, page in enumerate(reader.pages, 1):
            try:
                pages.append(page.extract_text())
            except Exception as error:
                failed[number] = type(error).__name__
                pages.append("")
        title = str((reader.metadata or {}).get("/Title") or "")
    except RestillError:
        raise
    except DependencyError as error:
        raise UnreadableFile(f"{place}: is encrypted ({error}); save it without encryption") from error
    except Exception as error:  # pypdf raises many kinds on broken input
        raise UnreadableFile(f"{place}: cannot be read as PDF ({type(error).__name__}: {error})") from error
    if not any(page.strip() for page in pages):
        why = f"{len(failed)} of them cannot be read" if failed else "so it is probably scanned; run OCR on it"
        raise UnreadableFile(f"{place}: the PDF has {len(pages)} pages but no text, {why} (for example ocrmypdf)")
    named = ", ".join(f"{number} ({kind})" for number, kind in list(failed.items())[:5])
    warning = f"{place}: {len(failed)} of {len(pages)} pages cannot be read: {named}" if failed else ""
    return _Content("\n\n".join(pages), title, {"pages": len(pages)}, warning=warning)


READERS: dict[str, Callable[[str, bytes, LoadOptions], _Content]] = {
    ".txt": _text, ".text": _text, ".rst": _text,
    ".md": _markdown, ".markdown": _markdown,
    ".html": _html, ".htm": _html, ".xhtml": _html,
    ".pdf": _pdf, ".docx": _docx,
}  # fmt: skip
"""Reader of one-document files, by suffix."""

COLLECTIONS = dict.fromkeys((".jsonl", ".ndjson", ".csv", ".tsv"))
"""Suffixes of files with a document a line or row."""
