"""Keyword search: BM25 in SQLite's FTS5, in the same file and transaction as the documents.

SQLite keeps the inverted index, so adding and removing are incremental and as crash-safe as the documents themselves.
Words are folded and stemmed by FTS5's tokenizers ``unicode61`` and ``porter``. ``benchmarks/sparse.py`` compares this
with bm25s, tantivy and rank-bm25.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from ..models.errors import RestillError
from ..models.text import well_formed

TABLE = "sparse"

TITLE_WEIGHT = 4.0
"""How often a word of the title counts; from 1 to 4, nDCG@10 rises by 0.6 to 2.8 points on three collections."""

STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both but
    by can could did do does doing down during each few for from further had has have having he her here hers herself
    him himself his how i if in into is it its itself just me more most my myself no nor not of off on once only or
    other our ours ourselves out over own same she should so some such than that the their theirs them themselves then
    there these they this those through to too under until up very was we were what when where which while who whom why
    will with would you your yours yourself yourselves aren couldn d didn doesn hadn hasn isn ll m re s shouldn t ve
    wasn weren wouldn
    """.split()
)
"""The usual English list (Snowball's, NLTK's), without contractions' pieces that are words: don, haven, ma, won."""

# What unicode61 takes for a word: letters and digits, no underscore; and the marks over and under them that it drops.
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u0331])*")


def create(connection: sqlite3.Connection) -> None:
    """Make the table, unless it is there."""
    connection.execute(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {TABLE} "
        "USING fts5(title, text, tokenize = 'porter unicode61 remove_diacritics 2')"
    )


def add(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, str]]) -> None:
    """Index (row, title, text) within the caller's transaction.

    Raises:
        sqlite3.IntegrityError: a row is there already.
    """
    connection.executemany(
        f"INSERT INTO {TABLE} (rowid, title, text) VALUES (?, ?, ?)",
        ((int(row), _storable(title), _storable(text)) for row, title, text in rows),
    )


def remove(connection: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Forget these rows within the caller's transaction; unknown ones are passed over."""
    connection.executemany(f"DELETE FROM {TABLE} WHERE rowid = ?", ((int(row),) for row in rows))


def rebuild(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, str]]) -> None:
    """Replace the table, damaged or not, by one of these (row, title, text), within the caller's transaction."""
    connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
    create(connection)
    add(connection, rows)


def search(
    connection: sqlite3.Connection, queries: Sequence[str], k: int, allowed: np.ndarray | None = None
) -> list[list[tuple[int, float]]]:
    """The ``k`` best (row, score) of each query, best first, equal scores by row.

    Rows that share no word with the query are never returned. Stop words of the query are left out, unless nothing
    else is in it. The score is Okapi BM25 as FTS5 has it: k1 = 1.2, b = 0.75, a negative idf taken as 1e-6 (SQLite
    FTS5, "The bm25() function"); its statistics are those of the whole table, also under a filter.

    Args:
        queries: plain text; whatever it holds is never read as FTS5 syntax.
        k: at most this many results.
        allowed: the rows to search among (int64); None means all.
    """
    where, flags = "", ()
    if allowed is not None:
        if not len(allowed):
            return [[] for _ in queries]
        # One byte a row: looking one up costs the same, however many are allowed.
        marks = np.zeros(int(allowed.max()) + 1, np.uint8)
        marks[allowed] = 1
        where, flags = "AND substr(?, rowid + 1, 1) = x'01'", (marks.tobytes(),)
    statement = (
        f"SELECT rowid, -bm25({TABLE}, {TITLE_WEIGHT}, 1.0) AS score FROM {TABLE} "
        f"WHERE {TABLE} MATCH ? {where} ORDER BY score DESC, rowid LIMIT ?"
    )
    found: list[list[tuple[int, float]]] = []
    for query in queries:
        expression = _expression(query)
        hits = connection.execute(statement, (expression, *flags, k)) if expression else ()
        found.append([(row, score) for row, score in hits])
    return found


def check(connection: sqlite3.Connection) -> set[int]:
    """The rows in the table, after FTS5 has compared its inverted index with their text.

    Needs a connection that may write; nothing is written.

    Raises:
        RestillError: the inverted index does not agree with the text.
    """
    in_transaction = connection.in_transaction
    try:
        connection.execute(f"INSERT INTO {TABLE} ({TABLE}) VALUES ('integrity-check')")
        rows = {row for (row,) in connection.execute(f"SELECT rowid FROM {TABLE}")}
    except sqlite3.DatabaseError as error:
        if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
            raise
        raise RestillError(f"the sparse index is damaged ({error}); run `restill index --repair`") from error
    finally:
        if not in_transaction:
            connection.rollback()
    return rows


def _expression(query: str) -> str:
    """The query in FTS5's syntax: its words, quoted, joined by OR."""
    # FTS5 folds the words itself; lower() can make two characters of one, the second of which would cut a word.
    words = _WORD.findall(_storable(query))
    words = [word for word in words if word.lower() not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in words)


def _storable(text: str) -> str:
    """Composed characters, since ``_WORD`` cuts at combining marks; without NUL and lone surrogates, which SQLite
    reads as the end of the text and refuses."""
    return well_formed(unicodedata.normalize("NFC", text).replace("\0", " "))
