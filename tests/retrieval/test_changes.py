"""Any sequence of changes gives the index that a fresh build gives; only new content is embedded."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval import dense
from restill.retrieval.modes import search
from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Document
from restill.retrieval.view import Found, Snapshot

WORDS = ["kestrel", "corvid", "tarn", "sea", "maps", "engine"]
NAMES = ["a", "b", "c", "d"]


def document(name: str, picks: list[int]) -> Document:
    """A sentence for each pick, so that documents share some passages and differ in others."""
    text = "\n\n".join(f"{WORDS[p]} {WORDS[-1 - p]} number {p}. " + f"about {WORDS[p]} " * 9 for p in picks)
    return Document(id=name, title="T", text=text, metadata={"picks": picks})


puts = st.tuples(st.just("put"), st.sampled_from(NAMES), st.lists(st.integers(0, 5), max_size=5))
deletes = st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none())
compactions = st.tuples(st.just("compact"), st.none(), st.none())


def named(snapshot: Snapshot, found: Found) -> list[dict[float, set[tuple]]]:
    """The passages with each score: rows are given by history, and so is the order of equal scores."""
    results = []
    for hits in found:
        groups: dict[float, set[tuple]] = defaultdict(set)
        chunks = snapshot.chunks_at([row for row, _ in hits])
        for (_, score), chunk in zip(hits, chunks, strict=True):
            groups[round(score, 6)].add((chunk.chunk_id, chunk.start, chunk.text))
        results.append(dict(groups))
    return results


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["flat", "ivf", "hnsw"]),
    changes=st.lists(st.one_of(puts, puts, deletes, compactions), max_size=12),
)
def test_any_history_gives_what_a_fresh_build_gives(make_encoder, kind: str, changes: list) -> None:
    retriever = Retriever.from_documents([document("z", [0, 1, 2])], make_encoder(), kind=kind)
    wanted = {"z": document("z", [0, 1, 2])}
    for what, name, picks in changes:
        if what == "put":
            wanted[name] = document(name, picks)
            retriever.update([wanted[name]])
        elif what == "compact":
            retriever.index.compact()
        elif name in wanted:
            del wanted[name]
            retriever.delete([name])
    fresh = Retriever.from_documents(wanted.values(), make_encoder())
    assert retriever.fingerprint == fresh.fingerprint and retriever.index.check() == []
    ours, theirs = retriever.snapshot, fresh.snapshot
    order = {chunk.chunk_id: chunk for chunk in fresh.chunks}
    assert {chunk.chunk_id: chunk for chunk in retriever.chunks} == order
    with mock.patch.object(dense, "_FEW", 0):  # approximate kinds are not to compare all
        for where in (None, {"picks": [0, 3]} if any(d.metadata["picks"] for d in wanted.values()) else None):
            found = named(ours, search(ours, make_encoder(), "dense", WORDS, 99, where))
            expected = named(theirs, search(theirs, make_encoder(), "dense", WORDS, 99, where))
            if kind == "flat":
                assert found == expected
            else:  # k exceeds the collection, so all are compared in the end; recall is tested below
                total = sum(len(group) for query in expected for group in query.values())
                common = sum(
                    len(group & query.get(score, set()))
                    for query, wanted_query in zip(found, expected, strict=True)
                    for score, group in wanted_query.items()
                )
                assert common >= 0.95 * total
            sparse = named(ours, search(ours, make_encoder(), "sparse", WORDS, 99, where))
            assert sparse == named(theirs, search(theirs, make_encoder(), "sparse", WORDS, 99, where))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_find_nearly_all_of_the_best_after_changes(make_encoder, kind: str) -> None:
    """Recall@5 against an exact search, with rows in the file, deleted from it and added since: at least 0.95."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices([f"word{n}" for n in range(300)], k=12)) for _ in range(500)]
    documents = [Document(id=str(n), text=text, metadata={"third": n % 3}) for n, text in enumerate(texts)]
    queries = [" ".join(draw.choices(text.split(), k=4)) for text in draw.sample(texts, 60)]
    exact, near = (Retriever.from_documents(documents[:400], make_encoder(), k=5, kind=k) for k in ("flat", kind))
    near.index.compact()
    assert near.index.view.dense.kind == kind
    for retriever in (exact, near):
        retriever.delete([str(n) for n in range(0, 60, 2)])
        retriever.add(documents[400:420])
    with mock.patch.object(dense, "_FEW", 0):
        for where in (None, {"third": 1}):
            pairs = zip(exact.search(queries, where=where), near.search(queries, where=where), strict=True)
            # Of passages with equal scores any will do.
            good = sum(hit.score >= best[-1].score for best, found in pairs for hit in found)
            assert good >= 0.95 * 5 * len(queries)


