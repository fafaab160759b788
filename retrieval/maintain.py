"""Keeping an index folder up to date with the files it was made from: what ``restill index`` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..models.errors import RestillError
from .build import DEFAULT_ENCODER, Changes, create_index, embed, load_encoder, put
from .check import some
from .faiss_file import advise, checked_kind
from .folder import VERSION, is_index, read_manifest
from .index import Index
from .load import LoadReport, load
from .types import Encoder


def bring_up_to_date(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    *,
    encoder: str | Encoder | None = None,
    fetch: Callable[[str], Any] = lambda name: None,
    chunk_tokens: int | None = None,
    kind: str | None = None,
    delete: Sequence[str] = (),
    prune: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Make the index, or add and replace what ``paths`` hold now; unchanged documents cost no embedding.

    Args:
        encoder: of a new index; an index that is there keeps its own, and another is refused.
        fetch: called with the encoder's name before it is loaded.
        chunk_tokens: of a new index; see ``Index.create``.
        kind: use this kind of FAISS file from now on.
        delete: ids of documents to delete.
        prune: delete documents whose file under ``paths`` is gone, or no longer holds them. A file that is there but
            cannot be read, or whose folder cannot, keeps its documents.
        progress: show a progress bar.

    Returns:
        Plain values for a report: numbers of documents and passages, what changed, warnings.

    Raises:
        RestillError: nothing readable is in ``paths``, an option contradicts the index, a document would take the
            place of one from another source, or the index cannot be written.
    """
    folder = Path(folder)
    report = load(*paths) if paths else LoadReport()
    if is_index(folder):
        version = read_manifest(folder, any_version=True).get("version")
        if version != VERSION:
            raise RestillError(
                f"{folder}: index of format version {version!r}, this restill writes {VERSION}; "
                "remove it or give another folder, and build it again"
            )
        index = Index.open(folder)
        _check_options(index, encoder, chunk_tokens)
        name = encoder or index.encoder
    elif not paths:
        raise RestillError(f"{folder} is no index; give files or folders to make one of")
    else:
        index, name = None, encoder or DEFAULT_ENCODER
    checked_kind(kind or "flat", 0)
    changes = Changes()
    if paths or index is None:
        if isinstance(name, str):
            fetch(name)
        model = load_encoder(name)
        if index is None:
            index = create_index(folder, name, model, chunk_tokens=chunk_tokens, kind=kind or "flat")
        elif model.fingerprint != index.encoder_fingerprint:
            raise RestillError(
                f"{folder} was built with another {index.encoder!r}; build it again, or bring that one back"
            )
    else:
        model = None
    gone = _gone(index, report, paths)
    deleted = list({**dict.fromkeys(delete), **dict.fromkeys(gone if prune else ())})
    _refuse_displacing(index, report, deleted)
    if deleted:
        index.write([], delete=[str(doc_id) for doc_id in deleted])
    if model is not None:
        index.mark_unfinished(True)
        changes = put(index, report.documents, model, replace=True, progress=progress)
        index.mark_unfinished(False)
    if kind is not None and kind != index.kind:
        index.compact(kind)
    elif index.view.meta["faiss"] is None:
        index.compact()
    else:
        index.compact_if_due(1)
    index.refresh()
    return {
        "index": str(folder),
        "documents": index.view.meta["documents"],
        "passages": len(index),
        "fingerprint": index.fingerprint,
        "added": changes.added,
        "updated": changes.updated,
        "unchanged": changes.unchanged,
        "embedded": changes.embedded,
        "deleted": len(deleted),
        "warnings": _warnings(index, report, [] if prune else gone),
    }


def check_index(folder: str | os.PathLike[str]) -> list[str]:
    """What does not agree in ``folder``, a sentence each, even where it cannot be opened; see `check.check`."""
    return Index.open(folder, derived=False).check()


def repair_index(folder: str | os.PathLike[str]) -> list[str]:
    """Make again whatever does not agree; returns what is left; see `check.repair`."""
    index = Index.open(folder, derived=False)
    return index.repair(lambda chunks: embed(chunks, load_encoder(index.encoder), index.chunk_tokens))


def _check_options(index: Index, encoder: str | Encoder | None, chunk_tokens: int | None) -> None:
    if isinstance(encoder, str) and encoder != index.encoder:
        raise RestillError(
            f"{index.folder} was built with encoder {index.encoder!r}, not {encoder!r}; give another --out"
        )
    if chunk_tokens is not None and chunk_tokens != index.chunk_tokens:
        raise RestillError(
            f"{index.folder} has passages of {index.chunk_tokens or 'all the encoder takes'} tokens, "
            f"not {chunk_tokens}; give another --out"
        )


def _gone(index: Index, report: LoadReport, paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Documents that came from under ``paths`` and are there no more."""
    roots = {str(path) for path in paths} | {os.path.abspath(path) for path in paths}
    there = {document.id for document in report.documents}
    read = {document.source for document in report.documents}
    gone = []
    for doc_id, source in index.view.store.select("SELECT doc_id, source FROM documents WHERE source IS NOT NULL"):
        above = {source, *map(str, Path(source).parents)}
        if doc_id in there or above & report.unreadable.keys() or not roots & above:
            continue
        if source in read or not os.path.exists(source):
            gone.append(doc_id)
    return gone


def _refuse_displacing(index: Index, report: LoadReport, deleted: Sequence[str]) -> None:
    """Two folders that hold a file of one name give documents of one id; the second must not replace the first.

    A file that moved may: its former place is empty.
    """
    coming = {document.id: document.source for document in report.documents}
    for doc_id in deleted:
        coming.pop(doc_id, None)
    read = set(coming.values())
    statement = "SELECT doc_id, source FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))"
    for doc_id, source in index.view.store.select(statement, [json.dumps(list(coming))]):
        ours = coming[doc_id]
        if source is None or ours is None or source in read or not _is_there(source) or _same_file(source, ours):
            continue
        raise RestillError(
            f"document id {doc_id!r}: {ours} would replace {source}, which is still there; "
            "give another --out, or index both in one call with a folder that holds both"
        )


def _is_there(source: str) -> bool:
    return source.lower().startswith(("http://", "https://")) or os.path.exists(source)


def _same_file(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _warnings(index: Index, report: LoadReport, kept: list[str]) -> list[str]:
    warnings = list(report.warnings)
    warnings += [f"left out: {count} files {suffix}" for suffix, count in report.skipped.items()]
    if kept:
        warnings.append(f"{len(kept)} documents are gone from the files given; --prune would delete {some(kept)}")
    better = advise(len(index))
    if index.kind == "flat" and better != "flat":
        warnings.append(f"{len(index)} passages: --kind {better} would answer single queries many times faster")
    return warnings
