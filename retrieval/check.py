"""Does what is derived agree with the store, and the store with itself? And making it so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import faiss
import numpy as np

from ..models.errors import RestillError
from . import faiss_file, filters, sparse
from .exact import stored_vectors
from .store import Store
from .types import Chunk, Document
from .view import View
from .write import chunks_digest, document_hash, vector_hash

if TYPE_CHECKING:
    from .index import Index

_SHOWN = 5


def check(index: Index) -> list[str]:
    """Everything that does not agree, a sentence each; empty for a sound index. Reads all of it, as of one moment.

    SQLite's own structures; documents and passages against their hashes; vectors against theirs; the terms of
    filters and the counts; the sparse index; the FAISS file's SHA-256, rows and vectors. A file that a crash
    left and nobody refers to is no disagreement: `repair` and the next compaction remove it. FTS5 can only check itself
    where it may write; elsewhere, or while another writer holds the store for long, a sentence says that this was left.
    """
    return [f"{index.folder}: {problem}" for problem in _problems(index)]


def repair(index: Index, embed: Callable[[list[Chunk]], np.ndarray]) -> list[str]:
    """Make all that is derived again from the documents and passages, and embed passages whose vector is damaged.

    Returns:
        What `check` still finds: damage to documents themselves, which only adding them again can mend. Their hashes,
        and metadata that is no JSON, are blanked, so that this replaces all of them, also where the recorded hashes
        are those of the original.
    """
    store = index.writer
    with store.transaction():
        for number in [number for number, _, _, sound in _read(store) if not sound]:
            _blank_broken_json(store, number)
            store.connection.execute("UPDATE documents SET hash = '' WHERE document = ?", [number])
            store.connection.execute("UPDATE chunks SET content_hash = 'damaged' WHERE document = ?", [number])
        _repair_vectors(index, embed)
        connection = store.connection
        connection.execute("DELETE FROM terms")
        for number, metadata in store.select("SELECT document, metadata FROM documents"):
            rows = [(key, value, number) for key, value in filters.terms(json.loads(metadata))]
            connection.executemany("INSERT INTO terms VALUES (?, ?, ?)", rows)
        sparse.rebuild(connection, _texts(connection))
        digests = [int(digest, 16) for (digest,) in store.select("SELECT digest FROM documents")]
        meta = store.meta()
        store.set_meta(
            generation=meta["generation"] + 1,
            documents=len(digests),
            chunks=store.select("SELECT count(*) FROM chunks")[0][0],
            contents=f"{sum(digests) % (1 << 256):x}",
            faiss=None,
            purged=meta["generation"] + 1,
        )
        connection.execute("DELETE FROM deleted")
    index.view = View.open(index.folder, index.view.dense.threads)
    index.compact()
    return check(index)


def _blank_broken_json(store: Store, number: int) -> None:
    """Put ``{}`` in the place of whatever of a document should be a JSON object and is none."""
    for table, column in (("documents", "metadata"), ("documents", "extra"), ("chunks", "extra")):
        for (value,) in store.select(f"SELECT DISTINCT {column} FROM {table} WHERE document = ?", [number]):
            try:
                whole = isinstance(json.loads(value), dict)
            except (ValueError, TypeError, RecursionError):
                whole = False
            if not whole:
                statement = f"UPDATE {table} SET {column} = '{{}}' WHERE document = ? AND {column} IS ?"
                store.connection.execute(statement, [number, value])


def _texts(connection: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
    # Begins when the first is asked for: a table cannot be dropped while something is being read.
    yield from connection.execute("SELECT row, title, chunks.text FROM chunks JOIN documents USING (document)")


def _repair_vectors(index: Index, embed: Callable[[list[Chunk]], np.ndarray]) -> None:
    store = index.writer
    store.connection.execute("DELETE FROM vectors WHERE row NOT IN (SELECT row FROM chunks)")
    sound = set()
    for row, blob, known in store.connection.execute("SELECT row, vector, hash FROM vectors"):
        if len(blob) == 4 * index.dim and vector_hash(blob) == known:
            sound.add(row)
    lost = [row for (row,) in store.select("SELECT row FROM chunks ORDER BY row") if row not in sound]
    for at in range(0, len(lost), 1024):
        rows = lost[at : at + 1024]
        blobs = [np.asarray(vector, "<f4").tobytes() for vector in embed(store.chunks(rows))]
        values = [(row, blob, vector_hash(blob)) for row, blob in zip(rows, blobs, strict=True)]
        store.connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", values)


def _problems(index: Index) -> Iterator[str]:
    view, there, problem = _at_one_moment(index)
    store = view.store
    try:
        found = [text for (text,) in store.select("PRAGMA integrity_check(10)")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    if found != ["ok"]:
        yield f"SQLite finds damage: {'; '.join(found)}"
        return
    yield from _documents(view)
    yield from _vectors(view)
    yield from _sparse(view, there, problem)
    yield from _faiss(index, view)


def _read(store: Store) -> Iterator[tuple[int, str, Document | None, bool]]:
    """Every document's number, id and content, and whether it and its passages are what their hashes say.

    Without content where metadata or the like cannot be read.
    """
    last = -1
    statement = (
        "SELECT document, doc_id, source, title, text, metadata, extra, hash, digest FROM documents "
        "WHERE document > ? ORDER BY document LIMIT 100"
    )
    while batch := store.select(statement, [last]):
        for number, doc_id, source, title, text, metadata, extra, known, digest in batch:
            try:
                values = {"metadata": json.loads(metadata), **json.loads(extra)}
                document = Document(id=doc_id, source=source, title=title, text=text, **values)
                rows = [row for (row,) in store.select("SELECT row FROM chunks WHERE document = ?", [number])]
                chunks = sorted(store.chunks(rows), key=lambda chunk: (chunk.start, chunk.end))
            except (RestillError, ValueError, TypeError, RecursionError):
                yield number, doc_id, None, False
                continue
            whole = all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
            sound = whole and document_hash(document) == known and chunks_digest(chunks) == digest
            yield number, doc_id, document, sound
        last = batch[-1][0]


def _documents(view: View) -> Iterator[str]:
    store, changed, terms = view.store, [], 0
    for number, doc_id, document, sound in _read(store):
        if not sound:
            changed.append(doc_id)
        pairs = store.select("SELECT key, value FROM terms WHERE document = ?", [number])
        if document is not None and set(pairs) != filters.terms(document.metadata):
            terms += 1
    total = sum(int(digest, 16) for (digest,) in store.select("SELECT digest FROM documents"))
    count = store.select("SELECT count(*) FROM chunks JOIN documents USING (document)")[0][0]
    if changed:
        yield f"{len(changed)} documents or their passages were changed: {some(changed)}; repair, then add them again"
    if terms:
        yield f"the filters of {terms} documents do not agree with their metadata"
    meta = view.meta
    if (meta["chunks"], int(meta["contents"], 16)) != (count, total % (1 << 256)):
        yield f"the recorded number or fingerprint of passages is wrong: {meta['chunks']} recorded, {count} there"
    lost = store.select("SELECT count(*) FROM chunks WHERE document NOT IN (SELECT document FROM documents)")[0][0]
    if lost:
        yield f"{lost} passages belong to no document"


def _vectors(view: View) -> Iterator[str]:
    store = view.store
    missing = [row for (row,) in store.select("SELECT row FROM chunks WHERE row NOT IN (SELECT row FROM vectors)")]
    surplus = [row for (row,) in store.select("SELECT row FROM vectors WHERE row NOT IN (SELECT row FROM chunks)")]
    with store.lock:
        damaged = [
            row
            for row, blob, known in store.connection.execute("SELECT row, vector, hash FROM vectors")
            if len(blob) != 4 * view.meta["dim"] or vector_hash(blob) != known
        ]
    for rows, words in ((missing, "have no vector"), (surplus, "have a vector but no passage")):
        if rows:
            yield f"{len(rows)} rows {words}: {some(rows)}"
    if damaged:
        yield f"{len(damaged)} vectors do not have their hash: rows {some(damaged)}"


def _at_one_moment(index: Index) -> tuple[View, set[int], str | None]:
    """The store, the rows in its sparse index at the same moment, and what is wrong with that or was not checked."""
    view = None
    try:
        with index.writer.transaction():  # others commit before or after
            view = View.open(index.folder, derived=False)
            return view, sparse.check(index.writer.connection), None
    except (RestillError, sqlite3.Error) as error:
        if view is not None:
            return view, set(), str(error)
        return View.open(index.folder, derived=False), set(), f"the sparse index was not checked: {error}"


def _sparse(view: View, there: set[int], problem: str | None) -> Iterator[str]:
    if problem is not None:
        yield problem
        return
    live = {row for (row,) in view.store.select("SELECT row FROM chunks")}
    if there != live:
        yield f"the sparse index lacks {len(live - there)} rows and has {len(there - live)} too many"


def _faiss(index: Index, view: View) -> Iterator[str]:
    recorded = view.meta["faiss"]
    if recorded is None:
        return
    try:
        base, record = faiss_file.read(index.folder, recorded, whole=True)
    except FileNotFoundError as error:
        now = View.open(index.folder, derived=False)
        if now.meta["faiss"] == recorded:
            yield f"{error.filename} is missing"
        else:  # compaction put another in its place meanwhile
            yield from _faiss(index, now)
        return
    except RestillError as error:
        yield str(error)
        return
    store = view.store
    rows = faiss.vector_to_array(base.id_map)
    live = np.array([row for (row,) in store.select("SELECT row FROM chunks ORDER BY row")], np.int64)
    deleted = np.array([row for (row,) in store.select("SELECT row FROM deleted")], np.int64)
    expected = live[live <= record.last_row]
    found = rows[~np.isin(rows, deleted)]
    if not np.array_equal(found, expected):
        lacks, extra = np.setdiff1d(expected, found), np.setdiff1d(found, expected)
        yield f"{record.name} lacks {len(lacks)} rows and has {len(extra)} too many: {some([*lacks, *extra])}"
    if record.kind == "ivf":  # codes are rounded; that they are those written, the SHA-256 has shown
        return
    whole = stored_vectors(faiss.downcast_index(base.index), record.kind)
    differ: list[int] = []
    for numbers, vectors in store.vectors_after(-1, index.dim):
        at = np.searchsorted(rows, numbers)
        there = (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == numbers)
        differ += numbers[there][(whole[at[there]] != vectors[there]).any(1)].tolist()
    if differ:
        yield f"{record.name} has other vectors than the store for {len(differ)} rows: {some(differ)}"


def some(values: Sequence[object]) -> str:
    """The first few of ``values``, for a message."""
    return ", ".join(map(str, values[:_SHOWN])) + (" …" if len(values) > _SHOWN else "")
