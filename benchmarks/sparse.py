"""Keyword search beside its rivals: SQLite FTS5 (restill's), tantivy, bm25s and rank-bm25, on quality and speed.

    python benchmarks/sparse.py DATA

``DATA`` holds folders with ``corpus.jsonl`` (``_id``, ``title``, ``text``): ``hotpotqa`` and ``musique`` with
``train100.jsonl`` (``question``, ``gold_titles``), ``cranfield`` with ``queries.jsonl`` and ``qrels.tsv``.

Quality: the three collections as they are. Speed: their paragraphs, and after these, copies whose words are drawn from
the paragraph with replacement, so that no two are equal; the queries are hotpotqa's and musique's questions. Changes: a
thread adds 10 and removes 10 chunks and commits, as often as ``--commits`` says, while the main thread searches on.
Searches are one by one except where a row says otherwise; each system takes strings and tokenises within the time.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sparse_systems import SYSTEMS, VARIANTS, Fts5, Page

from restill.agents.question import read_questions
from restill.retrieval.metrics import read_qrels, score


def read_corpus(data: Path, name: str) -> list[dict[str, str]]:
    with (data / name / "corpus.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def collections(
    data: Path, final: bool
) -> Iterator[tuple[str, list[dict[str, str]], list[str], list[dict[str, float]]]]:
    """Name, documents, questions and their relevant documents."""
    files = [("hotpotqa", "train100"), ("musique", "train100"), *([("hotpotqa", "dev200")] if final else [])]
    for name, file in files:
        corpus = read_corpus(data, name)
        ids: dict[str, list[str]] = {}
        for document in corpus:
            ids.setdefault(document["title"], []).append(document["_id"])
        asked = read_questions(data / name / f"{file}.jsonl")
        gold = [dict.fromkeys((id for title in q.gold_titles for id in ids[title]), 1.0) for q in asked]
        yield f"{name} {file}", corpus, [q.question for q in asked], gold
    qrels = read_qrels(data / "cranfield" / "qrels.tsv")
    asked = [q for q in read_questions(data / "cranfield" / "queries.jsonl") if q.id in qrels]
    yield "cranfield", read_corpus(data, "cranfield"), [q.question for q in asked], [qrels[q.id] for q in asked]


def measure_quality(data: Path, final: bool) -> dict[str, float]:
    """Mean nDCG@10, recall@5 and all-gold@5, in %, by "collection, measure, system"."""
    found: dict[str, float] = {}
    for name, corpus, questions, gold in collections(data, final):
        pages = [(row, document["title"], document["text"]) for row, document in enumerate(corpus)]
        for label, make in [*((system.name, system) for system in SYSTEMS), *VARIANTS.items()]:
            with tempfile.TemporaryDirectory() as folder:
                system = make(Path(folder))
                system.index(pages)
                rankings = [[corpus[row]["_id"] for row in rows] for rows in system.search(questions, 10)]
                system.close()
            values = score(rankings, gold, [5, 10])
            for measure in ("nDCG@10", "recall@5", "all-gold@5"):
                found[f"{name}, {measure}, {label}"] = 100 * float(np.mean(values[measure]))
    return found


def make_pages(data: Path, count: int, seed: int = 0) -> list[Page]:
    """The speed test's chunks; see the file's first lines."""
    rng = np.random.default_rng(seed)
    corpus = [document for name in ("hotpotqa", "musique", "cranfield") for document in read_corpus(data, name)]
    pages = [(row, document["title"], document["text"]) for row, document in enumerate(corpus[:count])]
    for row in range(len(pages), count):
        document = corpus[row % len(corpus)]
        words = document["text"].split() or [""]
        text = " ".join(words[i] for i in rng.integers(0, len(words), len(words)))
        pages.append((row, document["title"], text))
    return pages


def queries_per_second(search: Any, queries: Sequence[str], seconds: float) -> float:
    """Searches for at least so long, in pieces of ten."""
    search(queries[:2], 10)
    pieces, done, start = cycle([queries[i : i + 10] for i in range(0, len(queries), 10)]), 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        done += len(search(next(pieces), 10))
    return done / spent


def while_changing(system: Any, pages: Sequence[Page], queries: Sequence[str], seconds: float, commits: float) -> Any:
    """Queries per second, and commits per second reached, while another thread changes the index."""
    stop, done = threading.Event(), 0
    failed: list[BaseException] = []

    def write() -> None:
        nonlocal done
        first, start = len(pages), time.perf_counter()
        try:
            while not stop.wait(max(0.0, start + done / commits - time.perf_counter())):
                fresh = [(first + 10 * done + i, *pages[(10 * done + i) % len(pages)][1:]) for i in range(10)]
                system.change(fresh, [row - first for row, *_ in fresh])
                done += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    start = time.perf_counter()
    thread.start()
    rate = queries_per_second(system.search, queries, seconds)
    stop.set()
    thread.join()
    if failed:
        raise failed[0]
    return rate, done / (time.perf_counter() - start)


def measure_speed(data: Path, sizes: Sequence[int], seconds: float, commits: float) -> dict[str, float]:
    """Chunks indexed per second and queries per second, by "chunks, measure, system"."""
    found: dict[str, float] = {}
    queries = [q.question for name in ("hotpotqa", "musique") for q in read_questions(data / name / "train100.jsonl")]
    for size in sizes:
        pages = make_pages(data, size)
        for make in SYSTEMS:
            key = f"{size:,} chunks, {{}}, {make.name}"
            with tempfile.TemporaryDirectory() as folder:
                system = make(Path(folder))
                start = time.perf_counter()
                system.index(pages)
                found[key.format("chunks/s indexed")] = size / (time.perf_counter() - start)
                found[key.format("queries/s")] = queries_per_second(system.search, queries, seconds)
                if system.batches:
                    rate = queries_per_second(lambda _, k, s=system: s.search_batch(queries, k), queries, seconds)
                    found[key.format("queries/s, 200 in one call")] = rate
                if system.changes:
                    rate, reached = while_changing(system, pages, queries, seconds, commits)
                    found[key.format("queries/s during changes")] = rate
                    found[key.format("commits/s during these")] = reached
                system.close()
    return found


def table(found: dict[str, float], title: str, ratios: bool) -> Table:
    """One row a measure, one column a system; with ``ratios``, each value over restill's."""
    systems = list(dict.fromkeys(key.rsplit(", ", 1)[1] for key in found))
    shown = Table("", *systems, title=title, title_justify="left")
    for name in dict.fromkeys(key.rsplit(", ", 1)[0] for key in found):
        ours = found.get(f"{name}, {Fts5.name}")
        cells = []
        for system in systems:
            value = found.get(f"{name}, {system}")
            ratio = f" ({value / ours:.2g} x)" if ratios and ours and value and system != Fts5.name else ""
            cells.append("" if value is None else f"{value:,.1f}{ratio}")
        shown.add_row(name, *cells)
    return shown


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the collections.")],
    seconds: Annotated[float, typer.Option(help="Seconds of searching for each speed.")] = 8.0,
    commits: Annotated[float, typer.Option(help="Commits a second during changes.")] = 10.0,
    final: Annotated[bool, typer.Option("--final", help="Also hotpotqa's dev200, on which nothing is tuned.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="5,000 chunks only, a second each.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Print quality and speed of each system, and their ratios to restill's."""
    console = Console(width=160)
    quality = measure_quality(data, final)
    console.print(table(quality, "Quality, in %", ratios=False))
    speed = measure_speed(data, [5_000] if quick else [5_000, 100_000], 1.0 if quick else seconds, commits)
    console.print(table(speed, f"Speed (times restill's); SQLite {sqlite3.sqlite_version}", ratios=True))
    if json_out:
        json_out.write_text(json.dumps(quality | speed, indent=1))


if __name__ == "__main__":
    typer.run(main)
