"""The retriever as a library user, an agent and LangChain see it."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document as LangChainDocument
from langchain_core.tools import StructuredTool

from restill.models.errors import RestillError
from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Document, Hit

FACTS = [
    "Orlan founded Corvid",
    "Corvid built the Kestrel",
    "Mira leads Tarn",
    "the sea is deep",
    "Tarn sells maps",
]
DOCUMENTS = [
    Document(id=f"d{n}", title=f"Fact {n}", text=fact, metadata={"n": n, "tags": ["odd" if n % 2 else "even"]})
    for n, fact in enumerate(FACTS)
]


@pytest.fixture
def retriever(encoder) -> Retriever:
    return Retriever.from_documents(DOCUMENTS, encoder, k=2)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.chunk.doc_id for hit in hits]


def test_search_finds_what_shares_words(retriever: Retriever) -> None:
    first, second = retriever.search(["who founded Corvid", "deep sea"])
    assert ids(first)[0] == "d0" and ids(second)[0] == "d3" and len(first) == len(second) == 2
    assert first[0].score > first[1].score
    assert retriever.search([]) == []


def test_k_may_exceed_the_collection(retriever: Retriever) -> None:
    assert sorted(ids(retriever.search(["x"], k=10_000)[0])) == [f"d{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"queries": [""]}, "'' is empty"),
        ({"queries": ["a", " \n"]}, r"' \\n' is empty"),
        ({"queries": [None]}, "must be a string"),
        ({"queries": "Orlan"}, r"search\(\['Orlan'\]\)"),
        ({"queries": ["a"], "k": 0}, "k=0"),
        ({"queries": ["a"], "where": {"yaer": 1}}, "'yaer', which no document has; known keys: .* n, "),
    ],
)
def test_bad_arguments_are_named(retriever: Retriever, arguments: dict, words: str) -> None:
    with pytest.raises(RestillError, match=words):
        retriever.search(**arguments)


@pytest.fixture(scope="module")
def numbered(make_encoder) -> Retriever:
    documents = [{"_id": str(n), "text": f"word{n % 7} and word{n % 5}", "metadata": {"n": n}} for n in range(200)]
    return Retriever.from_documents(documents, make_encoder())


@settings(max_examples=60, deadline=None)
@given(wanted=st.sets(st.integers(0, 199)), k=st.integers(1, 250))
def test_a_filter_is_exact_at_any_selectivity(numbered: Retriever, wanted: set[int], k: int) -> None:
    everything = numbered.search(["word3"], k=200)[0]
    expected = [hit for hit in everything if int(hit.chunk.doc_id) in wanted][:k]
    assert numbered.search(["word3"], k=k, where={"n": wanted})[0] == expected
    assert numbered.search(["word3"], k=k, where=lambda chunk: chunk.metadata["n"] in wanted)[0] == expected


def test_filters_name_fields_lists_and_several_keys(retriever: Retriever) -> None:
    def found(**where: object) -> set[str]:
        return set(ids(retriever.search(["x"], k=9, where=where)[0]))

    assert found(tags="odd") == {"d1", "d3"}
    assert found(tags=["odd", "even"]) == found() == {"d0", "d1", "d2", "d3", "d4"}
    assert found(tags="odd", n=3) == found(doc_id="d3") == found(title="Fact 3") == {"d3"}
    assert found(tags="odd", n=2) == set()


def test_concurrent_searches_share_batches_and_get_their_own_results(retriever: Retriever, encoder) -> None:
    async def many() -> list[list[Hit]]:
        async def one(n: int) -> list[Hit]:
            await asyncio.sleep(0.001 * (n % 3))
            return await retriever.asearch(FACTS[n % 5], k=1 + n % 4)

        return await asyncio.gather(*(one(n) for n in range(60)))

    encoder.batches.clear()
    for _ in range(2):  # a second event loop
        results = asyncio.run(many())
        assert [len(hits) for hits in results] == [1 + n % 4 for n in range(60)]
        assert [ids(hits)[0] for hits in results] == [f"d{n % 5}" for n in range(60)]
    assert sum(encoder.batches) == 120 and len(encoder.batches) < 30
    assert results[7] == retriever.search([FACTS[2]], k=4)[0]


def test_searching_leaves_the_event_loop_free(retriever: Retriever, encoder) -> None:
    entered, release = threading.Event(), threading.Event()
    encode = encoder.encode

    def slow(texts, **options):
        entered.set()
        assert release.wait(10)
        return encode(texts, **options)

    encoder.encode = slow

    async def main() -> list[list[Hit]]:
        first = asyncio.create_task(retriever.asearch("Orlan"))
        await asyncio.to_thread(entered.wait)
        later = [asyncio.create_task(retriever.asearch("Tarn")) for _ in range(5)]
        await asyncio.sleep(0)
        later.pop().cancel()
        release.set()
        return await asyncio.gather(first, *later)

    encoder.batches.clear()
    results = asyncio.run(main())
    assert [ids(hits)[0] for hits in results] == ["d0"] + [results[1][0].chunk.doc_id] * 4
    assert encoder.batches == [1, 4]  # while the first was searched, the rest gathered; one was cancelled


def test_one_callers_error_is_not_anothers(retriever: Retriever, encoder) -> None:
    def broken(chunk: object) -> bool:
        raise ZeroDivisionError

    async def main() -> list:
        asks = [
            {"query": "deep sea"},
            {"query": "deep sea", "where": broken},
            {"query": " "},
            {"query": "deep sea", "where": {"n": 3}},
        ]
        return await asyncio.gather(*(retriever.asearch(**ask) for ask in asks), return_exceptions=True)

    good, bad, empty, filtered = asyncio.run(main())
    assert ids(good)[0] == "d3" and ids(filtered) == ["d3"]
    assert isinstance(bad, ZeroDivisionError) and isinstance(empty, RestillError)
    encoder.encode = lambda texts, **options: 1 / 0
    assert all(isinstance(error, ZeroDivisionError) for error in asyncio.run(main())[:2])


def test_the_tool_is_a_typed_async_function(retriever: Retriever) -> None:
    tool = retriever.as_tool(name="lookup", k=1)
    assert tool.__name__ == "lookup" and tool.__doc__
    assert typing.get_type_hints(tool) == {"query": str, "return": list[Hit]}
    assert ids(asyncio.run(tool("deep sea"))) == ["d3"]
    assert tool.fingerprint == retriever.as_tool(k=1).fingerprint != retriever.as_tool(k=2).fingerprint
    langchain = StructuredTool.from_function(coroutine=tool)
    assert langchain.name == "lookup" and list(langchain.args) == ["query"]
    assert ids(asyncio.run(langchain.ainvoke({"query": "deep sea"}))) == ["d3"]


def test_it_is_a_langchain_retriever(retriever: Retriever) -> None:
    documents = retriever.invoke("deep sea")
    assert len(documents) == 2 and documents == asyncio.run(retriever.ainvoke("deep sea"))
    score = documents[0].metadata.pop("score")
    assert documents[0] == LangChainDocument(
        id="d3#0",
        page_content="the sea is deep",
        metadata={
            "n": 3,
            "tags": ["odd"],
            "doc_id": "d3",
            "chunk_id": "d3#0",
            "start": 0,
            "end": 15,
            "title": "Fact 3",
        },
    )
    assert 0 < score <= 1
    assert [d.id for d in retriever.invoke("sea", k=9, where={"n": [1, 2]})] in (
        ["d1#0", "d2#0"],
        ["d2#0", "d1#0"],
    )
    assert [len(found) for found in asyncio.run(retriever.abatch(["a", "b", "c"]))] == [2, 2, 2]


def test_documents_of_other_kinds_are_read(encoder) -> None:
    mixed = [
        Document(id="a", text="ours"),
        {"_id": "b", "title": "B", "text": "mapping"},
        LangChainDocument(page_content="theirs", metadata={"title": "L", "page": 3}),
    ]
    chunks = Retriever.from_documents(mixed, encoder).chunks
    assert [(c.doc_id, c.title) for c in chunks] == [("a", ""), ("b", "B"), ("2", "L")]
    assert chunks[2].metadata["page"] == 3


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([], "collection is empty"),
        ([Document(id="a", text=" ")], "collection is empty: 1 documents"),
        ([Document(id="a", text="x"), Document(id="a", text="y")], "'a' occurs twice"),
        (["text"], "number 0 is a str"),
        ([{"_id": "a"}], "number 0: 'text'"),
    ],
)
def test_bad_collections_are_named(encoder, documents: list, words: str) -> None:
    with pytest.raises(RestillError, match=words):
        Retriever.from_documents(documents, encoder)


def test_saved_and_opened_it_answers_the_same(tmp_path: Path, retriever: Retriever, make_encoder) -> None:
    folder = retriever.save(tmp_path / "index")
    for again in (
        Retriever.open(folder, make_encoder()),
        Retriever.from_path(folder, encoder=make_encoder()),
    ):
        assert again.search(FACTS, k=5) == retriever.search(FACTS, k=5)
        assert again.fingerprint == retriever.fingerprint
    with pytest.raises(RestillError, match="'hashing'.*not with 'other'"):
        Retriever.open(folder, make_encoder(name="other"))
    with pytest.raises(RestillError, match="is an index; give it alone"):
        Retriever.from_path(folder, tmp_path, encoder=make_encoder())


def test_the_log_does_not_grow_with_what_is_added(tmp_path: Path, retriever, make_encoder, monkeypatch) -> None:
    monkeypatch.setattr("restill.retrieval.store.LOG_LIMIT", 1 << 19)
    opened, sizes = Retriever.open(retriever.save(tmp_path / "index"), make_encoder()), []
    for n in range(200):
        opened.add([Document(id=f"more{n}", text=f"{n} words.")])
        sizes.append((opened.index.folder / "store.db-wal").stat().st_size)
    assert max(sizes) < 1 << 20


def test_an_index_is_searched_once(tmp_path: Path, retriever: Retriever, encoder) -> None:
    folder = retriever.save(tmp_path / "index")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(RestillError, match="link and .*index are the same index"):
        Retriever.open([folder, tmp_path / "link"], encoder)


def test_a_copy_searches_in_its_own_mode(retriever: Retriever, make_encoder) -> None:
    plain = retriever.search(["Tarn"])[0]
    sparse = retriever.model_copy(update={"mode": "sparse", "k": 1})
    assert asyncio.run(sparse.asearch("Tarn")) == sparse.search(["Tarn"])[0] != plain[:1]
    assert asyncio.run(copy.copy(retriever).asearch("Tarn")) == asyncio.run(retriever.asearch("Tarn")) == plain
    for update, words in (({"mode": "best"}, "unknown mode"), ({"encoder": make_encoder(name="other")}, "built with")):
        with pytest.raises(RestillError, match=words):
            retriever.model_copy(update=update)


def test_from_path_says_what_it_left_out(tmp_path: Path, encoder) -> None:
    (tmp_path / "a.md").write_text("# Kestrel\n\nBuilt by Corvid.")
    (tmp_path / "b.docx").write_text("x")
    (tmp_path / "c.txt").write_text("")
    retriever = Retriever.from_path(tmp_path, encoder=encoder)
    assert ids(retriever.search(["Corvid"])[0]) == ["a.md"]
    assert len(retriever.load_warnings) == 2 and ".docx" in " ".join(retriever.load_warnings)


def test_titles_resolve_to_all_documents_that_bear_them(encoder) -> None:
    titles = ["Ed Wood", "Ed Wood", "Super_Bowl 50", "IT", "It", "Tom &amp; Jerry", ""]
    documents = [Document(id=str(n), title=title, text="t " * 100) for n, title in enumerate(titles)]
    retriever = Retriever.from_documents(documents, encoder)
    asked = ["Ed Wood", "ed  wood", "Super Bowl 50", "IT", "it", "Tom & Jerry", "Ed", ""]
    assert [retriever.resolve_title(title) for title in asked] == [
        ["0", "1"], ["0", "1"], ["2"], ["3"], ["3", "4"], ["5"], [], []
    ]  # fmt: skip


def test_the_types_load_neither_faiss_nor_langchain() -> None:
    code = "import sys, restill.retrieval.types; print({'faiss', 'langchain_core', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
def test_with_minilm_meaning_counts_and_not_words() -> None:
    documents = [
        Document(id="ship", text="The vessel went down in a storm off the coast."),
        Document(id="bread", text="Knead the dough and let it rise for an hour."),
        Document(id="stock", text="Shares of the company fell by ten percent."),
    ]
    retriever = Retriever.from_documents(documents)
    queries = ["shipwreck", "baking recipe", "financial markets"]
    assert [ids(hits)[0] for hits in retriever.search(queries, k=1)] == ["ship", "bread", "stock"]