def test_an_update_embeds_only_what_is_new(encoder) -> None:
    retriever = Retriever.from_documents([document("a", [0, 1, 2, 3, 4]), document("b", [0])], encoder)
    rows = {chunk.text: row for row, chunk in retriever.index.view.store.all_chunks() if chunk.doc_id == "a"}
    encoder.batches.clear()
    changes = retriever.update([document("a", [5, 0, 1, 2, 3, 4]), document("b", [0]), document("c", [])])
    assert (changes.added, changes.updated, changes.unchanged, changes.embedded) == (1, 1, 1, 1)
    assert sum(encoder.batches) == 1
    after = {chunk.text: row for row, chunk in retriever.index.view.store.all_chunks() if chunk.doc_id == "a"}
    assert {text: row for text, row in after.items() if text in rows} == rows and len(after) == len(rows) + 1
    assert retriever.index.check() == []


def test_rows_are_never_given_again(encoder) -> None:
    retriever = Retriever.from_documents([document("a", [0]), document("b", [1])], encoder)
    retriever.delete(["b"])
    retriever.add([document("b", [1])])
    assert retriever.snapshot.rows.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.add([document("n", [1]), document("a", [1])]), "'a' is in the index already"),
        (lambda r: r.add([document("n", [1]), document("n", [2])]), "'n' occurs twice"),
        (lambda r: r.delete(["a", "zz"]), "no document 'zz'"),
        (lambda r: r.delete("a"), r"delete\(\['a'\]\)"),
        (lambda r: r.update([{"_id": "a"}]), "'text'"),
        (lambda r: r.update([Document(id="a", text="x", metadata={"x": object()})]), "metadata"),
    ],
)
def test_a_refused_change_changes_nothing(encoder, change, words: str) -> None:
    retriever = Retriever.from_documents([document("a", [0])], encoder)
    before = retriever.fingerprint
    with pytest.raises(RestillError, match=words):
        change(retriever)
    assert retriever.fingerprint == before and retriever.index.check() == [] and len(retriever.chunks) == 1


def test_a_source_is_replaced_as_a_whole(encoder) -> None:
    retriever = Retriever.from_documents([document("other", [3])], encoder)
    retriever.update([document("a", [0]), document("b", [1])], source="notes.jsonl")
    retriever.update([document("b", [1]), document("c", [2])], source="notes.jsonl")
    assert [chunk.doc_id for chunk in retriever.chunks] == ["other", "b", "c"]


def test_shards_answer_as_one_index_would(tmp_path: Path, make_encoder) -> None:
    documents = [document(f"{name}{n}", [n % 6, (n + 2) % 6]) for n, name in enumerate(NAMES * 3)]
    whole = Retriever.from_documents(documents, make_encoder())
    folders = [
        Retriever.from_documents(documents[at : at + 4], make_encoder()).save(tmp_path / str(at)) for at in (0, 4, 8)
    ]
    shards = Retriever.open(folders, make_encoder())
    assert shards.search(WORDS, k=7) == whole.search(WORDS, k=7)
    assert shards.search(WORDS, k=99, where={"picks": 3}) == whole.search(WORDS, k=99, where={"picks": 3})
    assert list(shards.chunks) == list(whole.chunks) and shards.chunks[-1] == whole.chunks[-1]
    assert shards.fingerprint == whole.fingerprint and shards.chunks[2:5] == whole.chunks[2:5]
    assert shards.resolve_title("t") == whole.resolve_title("t") == [d.id for d in documents]
    with pytest.raises(RestillError, match="reads 3 indexes"):
        shards.add([document("new", [0])])


def test_a_reader_sees_a_change_when_it_refreshes(tmp_path: Path, make_encoder) -> None:
    folder = Retriever.from_documents([document("a", [0])], make_encoder()).save(tmp_path / "index")
    reader, writer = (Retriever.open(folder, make_encoder()) for _ in range(2))
    writer.add([document("b", [1])])
    writer.delete(["a"])
    assert [hit.chunk.doc_id for hit in reader.search(["sea"])[0]] == ["a"] and len(reader.chunks) == 1
    assert reader.refresh() and [hit.chunk.doc_id for hit in reader.search(["sea"])[0]] == ["b"]
    assert not reader.refresh() and reader.fingerprint == writer.fingerprint
