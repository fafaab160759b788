"""Read documents from files, folders and the web, and say of each that cannot be read why.

Formats live in ``formats.py`` and ``records.py``, pages in ``web.py``; here is the walk over paths, and how a file
is read that somebody may be writing.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from ..models.errors import RestillError
from .decode import UnreadableFile
from .folder import is_index
from .formats import COLLECTIONS, READERS, LoadOptions, read_document
from .records import Records, read_csv, read_jsonl
from .types import Document

if TYPE_CHECKING:
    from .web import WebOptions

URL_LIST = ".urls"
"""Suffix of a file with a URL a line; it is read when it is named itself, never because it lies in a folder."""

_T = TypeVar("_T")


@dataclass
class LoadReport:
    """What ``load`` found.

    Attributes:
        documents: in the order of the walk.
        files: number of files and pages that gave at least one document.
        skipped: number of files left out because of their suffix, by suffix.
        warnings: one sentence for everything else left out or read with doubts.
        unreadable: files and pages that gave no document, by source, and why. What an earlier load made of
            them is still the best there is.
    """

    documents: list[Document] = field(default_factory=list)
    files: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def left_out(self, source: str, reason: str) -> None:
        """Note what gave no document."""
        self.unreadable[source] = reason
        self.warnings.append(reason)


def load(
    *paths: str | os.PathLike[str], options: LoadOptions | None = None, web: WebOptions | None = None
) -> LoadReport:
    """Read every document under ``paths``: files, folders, URLs, ``.urls`` files with a URL a line.

    Folders are walked recursively in sorted order; hidden files and files of unknown suffix are left out, the
    latter counted; links to folders are not followed. A document's id is its path relative to the path given
    (its name, for a file), its URL, or its ``_id`` in a collection. What cannot be read is left out with a
    warning as long as something else gives documents; so is a line of a collection whose id an earlier line
    of the same file has.

    Args:
        paths: strings that begin with ``http://`` or ``https://`` are fetched.
        options: limits and encoding of files.
        web: limits, delays and allowed addresses of fetches.

    Raises:
        RestillError: a path is missing (a ``.urls`` file is left out), nothing was found, or an id occurs in two files.
    """
    if not paths:
        raise RestillError("no path given; name a file, a folder or a URL with documents")
    options = options or LoadOptions()
    report = LoadReport()
    sources: dict[str, str] = {}
    for source, place, read in _everything(paths, report, options, web):
        try:
            found = read()
            if not found.documents:
                raise UnreadableFile("; ".join(found.warnings()) or f"{place}: holds no documents")
        except UnreadableFile as error:
            report.left_out(source, str(error))
            continue
        report.warnings += found.warnings()
        for line, document in found.documents:
            where = f"{place}:{line}" if line else place
            if document.id in sources:
                raise RestillError(
                    f"document id {document.id!r} occurs twice: {sources[document.id]} and {where}; "
                    "ids must be unique (rename one, or give the folder that holds both)"
                )
            sources[document.id] = where
            report.documents.append(document.model_copy(update={"source": source}))
        report.files += 1
    if not report.documents:
        raise _nothing_found(paths, report)
    return report


def read_bytes(name: str, place: str, data: bytes, suffix: str, options: LoadOptions) -> Records:
    """The documents in ``data``, of whatever format.

    Raises:
        UnreadableFile: see the readers.
    """
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(name, place, BytesIO(data), options.max_bytes)
    if suffix in COLLECTIONS:
        delimiter = "\t" if suffix == ".tsv" else None
        return read_csv(name, place, data, options.fallback_encoding, delimiter)
    document, warning = read_document(name, place, data, suffix, options)
    return Records(place, [(0, document)], notes=[warning] if warning else [])


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written anywhere; bytes of a name that are not UTF-8 become ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


_Source = tuple[str, str, Callable[[], Records]]


def _everything(
    paths: tuple[str | os.PathLike[str], ...], report: LoadReport, options: LoadOptions, web: WebOptions | None
) -> Iterator[_Source]:
    """Yield (source, place for messages, reader) of all there is to read."""
    urls: list[str] = []
    for given in paths:
        if isinstance(given, str) and given.lower().startswith(("http://", "https://")):
            urls.append(given)
            continue
        path = Path(given)
        if path.suffix.lower() == URL_LIST and not path.is_dir():
            try:
                urls += _listed(path, options)
            except UnreadableFile as error:
                report.left_out(printable(os.path.abspath(path)), str(error))
            continue
        for file, name in _files(path, report):
            yield printable(os.path.abspath(file)), printable(file), _reader(file, name, options)
    if urls:
        from .web import Fetcher

        fetcher = Fetcher(web, options)
        for url in dict.fromkeys(urls):
            yield url, url, lambda url=url: fetcher.read(url)


def _listed(path: Path, options: LoadOptions) -> Iterator[str]:
    """The URLs in a list: one a line, blank lines and lines that start with # apart."""
    place = printable(path)

    def read(stream: IO[bytes]) -> str:
        data = _at_most(stream, place, options.max_bytes)
        return read_document(path.name, place, data, ".txt", options)[0].text

    for line in _stable(path, read).split("\n"):
        if (line := line.strip()) and not line.startswith("#"):
            yield line


