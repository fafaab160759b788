"""Word documents (DOCX) to Markdown: headings, lists and tables are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from .decode import UnreadableFile

if TYPE_CHECKING:
    from docx.document import Document

TREE_BYTES = 64 << 20
"""An XML part may unpack to so much: parsed, it takes ten times that."""
MAX_PARTS = 10_000
_ENCRYPTED_OR_OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # an OLE container
# Deleted text, and text boxes' second copies (for old versions of Word), are not what is read.
_RUNS = ".//w:r[not(ancestor::w:del) and not(ancestor::w:moveFrom) and not(ancestor::*[local-name()='Fallback'])]"


def read_docx(place: str, data: bytes, max_bytes: int) -> tuple[str, str]:
    """Text, as Markdown, and title of a document; headers, footers, notes and comments are not read.

    The archive is checked before it is unpacked: it may not unpack to more than ``max_bytes``, nor one XML
    part to more than ``TREE_BYTES``. zipfile reads no more of a part than the archive declares.

    Raises:
        UnreadableFile: it is damaged, encrypted, another kind of file, or too big unpacked.
    """
    import docx

    if data.startswith(_ENCRYPTED_OR_OLD):
        raise UnreadableFile(f"{place}: is encrypted or an old .doc; save it as .docx without a password")
    try:
        with ZipFile(BytesIO(data)) as archive:
            parts = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnreadableFile(f"{place}: the archive is broken ({error})") from error
    total = sum(part.file_size for part in parts)
    biggest = max((p.file_size for p in parts if p.filename.lower().endswith((".xml", ".rels"))), default=0)
    if len(parts) > MAX_PARTS or total > max_bytes or biggest > TREE_BYTES:
        raise UnreadableFile(
            f"{place}: {len(data)} bytes would unpack to {total} in {len(parts)} parts (XML: {biggest}), more than "
            f"{max_bytes}, {MAX_PARTS} or {TREE_BYTES}, so it may be a zip bomb"
        )
    try:
        document = docx.Document(BytesIO(data))
        blocks = [block for block in _blocks(document.element.body, document) if block]
        title = document.core_properties.title
    except Exception as error:  # python-docx and lxml raise many kinds on broken input
        raise UnreadableFile(f"{place}: cannot be read as DOCX ({type(error).__name__}: {error})") from error
    text = "\n\n".join(blocks)
    return re.sub(r"(?m)^(- .*)\n(?=\n- )", r"\1", text), title


def _blocks(parent: Any, document: Document) -> Iterator[str]:
    """The paragraphs and tables below an XML element; content controls are looked into."""
    for element in parent:
        kind = str(element.tag).rpartition("}")[2]
        if kind == "p":
            yield _paragraph(element, document)
        elif kind == "tbl":
            rows = ([_cell(cell) for cell in row.xpath("./w:tc")] for row in element.xpath("./w:tr"))
            yield "\n".join("| " + " | ".join(row) + " |" for row in rows if any(row))
        elif kind in {"sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"}:
            yield from _blocks(element, document)


def _paragraph(element: Any, document: Document) -> str:
    from docx.text.paragraph import Paragraph

    text = _text(element)
    style = Paragraph(element, document._body).style  # what python-docx itself gives its paragraphs
    name = (style.name if style is not None else None) or ""
    heading = re.fullmatch(r"Title|Heading ([1-9])", name)
    if heading and text:
        return "#" * min(int(heading[1] or 1), 6) + " " + " ".join(text.split())
    if text and (name.startswith("List") or element.xpath("./w:pPr/w:numPr")):
        return "- " + text
    # Else a paragraph that starts like a heading would become one.
    return re.sub(r"(?m)^( {0,3})(?=#{1,6}(?:[ \t]|$))", r"\1\\", text)


def _text(element: Any) -> str:
    return "".join(run.text for run in element.xpath(_RUNS)).strip()


def _cell(cell: Any) -> str:
    return " ".join(" ".join(map(_text, cell.xpath(".//w:p"))).split())
