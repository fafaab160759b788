"""The modes of a retriever over its store: what each finds, under filters, over shards, after changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from restill.models.errors import RestillError
from restill.retrieval.align import AlignedEncoder, Alignment
from restill.retrieval.hops import DocumentGraph
from restill.retrieval.modes import MODES
from restill.retrieval.rerank import LateInteraction
from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Chunk, Document, Encoder, Hit


def document(name: str, title: str, text: str) -> Document:
    return Document(id=name, title=title, text=text, metadata={"kind": name.rstrip("0123456789")})


DOCUMENTS = [
    document("film", "Grey Harbour", "Grey Harbour is a film that Ona Quill directed in 1968."),
    document("person", "Ona Quill", "She was born in Port Ludd and studied there."),
    document("town", "Port Ludd", "It has a harbour and two bridges."),
    *(document(f"other{i}", f"Notes {i}", f"Born in the town of {name}, a film about it.")
      for i, name in enumerate(["Vend", "Tarn", "Moss", "Reed", "Fell"])),
]  # fmt: skip
QUESTION = "Where was the director of Grey Harbour born?"


def found(hits: Sequence[Hit]) -> list[str]:
    return [hit.chunk.doc_id for hit in hits]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_a_batch_as_it_answers_one(mode: str, encoder: Encoder) -> None:
    retriever = Retriever.from_documents(DOCUMENTS, encoder, k=4, mode=mode)
    queries = [QUESTION, "bridges", "Notes 3"]
    together = retriever.search(queries)
    assert together == [retriever.search([query])[0] for query in queries]
    assert asyncio.run(retriever.asearch(QUESTION)) == together[0]
    assert [hit.chunk.doc_id for hit in retriever.search(["bridges harbour"], k=1)[0]] == ["town"]


def test_hops_finds_the_document_that_the_first_leads_to(encoder: Encoder) -> None:
    plain, hops = (Retriever.from_documents(DOCUMENTS, encoder, k=2, mode=mode) for mode in ("hybrid", "hops"))
    assert found(hops.search([QUESTION])[0]) == ["film", "person"]
    assert found(plain.search([QUESTION])[0]) != ["film", "person"]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_holds_in_every_mode(mode: str, encoder: Encoder) -> None:
    retriever = Retriever.from_documents(DOCUMENTS, encoder, k=9, mode=mode)
    hits = retriever.search([QUESTION], where={"kind": ["other", "town"]})[0]
    assert hits and set(found(hits)) <= {"town", *(f"other{i}" for i in range(5))}


@pytest.mark.parametrize("mode", MODES)
def test_a_function_is_asked_once_for_every_passage(mode: str, encoder: Encoder) -> None:
    retriever, asked = Retriever.from_documents(DOCUMENTS, encoder, k=9, mode=mode), []

    def where(chunk: Chunk) -> bool:
        asked.append(chunk.doc_id)
        return chunk.doc_id != "town"

    assert "town" not in found(retriever.search([QUESTION], where=where)[0])
    assert asked == [document.id for document in DOCUMENTS]


def test_threads_that_want_the_graph_at_once_build_it_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, build, built = Retriever.from_documents(DOCUMENTS, encoder).snapshot, DocumentGraph.build, []
    two = threading.Barrier(2)

    def slow(documents: Iterable[Document]) -> DocumentGraph:
        with suppress(threading.BrokenBarrierError):
            two.wait(0.3)  # would another build it too, they would meet here
        built.append(build(documents))
        return built[-1]

    monkeypatch.setattr(DocumentGraph, "build", slow)
    with ThreadPoolExecutor(4) as pool:
        graphs = [future.result() for future in [pool.submit(lambda: snapshot.graph) for _ in range(4)]]
    assert len(built) == 1 and all(graph is built[0] for graph in graphs)


@pytest.mark.parametrize("mode", ["hybrid", "hops"])
def test_what_was_deleted_is_found_no_more(mode: str, encoder: Encoder) -> None:
    retriever = Retriever.from_documents(DOCUMENTS, encoder, k=9, mode=mode)
    assert "person" in found(retriever.search([QUESTION])[0])
    retriever.delete(["person"])
    assert "person" not in found(retriever.search([QUESTION])[0])
    retriever.add([Document(id="new", title="Ona Quill", text="A painter from Reed.")])
    assert "new" in found(retriever.search([QUESTION])[0])


def test_links_cross_shards(encoder: Encoder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name, part in (("a", DOCUMENTS[:1]), ("b", DOCUMENTS[1:])):
        Retriever.from_documents(part, encoder).save(tmp_path / name)
    retriever = Retriever.open([tmp_path / "a", tmp_path / "b"], encoder, k=2, mode="hops")
    assert found(retriever.search([QUESTION])[0]) == ["film", "person"]
    assert found(retriever.follow("film", k=9)) == ["person"]


def test_follow_lists_what_a_document_leads_to(encoder: Encoder) -> None:
    retriever = Retriever.from_documents(DOCUMENTS, encoder)
    assert found(retriever.follow("Ona Quill", k=5)) == ["town", "film"]
    tool = retriever.as_follow_tool(k=1)
    assert found(asyncio.run(tool("film"))) == ["person"]  # type: ignore[arg-type]
    with pytest.raises(RestillError, match="no document has the id or title 'Nobody'"):
        retriever.follow("Nobody")


def test_modes_have_fingerprints_of_their_own_and_unknown_ones_are_refused(encoder: Encoder) -> None:
    tools = [Retriever.from_documents(DOCUMENTS, encoder, mode=mode).as_tool() for mode in MODES]
    assert len({tool.fingerprint for tool in tools}) == len(MODES)  # type: ignore[attr-defined]
    with pytest.raises(RestillError, match="unknown mode 'best'; choose one of dense, sparse, hybrid, hops"):
        Retriever.from_documents(DOCUMENTS, encoder, mode="best")  # type: ignore[arg-type]
    with pytest.raises(RestillError, match="k=101"):
        Retriever.from_documents(DOCUMENTS, encoder, mode="hops").search([QUESTION], k=101)


def test_a_reranker_orders_the_best_again_and_changes_the_tool(encoder: Encoder) -> None:
    def longest(question: str, texts: Sequence[str]) -> list[float]:
        assert question == QUESTION and len(texts) == 6
        return [float(len(text)) for text in texts]

    plain = Retriever.from_documents(DOCUMENTS, encoder, k=2)
    best = [hit.chunk for hit in plain.search([QUESTION], k=6)[0]]
    retriever = Retriever(indexes=plain.indexes, encoder=encoder, k=2, reranker=longest, rerank_depth=6)
    hits = retriever.search([QUESTION])[0]
    assert [hit.chunk for hit in hits] == sorted(best, key=lambda c: -len(c.title) - len(c.text))[:2]
    assert hits[0].score == 1.0
    assert retriever.as_tool().fingerprint != plain.as_tool().fingerprint  # type: ignore[attr-defined]


def test_a_mode_must_find_what_is_to_be_ordered_again(encoder: Encoder) -> None:
    def longest(question: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    plain = Retriever.from_documents(DOCUMENTS, encoder)
    for mode in ("hybrid", "hops"):
        with pytest.raises(RestillError, match=f"rerank_depth=101: mode '{mode}' ranks 100 passages"):
            Retriever(indexes=plain.indexes, encoder=encoder, mode=mode, reranker=longest, rerank_depth=101)
    dense = plain.model_copy(update={"reranker": longest, "rerank_depth": 101})
    assert len(dense.search([QUESTION])[0]) == 3
    with pytest.raises(RestillError, match="rerank_depth=101"):
        dense.model_copy(update={"mode": "hybrid"})
    assert dense.model_copy(update={"mode": "hybrid", "rerank_depth": 100}).search([QUESTION])[0]


@pytest.mark.parametrize("rerank", [False, True])
def test_results_do_not_depend_on_the_k_of_others_in_the_batch(encoder: Encoder, rerank: bool) -> None:
    mode = "dense" if rerank else "hops"
    plain = Retriever.from_documents(DOCUMENTS, encoder, mode=mode)
    by_length = (lambda question, texts: [float(len(text)) for text in texts]) if rerank else None
    retriever = Retriever(indexes=plain.indexes, encoder=encoder, mode=mode, reranker=by_length, rerank_depth=3)

    async def together() -> list[list[Hit] | BaseException]:
        asked = [retriever.asearch(QUESTION, k=k) for k in (1, 3, 5, 7, *([] if rerank else [101]))]
        return await asyncio.gather(*asked, return_exceptions=True)

    alone = retriever.search([QUESTION], k=7)[0]
    assert [retriever.search([QUESTION], k=k)[0] for k in (1, 3, 5)] == [alone[:1], alone[:3], alone[:5]]
    found = asyncio.run(together())
    assert found[:4] == [alone[:1], alone[:3], alone[:5], alone]
    assert all("k=101" in str(error) for error in found[4:])
    assert [hit.score for hit in alone] == sorted((hit.score for hit in alone), reverse=True)


def test_different_rerankers_give_different_tools(encoder: Encoder) -> None:
    class Tokens:
        def __init__(self, fingerprint: str) -> None:
            self.fingerprint = fingerprint

        def encode_tokens(self, texts: Sequence[str], *, batch_size: int = 32) -> list[np.ndarray]:
            raise AssertionError

    def one(question: str, texts: Sequence[str]) -> list[float]:
        raise AssertionError

    def two(question: str, texts: Sequence[str]) -> list[float]:
        raise AssertionError

    plain = Retriever.from_documents(DOCUMENTS, encoder)
    rerankers = [None, one, two, LateInteraction(Tokens("a")), LateInteraction(Tokens("b"))]
    tools = [Retriever(indexes=plain.indexes, encoder=encoder, reranker=each).as_tool() for each in rerankers]
    assert len({tool.fingerprint for tool in tools}) == len(rerankers)  # type: ignore[attr-defined]


def test_an_alignment_that_swaps_sides_is_applied_to_each_side_alone(encoder: Encoder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Questions are mapped to what the next document holds: then that one is found for each."""
    vectors = encoder.encode([d.text for d in DOCUMENTS])
    following, zero = np.roll(vectors, -1, axis=0), np.zeros(encoder.dim, np.float32)
    to_next = np.linalg.pinv(vectors) @ following  # as many texts as it takes to be exact
    alignment = Alignment(
        question_mean=zero, question_map=to_next.astype(np.float32), document_mean=zero,
        document_map=np.eye(encoder.dim, dtype=np.float32), correlations=np.ones(encoder.dim), weight=1.0,
    )  # fmt: skip
    alignment.save(tmp_path / "map.npz")
    aligned = AlignedEncoder(encoder, Alignment.load(tmp_path / "map.npz"))
    bare = [document.model_copy(update={"title": ""}) for document in DOCUMENTS]
    retriever = Retriever.from_documents(bare, aligned, k=1)
    hits = retriever.search([document.text for document in bare])
    assert [hit[0].chunk.doc_id for hit in hits] == [d.id for d in [*DOCUMENTS[1:], DOCUMENTS[0]]]
    retriever.save(tmp_path / "index")
    with pytest.raises(RestillError, match="was built with encoder"):
        Retriever.open(tmp_path / "index", encoder)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(RestillError, match="is no alignment"):
        Alignment.load(tmp_path / "broken.npz")
