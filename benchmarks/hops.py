"""Finding every document a question needs: each mode of search, and each part of it with and without.

    python benchmarks/hops.py DATA [--quick] [--json FILE] [--cache FOLDER]

DATA holds the folders hotpotqa, musique and cranfield. Settings were chosen on hotpotqa/train100 and musique/train100;
hotpotqa/dev200 and cranfield are only measured. Differences come with 95 % paired bootstrap intervals over questions.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from restill.models.encoder import TextEncoder
from restill.retrieval import align, sparse
from restill.retrieval.fusion import best_of, reciprocal_rank_fusion
from restill.retrieval.hops import DocumentGraph
from restill.retrieval.intervals import paired_interval
from restill.retrieval.metrics import all_gold, ndcg, read_qrels, recall
from restill.retrieval.pipeline import FirstStage, Search, Settings, hops, hybrid
from restill.retrieval.rerank import LateInteraction, TokenEncoder, rerank
from restill.retrieval.types import Document, titled

SETS = {
    "hotpotqa train100": ("hotpotqa", "train100"),
    "hotpotqa dev200": ("hotpotqa", "dev200"),
    "musique train100": ("musique", "train100"),
    "cranfield": ("cranfield", "queries"),
}
WITHOUT = {
    "titles in the question": Settings(title=0.0),
    "novelty": Settings(novelty=0.0),
    "walk": Settings(walk=0.0),
}
RERANKED = 10
PAIRS = 1500
"""Documents that the alignment is fitted to, without labels."""

MEASURES = {
    "recall@5": lambda ranking, gold: recall(ranking, gold, 5),
    "all-gold@5": lambda ranking, gold: all_gold(ranking, gold, 5),
    "nDCG@10": lambda ranking, gold: ndcg(ranking, gold, 10),
}
Rankings = list[list[str]]


@dataclass(frozen=True)
class Collection:
    """Documents, their paragraphs (the rows), and questions with their relevant documents."""

    documents: list[Document]
    rows: list[tuple[str, str, str]]  # document id, title, text
    questions: list[str]
    gold: list[dict[str, float]]

    @classmethod
    def read(cls, data: Path, folder: str, questions: str, most: int | None) -> Collection:
        """Paragraphs that share a title are one document."""
        lines = [json.loads(line) for line in (data / folder / "corpus.jsonl").read_text().splitlines()]
        asked = [json.loads(line) for line in (data / folder / f"{questions}.jsonl").read_text().splitlines()][:most]
        if folder == "cranfield":
            # The abstracts repeat their title, which is no name.
            rows = [(line["_id"], "", line["text"]) for line in lines]
            qrels = read_qrels(data / folder / "qrels.tsv")
            gold = [qrels[line["_id"]] for line in asked]
            texts = [line["text"] for line in asked]
        else:
            rows = [(line["title"], line["title"], line["text"]) for line in lines]
            gold = [dict.fromkeys(line["gold_titles"], 1.0) for line in asked]
            texts = [line["question"] for line in asked]
        joined: dict[str, list[str]] = {}
        for doc_id, _, text in rows:
            joined.setdefault(doc_id, []).append(text)
        titles = {doc_id: title for doc_id, title, _ in rows}
        documents = [Document(id=i, title=titles[i], text="\n\n".join(parts)) for i, parts in joined.items()]
        return cls(documents, rows, texts, gold)

    @cached_property
    def passages(self) -> list[str]:
        """What is embedded: title and text."""
        return [titled(title, text) for _, title, text in self.rows]


@dataclass(frozen=True)
class Remembered:
    """Token vectors by text."""

    vectors: dict[str, np.ndarray]

    def encode_tokens(self, texts: Sequence[str], *, batch_size: int = 32) -> list[np.ndarray]:
        """As ``TextEncoder.encode_tokens``."""
        return [self.vectors[text] for text in texts]


class Bench:
    """One collection's searches."""

    def __init__(self, collection: Collection, encoder: TextEncoder, cache: Path | None) -> None:
        self.collection, self.encoder, self.cache = collection, encoder, cache
        self.vectors = embed(encoder, collection.passages, cache)
        self.asked = dict(zip(collection.questions, embed(encoder, collection.questions, cache), strict=True))
        self.connection = sqlite3.connect(":memory:")
        sparse.create(self.connection)
        sparse.add(self.connection, ((row, title, text) for row, (_, title, text) in enumerate(collection.rows)))
        rows: dict[str, list[int]] = {}
        for row, (doc_id, _, _) in enumerate(collection.rows):
            rows.setdefault(doc_id, []).append(row)
        self.stage = FirstStage(
            dense=self.dense,
            sparse=lambda queries, k: sparse.search(self.connection, queries, k),
            document=lambda row: collection.rows[row][0],
            rows=lambda doc_id: rows.get(doc_id, ()),
            text=collection.passages.__getitem__,
        )
        self.graph = DocumentGraph.build(collection.documents)

    def dense(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """Exact cosine search."""
        return _nearest(np.stack([self.asked[query] for query in queries]), self.vectors, k)

    def sentence_pairs(self) -> list[tuple[str, str]]:
        """Spread over the collection; none in Cranfield, whose sentences start in lower case."""
        pairs = align.sentence_pairs(self.collection.documents)
        return pairs[:: max(1, len(pairs) // PAIRS)][:PAIRS]

    def aligned(self, pairs: list[tuple[str, str]]) -> Search:
        """Dense search after a map fitted to the collection's own sentences: no question, no label."""
        fitted = align.fit(*(embed(self.encoder, side, self.cache) for side in zip(*pairs, strict=True)))
        vectors = fitted.documents(self.vectors)
        return lambda queries, k: _nearest(
            fitted.questions(np.stack([self.asked[query] for query in queries])), vectors, k
        )

    def modes(self, quick: bool) -> dict[str, Rankings]:
        """Every mode's ranking of documents."""
        questions, stage = self.collection.questions, self.stage
        lists = [
            [best_of(hits, stage.document) for hits in search(questions, Settings().depth)]
            for search in (stage.dense, stage.sparse)
        ]
        full = hops(questions, stage, self.graph)
        rankings = {
            "dense (MiniLM)": [[doc_id for doc_id, _ in hits] for hits in lists[0]],
            "sparse (FTS5)": [[doc_id for doc_id, _ in hits] for hits in lists[1]],
            "reciprocal rank fusion": [
                [doc_id for doc_id, _ in reciprocal_rank_fusion(pair)] for pair in zip(*lists, strict=True)
            ],
            "hybrid": _ids(hybrid(questions, stage)),
            "hops": _ids(full),
        }
        for name, settings in WITHOUT.items():
            rankings[f"hops without {name}"] = _ids(hops(questions, stage, self.graph, settings))
        mentions = self.graph.edges[:, 2] != 2
        graph = replace(self.graph, edges=self.graph.edges[mentions], strengths=self.graph.strengths[mentions])
        rankings["hops without shared names"] = _ids(hops(questions, stage, graph))
        if not quick:
            if pairs := self.sentence_pairs():
                aligned = replace(stage, dense=self.aligned(pairs))
                found = [best_of(hits, stage.document) for hits in aligned.dense(questions, Settings().depth)]
                rankings["dense, aligned"] = [[doc_id for doc_id, _ in hits] for hits in found]
                rankings["hops, dense aligned"] = _ids(hops(questions, aligned, self.graph))
            scorer = LateInteraction(self.once(full))
            for weight in (0.2, 1.0):
                rankings[f"hops, late interaction {weight:g}"] = [
                    self._reranked(question, ranked, scorer, weight)
                    for question, ranked in zip(questions, full, strict=True)
                ]
        return rankings

    def once(self, ranked: Sequence[Sequence[Any]]) -> TokenEncoder:
        """A token encoder that has read the questions and their best passages already: each once, in one batch."""
        best = (self.stage.text(result.row) for results in ranked for result in results[:RERANKED])
        texts = list(dict.fromkeys([*self.collection.questions, *best]))
        return Remembered(dict(zip(texts, self.encoder.encode_tokens(texts), strict=True)))

    def _reranked(self, question: str, ranked: Sequence[Any], scorer: LateInteraction, weight: float) -> list[str]:
        head = [(result, result.score) for result in ranked[:RERANKED]]
        again = rerank(question, head, [self.stage.text(r.row) for r, _ in head], scorer, weight=weight)
        return [result.doc_id for result, _ in again] + [result.doc_id for result in ranked[RERANKED:]]


def _nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[(int(row), float(scores[i, row])) for row in best] for i, best in enumerate(order)]


def _ids(ranked: Sequence[Sequence[Any]]) -> Rankings:
    return [[result.doc_id for result in results] for results in ranked]


def embed(encoder: TextEncoder, texts: Sequence[str], cache: Path | None) -> np.ndarray:
    """Vectors of ``texts``, kept in the folder ``cache``."""
    if cache is None:
        return encoder.encode(texts, progress=True)
    key = hashlib.sha256("\0".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
    file = cache / f"{key}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, encoder.encode(texts, progress=True))
    return np.load(file)


def measure(collection: Collection, rankings: dict[str, Rankings]) -> dict[str, dict[str, list[float]]]:
    """Each mode's values, by measure and question."""
    return {
        mode: {
            name: [measure(r, g) for r, g in zip(ranking, collection.gold, strict=True)]
            for name, measure in MEASURES.items()
        }
        for mode, ranking in rankings.items()
    }


def compared_with(mode: str) -> str | None:
    """The mode that a mode's difference is from: fusion from dense, hops from hybrid, a variant from hops."""
    if mode.startswith("hops"):
        return "hybrid" if mode == "hops" else "hops"
    return None if mode == "dense (MiniLM)" else "dense (MiniLM)"


def main(
    data: Annotated[Path, typer.Argument(help="Folder with hotpotqa, musique and cranfield.")],
    quick: Annotated[bool, typer.Option(help="30 questions each, no alignment, no late interaction.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every value here.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps embeddings between runs.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names of sets to measure.")] = None,
) -> None:
    """Print a table for each set of questions."""
    console = Console(width=180)
    encoder = TextEncoder.from_pretrained("minilm")
    report: dict[str, Any] = {}
    for title, (folder, questions) in SETS.items():
        if only and title not in only:
            continue
        collection = Collection.read(data, folder, questions, 30 if quick else None)
        values = measure(collection, Bench(collection, encoder, cache).modes(quick))
        report[title] = {}
        table = Table(title=f"{title}: {len(collection.questions)} questions, {len(collection.documents)} documents")
        for column in ("mode", *MEASURES, "difference from"):
            table.add_column(column, justify="left" if column == "mode" else "right")
        for mode, measured in values.items():
            other = compared_with(mode)
            cells, report[title][mode] = [], {"compared with": other}
            for name, ours in measured.items():
                cell, entry = f"{np.mean(ours):.3f}", {"mean": float(np.mean(ours))}
                if other:
                    theirs = values[other][name]
                    low, high = paired_interval(ours, theirs)
                    difference = float(np.mean(ours) - np.mean(theirs))
                    cell += f"  {difference:+.3f} [{low:+.3f}, {high:+.3f}]"
                    entry |= {"difference": difference, "low": low, "high": high}
                cells.append(cell)
                report[title][mode][name] = entry
            table.add_row(mode, *cells, other or "")
        console.print(table)
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
