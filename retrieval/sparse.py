"""Keyword search: BM25 in SQLite's FTS5, in the same file and transaction as the documents.

SQLite keeps the inverted index, so it is incremental, crash-safe and readable during a write. The words are stemmed by
FTS5's Porter tokenizer after Unicode folding. Scores are Okapi BM25 with k1 = 1.2 and b = 0.75 (FTS5, "The bm25()
function").
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence

import numpy as np

from ..models.errors import RestillError

TABLE = "sparse"
TITLE_WEIGHT = 1.0

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)
"""Lucene's English stop words."""

_WORD = re.compile(r"\w+")


def create(connection: sqlite3.Connection) -> None:
    """Make the table if it is not there."""
    connection.execute(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {TABLE} "
        "USING fts5(title, text, tokenize = 'porter unicode61 remove_diacritics 2')"
    )


def add(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, str]]) -> None:
    """Index (row, title, text); a row must be new. The caller commits."""
    connection.executemany(
        f"INSERT INTO {TABLE} (rowid, title, text) VALUES (?, ?, ?)",
        ((int(row), _clean(title), _clean(text)) for row, title, text in rows),
    )


def remove(connection: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Forget these rows; unknown ones are ignored. The caller commits."""
    connection.executemany(f"DELETE FROM {TABLE} WHERE rowid = ?", ((int(row),) for row in rows))


def search(
    connection: sqlite3.Connection, queries: Sequence[str], k: int, allowed: np.ndarray | None = None
) -> list[list[tuple[int, float]]]:
    """The ``k`` best (row, score) of each query, best first, equal scores by row.

    A row must share at least one word with the query. The statistics are those of the whole table, also under a filter.

    Args:
        queries: plain text; whatever it holds, it is never read as FTS5 syntax.
        k: at most this many results.
        allowed: the rows to search among (int64); None means all.
    """
    if allowed is not None and not len(allowed):
        return [[] for _ in queries]
    where, flags = "", ()
    if allowed is not None:
        # One byte a row: a lookup costs the same for few and for many allowed rows.
        bitmap = np.zeros(int(allowed.max()) + 1, np.uint8)
        bitmap[allowed] = 1
        where, flags = "AND substr(?, rowid + 1, 1) = x'01'", (bitmap.tobytes(),)
    statement = (
        f"SELECT rowid, -bm25({TABLE}, {TITLE_WEIGHT}, 1.0) AS score FROM {TABLE} "
        f"WHERE {TABLE} MATCH ? {where} ORDER BY score DESC, rowid LIMIT ?"
    )
    found = []
    for query in queries:
        match = _match(query)
        rows = connection.execute(statement, (match, *flags, k)) if match else ()
        found.append([(int(row), float(score)) for row, score in rows])
    return found


def check(connection: sqlite3.Connection) -> set[int]:
    """The rows in the table, after FTS5 has compared its index with them.

    Raises:
        RestillError: index and rows do not agree.
    """
    try:
        connection.execute(f"INSERT INTO {TABLE} ({TABLE}) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        raise RestillError(f"the sparse index is damaged ({error}); run `restill index --repair`") from error
    return {row for (row,) in connection.execute(f"SELECT rowid FROM {TABLE}")}


def _match(query: str) -> str:
    """The query as an FTS5 expression: its words, each quoted, joined by OR; stop words only if nothing else is left."""
    words = list(dict.fromkeys(_WORD.findall(_clean(query).lower())))
    words = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in words)


def _clean(text: str) -> str:
    """Without what SQLite cannot store in a text: lone surrogates, and NUL, at which FTS5 would stop."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
