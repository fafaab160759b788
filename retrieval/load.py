"""Read documents from files and folders: text, Markdown, HTML, PDF and JSONL collections.

Formats live in ``formats.py``; here is the walk over paths and what is done when a file gives nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..models.errors import RestillError
from .formats import COLLECTIONS, READERS, UnreadableFile, read_collection, read_file
from .index import is_index
from .types import Document


@dataclass
class LoadReport:
    """What ``load`` found.

    Attributes:
        documents: in the order of the walk.
        files: number of files that gave at least one document.
        skipped: number of files left out because of their suffix, by suffix.
        warnings: one sentence for everything else left out (a scanned PDF, an empty file, ...).
    """

    documents: list[Document] = field(default_factory=list)
    files: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def load(*paths: str | os.PathLike[str]) -> LoadReport:
    """Read every document under ``paths``, files or folders.

    Folders are walked recursively in sorted order; hidden files and files of unknown suffix are left out, the
    latter counted. A document's id is its path relative to the path given (its name, for a file), or its
    ``_id`` in a JSONL collection. A file without readable text is left out with a warning as long as others
    give documents.

    Raises:
        RestillError: a path is missing, nothing was found, a JSONL line is broken, or an id occurs twice.
    """
    if not paths:
        raise RestillError("no path given; name a file or folder with documents")
    report = LoadReport()
    sources: dict[str, str] = {}
    unreadable: list[UnreadableFile] = []
    for path in map(Path, paths):
        for file, name in _files(path, report):
            try:
                found = list(_read(file, name, report))
            except UnreadableFile as error:
                unreadable.append(error)
                continue
            for document, source in found:
                if document.id in sources:
                    raise RestillError(
                        f"document id {document.id!r} occurs twice: {sources[document.id]} and {source}; "
                        "ids must be unique (rename one, or give the folder that holds both)"
                    )
                sources[document.id] = source
                report.documents.append(document)
            report.files += bool(found)
    report.warnings += map(str, unreadable)
    if not report.documents:
        raise _nothing_found(paths, report, unreadable)
    return report


def _files(path: Path, report: LoadReport) -> Iterator[tuple[Path, str]]:
    """Yield the files to read and their names relative to ``path``."""
    if not path.exists():
        raise RestillError(f"no such file or folder: {path}")
    if not path.is_dir():
        if path.suffix.lower() not in READERS | COLLECTIONS:
            raise RestillError(f"{path}: cannot read {path.suffix or 'a file without suffix'!r}; {_known()}")
        yield path, path.name
        return
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if is_index(folder):
            # Its chunks.jsonl would look like a collection and double every document.
            report.warnings.append(f"{folder}: is an index, not read as documents")
            subfolders.clear()
            continue
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith("."):
                continue
            if file.suffix.lower() in READERS | COLLECTIONS:
                yield file, file.relative_to(path).as_posix()
            else:
                report.skipped[file.suffix.lower() or "(no suffix)"] += 1


def _read(file: Path, name: str, report: LoadReport) -> Iterator[tuple[Document, str]]:
    """Yield the documents of one file, each with the place it came from."""
    if file.suffix.lower() not in COLLECTIONS:
        yield read_file(file, name), str(file)
        return
    without_text = []
    for line, document in read_collection(file, name):
        if document.text.strip():
            yield document, f"{file}:{line}"
        else:
            without_text.append(line)
    if without_text:
        report.warnings.append(
            f"{file}: {len(without_text)} documents without text left out (first in line {without_text[0]})"
        )


def _nothing_found(paths: tuple, report: LoadReport, unreadable: list[UnreadableFile]) -> RestillError:
    if len(unreadable) == 1:
        return unreadable[0]
    where = ", ".join(map(str, paths))
    reasons = report.warnings[:5]
    if report.skipped:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in report.skipped.most_common(5))
        reasons.append(f"left out by suffix: {counts}")
    return RestillError("; ".join([f"no documents found in {where}", *reasons, _known()]))


def _known() -> str:
    return "known suffixes: " + " ".join(sorted(READERS | COLLECTIONS))
