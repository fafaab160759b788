"""The keyword searchers that ``sparse.py`` compares: each indexes, searches and changes (row, title, text)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restill.retrieval import sparse

STOP_WORDS, TITLE_WEIGHT = sparse.STOP_WORDS, sparse.TITLE_WEIGHT

Page = tuple[int, str, str]
Found = list[list[int]]


class Fts5:
    """``restill.retrieval.sparse``; the second form has neither its stop words nor its title weight."""

    name, changes, batches = "restill: FTS5", True, False

    def __init__(self, folder: Path, plain: bool = False) -> None:
        self.settings = (1.0, frozenset()) if plain else (TITLE_WEIGHT, STOP_WORDS)
        self.file = folder / "fts5.db"
        self.connection = self._connect()
        self.connection.execute("PRAGMA journal_mode = WAL")
        sparse.create(self.connection)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, check_same_thread=False)

    def index(self, pages: Sequence[Page]) -> None:
        sparse.add(self.connection, pages)
        self.connection.commit()
        self.writer = self._connect()

    def close(self) -> None:
        self.connection.close()
        self.writer.close()

    def search(self, queries: Sequence[str], k: int) -> Found:
        sparse.TITLE_WEIGHT, sparse.STOP_WORDS = self.settings
        return [[row for row, _ in hits] for hits in sparse.search(self.connection, queries, k)]

    def change(self, pages: Sequence[Page], rows: Sequence[int]) -> None:
        sparse.remove(self.writer, rows)
        sparse.add(self.writer, pages)
        self.writer.commit()


class Tantivy:
    """The Rust library; title and text are fields of their own, stemmed, with restill's stop words.

    The title's weight is the best of 0.25 to 2 on the three collections together.
    """

    name, changes, batches = "tantivy", True, False

    def __init__(self, folder: Path) -> None:
        import tantivy

        self.library = tantivy
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("row", stored=True, indexed=True)
        for field in ("title", "text"):
            builder.add_text_field(field, tokenizer_name="en_stem")
        (folder / "tantivy").mkdir()
        self.found = tantivy.Index(builder.build(), path=str(folder / "tantivy"))

    def index(self, pages: Sequence[Page]) -> None:
        self.writer = self.found.writer(num_threads=1)
        self.change(pages, [])

    def close(self) -> None:
        self.writer.wait_merging_threads()

    def search(self, queries: Sequence[str], k: int) -> Found:
        searcher = self.found.searcher()
        results = []
        for query in queries:
            words = [word for word in sparse._WORD.findall(query.lower()) if word not in STOP_WORDS]
            parsed, _ = self.found.parse_query_lenient(" ".join(words), ["title", "text"], field_boosts={"title": 0.75})
            hits = searcher.search(parsed, k).hits
            results.append([searcher.doc(address)["row"][0] for _, address in hits])
        return results

    def change(self, pages: Sequence[Page], rows: Sequence[int]) -> None:
        for row in rows:
            self.writer.delete_documents_by_term("row", row)
        for row, title, text in pages:
            self.writer.add_document(self.library.Document(row=row, title=title, text=text))
        self.writer.commit()
        self.found.reload()


class Bm25s:
    """Lucene's method, k1 = 1.2, b = 0.75, Snowball stemmer, title + text; numpy does the sums."""

    name, changes, batches = "bm25s", False, True

    def __init__(self, folder: Path, stop_words: Sequence[str] | str = "en") -> None:
        import Stemmer

        self.options: Any = {
            "stopwords": stop_words,
            "stemmer": Stemmer.Stemmer("english"),
            "show_progress": False,
        }

    def tokens(self, texts: Sequence[str]) -> Any:
        import bm25s

        return bm25s.tokenize(list(texts), **self.options)

    def index(self, pages: Sequence[Page]) -> None:
        import bm25s

        self.rows = np.array([row for row, *_ in pages])
        self.model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self.model.index(self.tokens([f"{title} {text}" for _, title, text in pages]), show_progress=False)

    def close(self) -> None:
        pass

    def search(self, queries: Sequence[str], k: int) -> Found:
        found = [self.model.retrieve(self.tokens([query]), k=k, show_progress=False)[0][0] for query in queries]
        return [self.rows[places].tolist() for places in found]

    def search_batch(self, queries: Sequence[str], k: int) -> Found:
        return self.rows[self.model.retrieve(self.tokens(queries), k=k, show_progress=False)[0]].tolist()


class RankBm25(Bm25s):
    """Okapi over the tokens of bm25s, k1 = 1.2, b = 0.75."""

    name, batches = "rank-bm25", False

    def tokens(self, texts: Sequence[str]) -> Any:
        import bm25s

        return bm25s.tokenize(list(texts), return_ids=False, **self.options)

    def index(self, pages: Sequence[Page]) -> None:
        from rank_bm25 import BM25Okapi

        self.rows = np.array([row for row, *_ in pages])
        self.model = BM25Okapi(self.tokens([f"{title} {text}" for _, title, text in pages]), k1=1.2, b=0.75)

    def search(self, queries: Sequence[str], k: int) -> Found:
        scores = (self.model.get_scores(self.tokens([query])[0]) for query in queries)
        return [self.rows[np.argsort(-values, kind="stable")[:k]].tolist() for values in scores]


SYSTEMS: list[Any] = [Fts5, Tantivy, Bm25s, RankBm25]
VARIANTS: dict[str, Any] = {
    "FTS5 plain": lambda folder: Fts5(folder, plain=True),
    "bm25s with restill's stop words": lambda folder: Bm25s(folder, sorted(STOP_WORDS)),
}