def _files(path: Path, report: LoadReport) -> Iterator[tuple[Path, str]]:
    """Yield the files to read and their names relative to ``path``."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise RestillError(f"no such file or folder: {printable(path)} ({error.strerror})") from error
    if not stat.S_ISDIR(found.st_mode):
        if path.suffix.lower() not in READERS | COLLECTIONS:
            raise RestillError(f"{printable(path)}: cannot read {path.suffix or 'a file without suffix'!r}; {_known()}")
        yield path, printable(path.name)
        return

    def unlisted(error: OSError) -> None:
        where = error.filename if error.filename is not None else path
        reason = f"{printable(where)}: the folder cannot be listed ({error.strerror})"
        report.left_out(printable(os.path.abspath(where)), reason)

    for folder, subfolders, names in os.walk(path, onerror=unlisted):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if is_index(folder):
            # Its files would look like a collection and double every document.
            report.warnings.append(f"{printable(folder)}: is an index, not read as documents")
            subfolders.clear()
            continue
        for name in subfolders:
            if os.path.islink(link := os.path.join(folder, name)):
                report.warnings.append(f"{printable(link)}: is a link to a folder, not followed; name it to read it")
        for name in sorted(names):
            file = Path(folder, name)
            suffix = file.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in READERS | COLLECTIONS:
                yield file, printable(file.relative_to(path).as_posix())
            elif suffix == URL_LIST:
                report.warnings.append(f"{printable(file)}: lists URLs, which are fetched only if it is named itself")
            else:
                report.skipped[printable(suffix) or "(no suffix)"] += 1


def _reader(file: Path, name: str, options: LoadOptions) -> Callable[[], Records]:
    place, suffix = printable(file), file.suffix.lower()

    def read(stream: IO[bytes]) -> Records:
        if suffix in (".jsonl", ".ndjson"):
            return read_jsonl(name, place, stream, options.max_bytes)  # a line at a time, however long the file is
        return read_bytes(name, place, _at_most(stream, place, options.max_bytes), suffix, options)

    return lambda: _stable(file, read)


def _at_most(stream: IO[bytes], place: str, limit: int) -> bytes:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnreadableFile(
            f"{place}: {os.fstat(stream.fileno()).st_size} bytes, more than max_bytes={limit}; split it, make it a "
            "JSONL collection, or give LoadOptions(max_bytes=...)"
        )
    return data


def _stable(file: Path, read: Callable[[IO[bytes]], _T]) -> _T:
    """What ``read`` makes of a file that does not change meanwhile; once it is read again.

    Raises:
        UnreadableFile: it changed twice, is no regular file, or cannot be opened or read.
    """
    place = printable(file)
    try:
        for _ in range(2):
            # A pipe would block, a device might never end.
            if not stat.S_ISREG(os.stat(file).st_mode):
                raise UnreadableFile(f"{place}: is no regular file")
            with file.open("rb") as stream:
                before = _state(os.fstat(stream.fileno()))
                try:
                    result = read(stream)
                except UnreadableFile:
                    if before == _state(os.stat(file)):
                        raise
                    continue
                # By its name too: it may have been replaced.
                if before == _state(os.fstat(stream.fileno())) == _state(os.stat(file)):
                    return result
    except OSError as error:
        raise UnreadableFile(f"{place}: cannot be read ({error.strerror or error})") from error
    raise UnreadableFile(f"{place}: changed while it was read, twice; load it again when nobody writes to it")


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _nothing_found(paths: tuple, report: LoadReport) -> RestillError:
    if len(report.warnings) == len(report.unreadable) == 1:
        return UnreadableFile(report.warnings[0])
    reasons = report.warnings[:5]
    if report.skipped:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in report.skipped.most_common(5))
        reasons.append(f"left out by suffix: {counts}")
    return RestillError("; ".join([f"no documents found in {', '.join(map(printable, paths))}", *reasons, _known()]))


def _known() -> str:
    return "known suffixes: " + " ".join(sorted(READERS | COLLECTIONS))
