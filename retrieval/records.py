"""Files with many documents: JSONL, one object a line, and CSV, one document a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import IO, Any

from ..models.errors import RestillError
from .decode import UnreadableFile, decode, valid
from .types import Document

NAMED = 5
"""So many broken lines of a file are named; the rest are counted."""


@dataclass
class Records:
    """The documents of one file, each with its line, and what is wrong with the others."""

    place: str
    documents: list[tuple[int, Document]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _lines: dict[str, int] = field(default_factory=dict)

    def add(self, line: int, document: Document) -> None:
        """Keep a document, or the line of one without text; of several with one id the first is kept."""
        if not document.text.strip():
            self.empty.append(line)
        elif (first := self._lines.setdefault(document.id, line)) != line:
            self.broken.append(
                f"{self.place}:{line}: document id {document.id!r} occurs twice, first in {self.place}:{first}; "
                "that one is kept"
            )
        else:
            self.documents.append((line, document))

    def warnings(self) -> Iterator[str]:
        """One sentence for each kind of trouble."""
        if self.broken:
            more = f"; and {len(self.broken) - NAMED} more" if len(self.broken) > NAMED else ""
            lines = f"{len(self.broken)} lines left out: " if len(self.broken) > 1 else "left out: "
            yield f"{self.place}: {lines}{'; '.join(self.broken[:NAMED])}{more}"
        if self.empty:
            yield f"{self.place}: {len(self.empty)} documents without text left out (first in line {self.empty[0]})"
        yield from self.notes


def read_jsonl(name: str, place: str, stream: IO[bytes], max_bytes: int) -> Records:
    """Read a JSONL collection line by line: an object with ``text`` a line.

    ``_id`` (or ``id``, else ``name:line``) is the document's id, ``title`` its title; every other key goes to
    its metadata, as do the keys of a ``metadata`` object. Other lines are left out and named.

    Raises:
        UnreadableFile: it is UTF-16 or UTF-32, or a line is longer than ``max_bytes``.
    """
    records = Records(place)
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
            raise UnreadableFile(f"{place}: is UTF-16 or UTF-32; JSON is UTF-8, convert it")
        if len(line) > max_bytes:
            raise UnreadableFile(f"{place}:{number}: the line is longer than max_bytes={max_bytes}")
        if line.strip():
            try:
                records.add(number, _record(line, f"{place}:{number}", f"{name}:{number}"))
            except RestillError as error:
                records.broken.append(str(error))
    return records


def _record(line: bytes, place: str, fallback_id: str) -> Document:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RestillError(f"{place}: not UTF-8 (byte {error.start} of the line); convert the file") from error
    except (ValueError, RecursionError) as error:
        raise RestillError(f"{place}: not a JSON object in one line ({error})") from error
    if not isinstance(record, dict):
        raise RestillError(f"{place}: expected a JSON object with 'text', found {type(record).__name__}")
    if b"\\ud" in line.lower() or b"\\u0000" in line:
        record = _valid_json(record)
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


def _valid_json(value: Any) -> Any:
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, list):
        return [_valid_json(item) for item in value]
    if isinstance(value, dict):
        return {valid(key): _valid_json(item) for key, item in value.items()}
    return value


def read_csv(name: str, place: str, data: bytes, fallback: str | None, delimiter: str | None = None) -> Records:
    """Read a table: the first row names the columns, every other row is a document.

    With a column ``text`` (whatever its case) a row is read like a JSONL object: ``_id`` or ``id``, ``title``,
    the other columns are metadata. Without one, the text is a line ``column: value`` for every value, and the
    title the column ``title`` or ``name``, else the first value. A row with other than the header's number of
    values is kept: those that are missing are empty, those too many are named ``column 5`` and so on.

    Args:
        name: ids of rows without one are ``name:line``.
        place: named in warnings.
        data: the whole file.
        fallback: see ``decode``.
        delimiter: if not given, the one of ``, ; | tab`` that the header has most of.

    Raises:
        UnreadableFile: it is no text, or has no header.
    """
    text, warning = decode(place, data, fallback)
    header_line = next((line for line in text.split("\n", 100) if line.strip()), "")
    delimiter = delimiter or max(",;\t|", key=header_line.count)
    records = Records(place, notes=[warning] if warning else [])
    rows = _rows(text, delimiter)
    _, header = next(rows, (0, []))
    columns = [column.strip() or f"column {number}" for number, column in enumerate(header, 1)]
    if not columns:
        raise UnreadableFile(f"{place}: holds no text")
    if len(set(columns)) < len(columns):
        columns = [c if columns.count(c) == 1 else f"{c} (column {n})" for n, c in enumerate(columns, 1)]
    ragged: list[int] = []
    try:
        for line, values in rows:
            if len(values) != len(columns):
                ragged.append(line)
            records.add(line, _row(values, columns, f"{name}:{line}"))
    except csv.Error as error:
        raise UnreadableFile(f"{place}: cannot be read as CSV ({error})") from error
    if ragged:
        records.notes.append(
            f"{place}: {len(ragged)} rows have other than the header's {len(columns)} values and were kept "
            f"(first in line {ragged[0]})"
        )
    return records


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line of its start, values) of every row that is not blank."""
    # The module's limit for a field is global; the size of the file bounds it here.
    before = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
        line = 1
        for values in reader:
            if any(value.strip() for value in values):
                yield line, values
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(before)


def _row(values: list[str], columns: list[str], fallback_id: str) -> Document:
    names = columns + [f"column {number}" for number in range(len(columns) + 1, len(values) + 1)]
    cells = {name: valid(value.strip()) for name, value in zip(names, values, strict=False) if value.strip()}
    known = {name.casefold(): name for name in reversed(columns)}

    def take(*keys: str) -> str:
        """The first of these columns that has a value, taken out."""
        return next((cells.pop(known[key]) for key in keys if known.get(key) in cells), "")

    if "text" in known:
        text, title, identity = take("text"), take("title"), take("_id", "id")
        return Document(id=identity or fallback_id, title=" ".join(title.split()), text=text, metadata={**cells})
    text = "\n".join(f"{name}: {value}" for name, value in cells.items())
    title = take("title", "name") or next(iter(cells.values()))
    return Document(id=fallback_id, title=" ".join(title.split()), text=text)
