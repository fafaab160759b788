"""One reader a file format: bytes in, title and text out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from ..models.errors import RestillError
from .types import Document

# Both libraries report odd files through logging; without a handler Python prints that to stderr.
for _library in ("pypdf", "trafilatura"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


class UnreadableFile(RestillError):
    """A file that gives no text; a folder with other documents is loaded without it."""


class _Content(NamedTuple):
    text: str
    title: str = ""
    metadata: dict[str, Any] = {}


def read_file(file: Path, name: str) -> Document:
    """Read a file that holds one document; ``name`` becomes its id.

    The title is the first heading (HTML: ``<h1>``, else ``<title>``; PDF: the title in its metadata), or the
    file's stem.

    Raises:
        UnreadableFile: it cannot be opened or decoded, or holds no text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be read ({error.strerror})") from error
    content = READERS[file.suffix.lower()](file, data)
    if not content.text.strip():
        raise UnreadableFile(f"{file}: holds no text")
    title = " ".join(content.title.split()) or file.stem
    return Document(id=name, title=_valid(title), text=_valid(content.text), metadata=content.metadata)


def read_collection(file: Path, name: str) -> Iterator[tuple[int, Document]]:
    """Yield (line number, document) of a JSONL collection: an object with ``text`` a line.

    ``_id`` (or ``id``, else ``name:line``) is the document's id, ``title`` its title; every other key goes to
    its metadata, as do the keys of a ``metadata`` object.

    Raises:
        RestillError: the file cannot be read, or a line is no such object; the message names file and line.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _record(line, f"{file}:{number}", f"{name}:{number}")
    except OSError as error:
        raise RestillError(f"{file}: cannot be read ({error.strerror})") from error


def _record(line: bytes, place: str, fallback_id: str) -> Document:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RestillError(f"{place}: not UTF-8 (byte {error.start} of the line); convert the file") from error
    except (ValueError, RecursionError) as error:
        raise RestillError(f"{place}: not a JSON object in one line ({error})") from error
    if not isinstance(record, dict):
        raise RestillError(f"{place}: expected a JSON object with 'text', found {type(record).__name__}")
    if b"\\ud" in line.lower():
        record = json.loads(_valid(json.dumps(record, ensure_ascii=False)))
    text, title, extra = record.pop("text", None), record.pop("title", None) or "", record.pop("metadata", {})
    if not isinstance(text, str):
        found = "is missing" if text is None else f"is a {type(text).__name__}"
        raise RestillError(f"{place}: 'text' {found}; every line needs a string 'text'")
    if not isinstance(title, str):
        raise RestillError(f"{place}: 'title' is a {type(title).__name__}; it must be a string")
    identity = record.pop("_id", None)
    if identity is None:
        identity = record.pop("id", None)
    if identity is None:
        identity = fallback_id
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise RestillError(f"{place}: '_id' is {identity!r}; it must be a string or an integer")
    metadata = {**record, **extra} if isinstance(extra, dict) else {**record, "metadata": extra}
    return Document(id=str(identity), title=" ".join(title.split()), text=text, metadata=metadata)


def _text(file: Path, data: bytes) -> _Content:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"{file}: not UTF-8 (byte {error.start} is {data[error.start]:#04x}); "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    return _Content(text.replace("\r\n", "\n").replace("\r", "\n"))


_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.S)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(\S.*?)[ \t#]*$|^(\S.*)\n(?:=+|-{3,})[ \t]*$", re.M)


def _markdown(file: Path, data: bytes) -> _Content:
    text = _text(file, data).text
    start = 0
    if front := _FRONT_MATTER.match(text):
        start = front.end()
        if named := re.search(r"^title:[ \t]*(\S.*)$", front[1], re.M):
            return _Content(text, named[1].strip().strip("\"'"))
    heading = _HEADING.search(text, start)
    return _Content(text, (heading[1] or heading[2]) if heading else "")


def _html(file: Path, data: bytes) -> _Content:
    import trafilatura

    try:
        tree = trafilatura.load_html(data)
        if tree is None:
            raise UnreadableFile(f"{file}: holds no HTML")
        heading, title = tree.find(".//h1"), tree.find(".//title")
        titles = [" ".join(tag.text_content().split()) for tag in (heading, title) if tag is not None]
        # The main text without menus; a page too small or odd for that gives all its text.
        text = trafilatura.extract(data, include_comments=False) or trafilatura.html2txt(data)
    except RestillError:
        raise
    except Exception as error:  # both parsers raise many kinds on broken input
        raise UnreadableFile(f"{file}: cannot be parsed as HTML ({type(error).__name__}: {error})") from error
    return _Content(text, next(filter(None, titles), ""))


def _pdf(file: Path, data: bytes) -> _Content:
    import pypdf

    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableFile(f"{file}: is encrypted; save it without a password first")
        pages = [page.extract_text() for page in reader.pages]
        title = str((reader.metadata or {}).get("/Title") or "")
    except RestillError:
        raise
    except Exception as error:  # pypdf raises many kinds on broken input
        raise UnreadableFile(f"{file}: cannot be read as PDF ({type(error).__name__}: {error})") from error
    if not any(page.strip() for page in pages):
        raise UnreadableFile(
            f"{file}: the PDF has {len(pages)} pages but no text, so it is probably scanned; run OCR on it "
            "(for example ocrmypdf) and try again"
        )
    return _Content("\n\n".join(pages), title, {"pages": len(pages)})


def _valid(text: str) -> str:
    """Replace lone surrogates, which JSON escapes and PDF fonts can contain and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


READERS: dict[str, Callable[[Path, bytes], _Content]] = {
    ".txt": _text, ".text": _text, ".rst": _text,
    ".md": _markdown, ".markdown": _markdown,
    ".html": _html, ".htm": _html, ".xhtml": _html,
    ".pdf": _pdf,
}  # fmt: skip
"""Reader of one-document files, by suffix."""

COLLECTIONS = dict.fromkeys((".jsonl", ".ndjson"))
"""Suffixes of files with one document a line."""
