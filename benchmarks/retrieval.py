"""How good and fast is retrieval? restill beside bm25s, plain FAISS, LangChain's store and transformers, in one run.

    pip install -e '.[bench]' && python benchmarks/retrieval.py DATA

``DATA`` holds ``hotpotqa/corpus.jsonl`` and ``dev200.jsonl``. Vectors beyond the collection's own are its sentences'
plus noise (stated). Keyword search, the parts of each mode and a million vectors have benchmarks of their own
(``sparse.py``, ``hops.py``, ``million.py``).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from restill.agents.question import read_questions
from restill.models.checkpoint.pull import pull
from restill.models.encoder import TextEncoder
from restill.retrieval.dense import DenseIndex
from restill.retrieval.metrics import score
from restill.retrieval.modes import MODES
from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Document

NOISE = 0.5
"""Length of the noise added to a unit vector where vectors are made from others."""
K = 5
AGENTS = 64


class Known:
    """An encoder that looks vectors up, so that searching is timed without encoding."""

    max_tokens, name, fingerprint = 256, "known", "known vectors"

    def __init__(self, vectors: dict[str, np.ndarray], dim: int) -> None:
        self._vectors, self.dim = vectors, dim

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Their vectors."""
        return np.stack([self._vectors[text] for text in texts])

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Nothing: every text fits."""
        return []


class Torch:
    """The same encoder in transformers: batches of similar length, as restill makes them."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = pull("minilm")
        self._torch, self._tokenizer = torch, AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Unit vectors f32 ``[N, D]``."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out: Any = None
        with self._torch.inference_mode():
            for at in range(0, len(order), batch_size):
                rows = order[at : at + batch_size]
                batch = self._tokenizer(
                    [texts[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                states, mask = self._model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                mean = (states * mask).sum(1) / mask.sum(1)
                if out is None:
                    out = np.empty((len(texts), mean.shape[1]), np.float32)
                out[rows] = self._torch.nn.functional.normalize(mean).numpy()
        return out


def in_turns(systems: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turns after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, run in systems.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def encoding(texts: Sequence[str], encoder: TextEncoder, rounds: int) -> dict[str, float]:
    """Texts a second: the encoder, transformers, and building an index, which splits and stores as well."""
    torch, documents = Torch(), [Document(id=str(i), text=text) for i, text in enumerate(texts)]
    difference = float(np.abs(encoder.encode(texts[:32]) - torch.encode(texts[:32])).max())
    seconds = in_turns(
        {
            "restill: encode": lambda: encoder.encode(texts),
            "transformers: encode": lambda: torch.encode(texts),
            "restill: index": lambda: Retriever.from_documents(documents, encoder),
        },
        rounds,
    )
    speeds = {f"{name}, texts/s": len(texts) / value for name, value in seconds.items()}
    return speeds | {"restill: encode, greatest difference to transformers": difference}


def batched(vectors: np.ndarray, queries: np.ndarray, rounds: int) -> dict[str, float]:
    """Queries a second of a batch: ours (which also orders ties) and FAISS itself."""
    ours, raw = DenseIndex(vectors.shape[1]), faiss.IndexFlatIP(vectors.shape[1])
    ours = ours.extended(np.arange(len(vectors), dtype=np.int64), vectors)
    raw.add(vectors)
    seconds = in_turns(
        {
            "restill: search in one batch": lambda: ours.search(queries, K),
            "FAISS: search in one batch": lambda: raw.search(queries, K),
        },
        rounds,
    )
    return {f"{name}, queries/s": len(queries) / value for name, value in seconds.items()}


def agents(vectors: np.ndarray, queries: np.ndarray, rounds: int) -> dict[str, float]:
    """Searches a second of 64 agents at once, through micro-batches and one after the other; without encoding."""
    texts = [f"question {i}" for i in range(AGENTS)]
    encoder = Known(dict(zip(texts, queries, strict=False)), vectors.shape[1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = filled(Path(scratch) / "index", vectors, encoder)
        retriever = Retriever.open(folder, encoder, k=K)

        async def together() -> None:
            await asyncio.gather(*(retriever.asearch(text) for text in texts))

        seconds = in_turns(
            {
                f"restill: {AGENTS} agents": lambda: asyncio.run(together()),
                "restill: one by one": lambda: [retriever.search([text]) for text in texts],
            },
            rounds,
        )
    return {f"{name}, searches/s": len(texts) / value for name, value in seconds.items()}


def filled(folder: Path, vectors: np.ndarray, encoder: Known) -> Path:
    """An index of one-word documents with these vectors."""
    names = [f"d{i}" for i in range(len(vectors))]
    stored = Known(dict(zip(names, vectors, strict=True)), vectors.shape[1])
    retriever = Retriever.from_documents((Document(id=name, text=name) for name in names), stored)
    return retriever.save(folder)


def progress(what: str) -> None:
    """Say what is measured now."""
    print(what, file=sys.stderr, flush=True)


def stores(
    documents: Sequence[Document], questions: Sequence[Any], encoder: TextEncoder, rounds: int
) -> dict[str, float]:
    """Quality and speed of whole searches, encoding included, all with the same vectors.

    bm25s takes title and text with Lucene's method and Snowball's stemmer; MiniLM alone on plain FAISS, and LangChain's
    store on it; restill's four modes.
    """
    import bm25s
    import Stemmer
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from langchain_core.documents import Document as Page

    retriever = Retriever.from_documents(documents, encoder, k=10)
    modes = {m: Retriever(indexes=retriever.indexes, encoder=encoder, k=10, mode=m) for m in MODES}
    chunks = list(retriever.chunks)
    pages = {str(i): Page(page_content=chunk.text, metadata={"doc": chunk.doc_id}) for i, chunk in enumerate(chunks)}
    store = FAISS(
        lambda text: encoder.encode([text])[0].tolist(), faiss.IndexFlatIP(encoder.dim), InMemoryDocstore(pages),
        {i: str(i) for i in range(len(chunks))},
    )  # fmt: skip
    (view,) = retriever.snapshot.views
    plain = faiss.IndexFlatIP(encoder.dim)
    for index in (store.index, plain):
        index.add(view.store.vectors(retriever.snapshot.rows, encoder.dim))
    stemmer, keywords = Stemmer.Stemmer("english"), bm25s.BM25(method="lucene", k1=1.2, b=0.75)

    def words(pages: Sequence[str]) -> Any:
        return bm25s.tokenize(list(pages), stopwords="en", stemmer=stemmer, show_progress=False)

    keywords.index(words([f"{chunk.title} {chunk.text}" for chunk in chunks]), show_progress=False)

    def by_keywords(text: str) -> list[str]:
        return [chunks[i].doc_id for i in keywords.retrieve(words([text]), k=10, show_progress=False)[0][0]]

    texts = [question.question for question in questions]
    systems: dict[str, Callable[[str], list[str]]] = {
        "bm25s": by_keywords,
        "MiniLM, plain FAISS": lambda text: [chunks[i].doc_id for i in plain.search(encoder.encode([text]), 10)[1][0]],
        "LangChain FAISS": lambda text: [page.metadata["doc"] for page in store.similarity_search(text, k=10)],
    }
    for mode, one in modes.items():
        systems[f"restill {mode}"] = lambda text, r=one: [hit.chunk.doc_id for hit in r.search([text])[0]]
    gold = [{i: 1.0 for title in q.gold_titles for i in retriever.resolve_title(title)} for q in questions]
    figures: dict[str, float] = {}
    for name, search in systems.items():
        rankings = [list(dict.fromkeys(search(text))) for text in texts]
        for measure, values in score(rankings, gold, [5]).items():
            if measure in ("recall@5", "all-gold@5"):
                figures[f"{name}: {measure}"] = sum(values) / len(values)
    seconds = in_turns({name: lambda s=search: [s(text) for text in texts] for name, search in systems.items()}, rounds)
    return figures | {f"{name}: one search, ms": 1000 * value / len(texts) for name, value in seconds.items()}


def main(
    data: Annotated[Path, typer.Argument(help="Folder with hotpotqa/.")],
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of everything, one round.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Measure, and print the table."""
    rounds, share = (1, 10) if quick else (3, 1)
    questions = read_questions(data / "hotpotqa" / "dev200.jsonl")[: 200 // share]
    titles = {title for question in questions for title in question.gold_titles}
    lines = (data / "hotpotqa" / "corpus.jsonl").read_text("utf-8").splitlines()
    everything = [Document.model_validate_json(line) for line in lines]
    documents = [d for i, d in enumerate(everything) if i % share == 0 or d.title in titles]
    encoder = TextEncoder.from_pretrained("minilm")
    rng = np.random.default_rng(0)
    given = encoder.encode([document.text for document in documents[:2000]])
    noise = rng.normal(size=(100_000 // share, encoder.dim)).astype(np.float32) * NOISE / encoder.dim**0.5
    vectors = given[rng.integers(len(given), size=len(noise))] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(len(vectors), size=512)]
    progress("encoding and indexing")
    figures = encoding([f"{d.title}. {d.text}" for d in documents[: 512 // share]], encoder, rounds)
    progress("one batch")
    figures |= batched(vectors, queries, rounds)
    progress("many agents")
    figures |= agents(vectors, queries, rounds)
    progress("whole searches")
    figures |= stores(documents, questions, encoder, rounds)
    ratios = {
        "encode: restill over transformers": ("restill: encode, texts/s", "transformers: encode, texts/s"),
        "index over encode": ("restill: index, texts/s", "restill: encode, texts/s"),
        "batched search: restill over FAISS": (
            "restill: search in one batch, queries/s", "FAISS: search in one batch, queries/s",
        ),
        f"{AGENTS} agents over one by one": (
            f"restill: {AGENTS} agents, searches/s", "restill: one by one, searches/s",
        ),
        "one search: LangChain's time over restill dense's": (
            "LangChain FAISS: one search, ms", "restill dense: one search, ms",
        ),
        "one search: bm25s' time over restill sparse's": ("bm25s: one search, ms", "restill sparse: one search, ms"),
    }  # fmt: skip
    figures |= {name: figures[a] / figures[b] for name, (a, b) in ratios.items()}
    table = Table(title=f"{len(documents)} paragraphs, {len(vectors):,} vectors (noise {NOISE}); medians")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    Console().print(table)
    if json_out:
        json_out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
