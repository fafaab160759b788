"""One million vectors: build, open, search. What does each cost, and how much is found?

The vectors are those of real sentences (MiniLM, 384 dimensions), repeated with noise: each is a sentence's vector plus
a Gaussian vector of the stated length, made a unit vector again. Queries are made the same way and are not in the
index. The truth is an exact search over all of them.

    python benchmarks/million.py --collection corpus.jsonl --json million.json
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

DIM, QUERIES, K, BATCH, PER_DOCUMENT = 384, 500, 10, 20_000, 100


def sentences(collection: list[Path]) -> list[str]:
    """The distinct sentences of JSONL collections, or of an invented World."""
    if collection:
        texts = [
            json.loads(line)["text"] for path in collection for line in path.open(encoding="utf-8") if line.strip()
        ]
    else:
        from restill import World

        texts = [document.text for document in World.generate(entities=2000, seed=0, train=0, heldout=0).documents]
    found = (sentence.strip() for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text))
    return list(dict.fromkeys(sentence for sentence in found if len(sentence) > 20))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows made unit vectors, f32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def noisy(given: np.ndarray, count: int, noise: float, seed: int) -> np.ndarray:
    """``count`` vectors [count, dim]: given ones drawn at random, each plus noise of that length."""
    rng = np.random.default_rng(seed)
    drawn = given[rng.integers(0, len(given), count)]
    return unit(drawn + unit(rng.standard_normal(drawn.shape, np.float32)) * noise)


def batches(given: np.ndarray, count: int, noise: float) -> Iterator[tuple[int, np.ndarray]]:
    """The collection, as (first row, vectors)."""
    for first in range(0, count, BATCH):
        yield first, noisy(given, min(BATCH, count - first), noise, seed=1 + first)


def store_vectors(folder: Path, given: np.ndarray, count: int, noise: float) -> Any:
    """An index with one short passage a vector, a hundred a document."""
    from restill.retrieval.index import Index
    from restill.retrieval.store import Store
    from restill.retrieval.types import Chunk, Document
    from restill.retrieval.view import STORE
    from restill.retrieval.write import Entry, write

    Index.create(folder, encoder="minilm", encoder_fingerprint="of the benchmark", dim=DIM).close()
    store = Store.writer(folder / STORE)
    for first, vectors in batches(given, count, noise):
        entries = []
        for at in range(0, len(vectors), PER_DOCUMENT):
            part, name = vectors[at : at + PER_DOCUMENT], f"document {first + at}"
            texts = [f"Passage number {first + at + i}." for i in range(len(part))]
            starts = np.cumsum([0, *(len(text) for text in texts)]).tolist()
            chunks = [
                Chunk(chunk_id=f"{name}#{i}", doc_id=name, text=text, start=s, end=s + len(text), content_hash=f"{i}")
                for i, (text, s) in enumerate(zip(texts, starts, strict=False))
            ]
            document = Document(id=name, text="".join(texts))
            entries.append(Entry(document=document, chunks=chunks, vectors={f"{i}": v for i, v in enumerate(part)}))
        write(store, entries)
    store.close()
    return Index.open(folder, derived=False)  # compaction reads the vectors from the store


def truth(given: np.ndarray, count: int, noise: float, queries: np.ndarray) -> np.ndarray:
    """The rows (from 1) of the ``K`` nearest of each query, by comparing all."""
    import faiss

    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for first, vectors in batches(given, count, noise):
        s, r = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)  # pyright: ignore[reportAttributeAccessIssue]
        scores, rows = np.concatenate([scores, s], 1), np.concatenate([rows, r + first + 1], 1)
        best = np.argsort(-scores, axis=1)[:, :K]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return rows


def resident() -> dict[str, int]:
    """MB of this process in memory: of its own, and of files mapped."""
    import psutil

    memory = psutil.Process().memory_info()
    return {"own_mb": (memory.rss - memory.shared) >> 20, "mapped_mb": memory.shared >> 20}


def search(folder: Path) -> None:
    """The child: open, search one by one and in a batch, print what it took."""
    from restill.retrieval.index import Index

    queries = np.load(folder / "queries.npy")
    before, started = resident(), time.perf_counter()
    index = Index.open(folder / "index")
    opened, after_open = time.perf_counter() - started, resident()
    found, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        hits = index.view.dense.search(query[None], K)[0]
        seconds.append(time.perf_counter() - started)
        found.append([row for row, _ in hits])
    started = time.perf_counter()
    index.view.dense.search(queries, K)
    batched = time.perf_counter() - started
    np.save(folder / "found.npy", np.array(found))
    after = resident()
    print(
        json.dumps(
            {
                "open_s": round(opened, 3),
                "first_search_ms": round(1e3 * seconds[0], 2),
                "p50_ms": round(1e3 * float(np.median(seconds)), 2),
                "p95_ms": round(1e3 * float(np.quantile(seconds, 0.95)), 2),
                "batch_queries_per_s": round(len(queries) / batched),
                "opening_takes_mb": after_open["own_mb"] - before["own_mb"],
                "own_mb": after["own_mb"],
                "mapped_mb": after["mapped_mb"],
            }
        )
    )


def main(
    vectors: Annotated[int, typer.Option(help="Number of vectors.")] = 1_000_000,
    collection: Annotated[list[Path] | None, typer.Option(help="JSONL collections; else an invented World.")] = None,
    given: Annotated[
        Path | None, typer.Option(help="Sentence vectors as .npy; made, and kept there, if missing.")
    ] = None,
    noise: Annotated[float, typer.Option(help="Length of the noise added to a unit vector.")] = 0.5,
    kind: Annotated[str, typer.Option(help="flat, ivf or hnsw.")] = "ivf",
    quick: Annotated[bool, typer.Option("--quick", help="20,000 vectors.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder to work in; a temporary one if not given.")] = None,
    child: Annotated[Path | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Measure, and print a line for each measure."""
    if child:
        return search(child)
    count = 20_000 if quick else vectors
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=work))
    try:
        measures = measure(folder, count, collection or [], given, noise, kind)
    finally:
        shutil.rmtree(folder)
    for name, value in measures.items():
        print(f"{name:24} {value}")
    if json_out:
        json_out.write_text(json.dumps(measures))


