"""The store: one SQLite file that holds documents, passages and vectors, and is the only truth about them.

What was committed survives kill -9 and, since every commit is flushed (``synchronous=FULL``
in WAL mode), a loss of power as well, as far as the disk keeps what it said it had written. What is derived (the
FAISS file) is recorded here after it is written, so a crash at any moment leaves at most a file nobody refers to.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..models.errors import RestillError
from . import filters, sparse
from .types import Chunk, Document

BUSY_SECONDS = 60.0
"""How long a writer waits for another one."""

LOG_LIMIT = 32 << 20
"""Bytes of the write-ahead log from which it is written into the store and begun again, and which its file keeps."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    document INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, source TEXT, title TEXT NOT NULL,
    folded TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL, extra TEXT NOT NULL,
    hash TEXT NOT NULL, digest TEXT NOT NULL
);
CREATE INDEX documents_by_title ON documents (title);
CREATE INDEX documents_by_folded ON documents (folded);
CREATE INDEX documents_by_source ON documents (source);
-- AUTOINCREMENT: the number of a deleted row is never given again, or a FAISS file would find another text under it.
CREATE TABLE chunks (
    row INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents, chunk_id TEXT NOT NULL,
    start INTEGER NOT NULL, "end" INTEGER NOT NULL, content_hash TEXT NOT NULL, extra TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX chunks_of_document ON chunks (document, chunk_id);
-- Apart from the texts, which are read far more often.
CREATE TABLE vectors (row INTEGER PRIMARY KEY, vector BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE deleted (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
"""

_CHUNK = """SELECT row, chunk_id, doc_id, title, chunks.text, start, "end", content_hash, metadata, chunks.extra
FROM chunks JOIN documents USING (document)"""
_FIELDS = ("chunk_id", "doc_id", "title", "text", "start", "end", "content_hash")


class Store:
    """One connection; threads may share it.

    Use `create`, `writer` or `snapshot`. A snapshot is read-only and sees what was committed when it was taken.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = threading.RLock()

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any], *, durable: bool = True) -> Store:
        """Make the file with its tables; ``meta`` is what describes it."""
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA page_size = 8192")  # five vectors of 384 floats a page
        connection.execute("PRAGMA journal_mode = WAL")
        store = cls._writing(connection, durable)
        with store.transaction():
            for statement in (_SCHEMA + filters.SCHEMA).split(";"):
                connection.execute(statement)
            sparse.create(connection)
            store.set_meta(generation=0, documents=0, chunks=0, contents="0", durable=durable, **meta)
        return store

    @classmethod
    def writer(cls, path: Path) -> Store:
        """Open for writing."""
        store = cls._writing(_connect(f"{path.absolute().as_uri()}?mode=rw"), True)
        if not store.meta().get("durable", True):
            store.connection.execute("PRAGMA synchronous = OFF")
        return store

    @classmethod
    def snapshot(cls, path: Path) -> Store:
        """What is committed now, for reading; writers go on, and keep what it sees until it is closed.

        Raises:
            RestillError: there is no store, it is damaged, or where nothing can be written it has an unread log.
        """
        uri = f"{path.absolute().as_uri()}?mode=ro"
        try:
            try:
                return cls(_connect(uri))._reading()
            except sqlite3.OperationalError as error:
                # Shared memory cannot be made on a read-only medium; nor can anyone write there.
                if "unable to open" not in str(error) and "readonly" not in str(error):
                    raise
                log = path.with_name(f"{path.name}-wal")
                if log.exists() and log.stat().st_size:
                    raise RestillError(
                        f"{path}: {error}; {log.name} holds changes that can only be read where the folder can be "
                        "written: open the index there once, or copy the folder to such a place"
                    ) from error
                return cls(_connect(f"{uri}&immutable=1"))._reading()
        except (sqlite3.OperationalError, OSError) as error:
            raise RestillError(f"{path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise RestillError(f"{path}: is no store, or damaged ({error}); restore it or build it again") from error

    @classmethod
    def _writing(cls, connection: sqlite3.Connection, durable: bool) -> Store:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")  # else a log once long stays so on the disk
        return cls(connection)

    def _reading(self) -> Store:
        self.connection.execute("BEGIN")
        self.connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
        return self

    def copy_to(self, path: Path) -> None:
        """Write what this connection sees to a new file, flushed to the disk."""
        with self.lock, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as target:
            target.execute("PRAGMA synchronous = FULL")
            self.connection.backup(target)
            target.execute("UPDATE meta SET value = 'true' WHERE key = 'durable'")

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self.connection.close()

    def __del__(self) -> None:
        # A connection is part of a cycle: left to itself it would hold its snapshot until the cycle is collected.
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; other writers wait.

        Raises:
            RestillError: another writer held the store too long, or the disk is full.
        """
        with self.lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise RestillError(f"the store cannot be written: {error}; nothing was changed") from error

    def meta(self) -> dict[str, Any]:
        """What is recorded of the store as a whole."""
        with self.lock:
            return {key: json.loads(value) for key, value in self.connection.execute("SELECT * FROM meta")}

    def set_meta(self, **values: Any) -> None:
        """Record ``values`` (JSON), within a transaction."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def select(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        """All rows of a query."""
        with self.lock:
            return self.connection.execute(statement, values).fetchall()

    def chunks(self, rows: Iterable[int]) -> list[Chunk]:
        """The passages of ``rows``, in this order.

        Raises:
            RestillError: a row is not there.
        """
        wanted = [int(row) for row in rows]
        found = {
            row[0]: _chunk(row)
            for row in self.select(f"{_CHUNK} WHERE row IN (SELECT value FROM json_each(?))", [json.dumps(wanted)])
        }
        try:
            return [found[row] for row in wanted]
        except KeyError as error:
            raise RestillError(f"the store has no row {error}; run `restill index --check`") from error

    def all_chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Every row and its passage, in order of rows, a thousand at a time."""
        last = -1
        while batch := self.select(f"{_CHUNK} WHERE row > ? ORDER BY row LIMIT 1000", [last]):
            yield from ((row[0], _chunk(row)) for row in batch)
            last = batch[-1][0]

    def all_documents(self) -> Iterator[Document]:
        """Every document, in the order they came, a thousand at a time."""
        last = -1
        columns = "document, doc_id, title, text, metadata"
        statement = f"SELECT {columns} FROM documents WHERE document > ? ORDER BY document LIMIT 1000"
        while batch := self.select(statement, [last]):
            for _, doc_id, title, text, metadata in batch:
                try:
                    yield Document(id=doc_id, title=title, text=text, metadata=json.loads(metadata))
                except (ValueError, RecursionError) as error:
                    raise damaged(doc_id, error) from error
            last = batch[-1][0]

    def rows(self) -> np.ndarray:
        """All rows, int64 ascending; read from an index, which is smaller than the tables."""
        with self.lock:
            found = self.connection.execute("SELECT row FROM chunks INDEXED BY chunks_of_document")
            return np.sort(np.fromiter((row for (row,) in found), np.int64))

    def vectors(self, rows: np.ndarray, dim: int) -> np.ndarray:
        """The vectors of ``rows`` (int64 [N], ascending), f32 [N, dim].

        Raises:
            RestillError: one is missing.
        """
        found = self.select(
            "SELECT vector FROM vectors WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
            [json.dumps(rows.tolist())],
        )
        if len(found) != len(rows):
            raise RestillError(f"{len(rows) - len(found)} vectors are missing; run `restill index --repair`")
        return np.frombuffer(b"".join(blob for (blob,) in found), np.float32).reshape(len(rows), dim)

    def vectors_after(self, row: int, dim: int, *, batch: int = 8192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows above ``row`` int64 [N] and their vectors f32 [N, dim], in order, batch by batch."""
        while found := self.select("SELECT row, vector FROM vectors WHERE row > ? ORDER BY row LIMIT ?", [row, batch]):
            rows = np.fromiter((number for number, _ in found), np.int64)
            yield rows, np.frombuffer(b"".join(blob for _, blob in found), np.float32).reshape(len(found), dim)
            row = int(rows[-1])

    def hashes(self, doc_ids: Iterable[str]) -> dict[str, str]:
        """Content hashes of those of ``doc_ids`` that are there; see `document_hash`."""
        ids = json.dumps(list(doc_ids))
        return dict(
            self.select("SELECT doc_id, hash FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))", [ids])
        )

    def embedded(self, doc_id: str) -> set[str]:
        """Content hashes of a document's passages."""
        found = self.select(
            "SELECT content_hash FROM documents JOIN chunks USING (document) WHERE doc_id = ?", [doc_id]
        )
        return {value for (value,) in found}


def _chunk(row: tuple) -> Chunk:
    values = dict(zip(_FIELDS, row[1:8], strict=True))
    try:
        return Chunk(**values, metadata=json.loads(row[8]), **json.loads(row[9]))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(row[2], error) from error


def damaged(doc_id: str, error: Exception) -> RestillError:
    """The error of a document whose JSON cannot be read."""
    return RestillError(f"document {doc_id!r} is damaged ({error}); run `restill index --check`")


def _connect(uri: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise RestillError(f"{uri}: {error}") from error