def measure(folder: Path, count: int, collection: list[Path], kept: Path | None, noise: float, kind: str) -> dict:
    """Everything, in order."""
    if kept is not None and kept.exists():
        given = np.load(kept)
    else:
        from restill import TextEncoder

        given = TextEncoder.from_pretrained("minilm").encode(sentences(collection), progress=True)
        if kept is not None:
            np.save(kept, given)
    queries = noisy(given, QUERIES, noise, seed=0)
    np.save(folder / "queries.npy", queries)
    started = time.perf_counter()
    index = store_vectors(folder / "index", given, count, noise)
    stored = time.perf_counter() - started
    started = time.perf_counter()
    index.compact(kind)
    built = time.perf_counter() - started
    index.close()
    sizes = {path.suffix: path.stat().st_size >> 20 for path in (folder / "index").iterdir()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    command = [sys.executable, __file__, "--child", str(folder)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    expected, rows = truth(given, count, noise, queries), np.load(folder / "found.npy")
    hits = [len(set(a) & set(b)) for a, b in zip(expected.tolist(), rows.tolist(), strict=True)]
    return {
        "vectors": count,
        "given_sentences": len(given),
        "noise": noise,
        "kind": kind,
        "store_s": round(stored, 1),
        "build_s": round(built, 1),
        "build_peak_mb": peak,
        "store_mb": sizes[".db"],
        "faiss_mb": sizes[".faiss"],
        f"recall_at_{K}": round(sum(hits) / K / len(hits), 4),
        **found,
    }


if __name__ == "__main__":
    typer.run(main)
