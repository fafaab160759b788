"""The index folder: created and saved whole, checked when opened, mended from its store."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from pathlib import Path

import faiss
import pytest

from restill.models.errors import RestillError
from restill.retrieval import faiss_file
from restill.retrieval.build import build_index, create_index, embed, put
from restill.retrieval.folder import is_index
from restill.retrieval.index import Index
from restill.retrieval.types import Document
from restill.retrieval.view import View

DOCUMENTS = [
    Document(id=f"d{n}", title=f"Title {n}", text=f"Text number {n}. " * 30, metadata={"n": n, "é": None})
    for n in range(5)
]


@pytest.fixture
def index(encoder) -> Index:
    return build_index(DOCUMENTS, encoder)[0]


def chunks(index: Index) -> list:
    return [chunk for _, chunk in index.view.store.all_chunks()]


def test_what_is_saved_is_opened_again(tmp_path: Path, index: Index) -> None:
    folder = index.save(tmp_path / "deep" / "index")
    assert sorted(path.suffix for path in folder.iterdir()) == [".db", ".faiss", ".json"]
    again = Index.open(folder)
    assert chunks(again) == chunks(index) and again.fingerprint == index.fingerprint
    assert again.encoder == "hashing" and len(again.view.dense) == len(again) == len(chunks(index))
    assert again.view.dense.stale == 0 and again.check() == []
    manifest = json.loads((folder / "index.json").read_text())
    assert manifest["version"] == 2 and manifest["encoder"]["dim"] == 128
    assert is_index(folder) and not is_index(tmp_path)


def test_the_fingerprint_tells_contents_apart_and_not_histories(encoder, index: Index) -> None:
    same, _ = build_index(DOCUMENTS[::-1], encoder)
    fewer, _ = build_index(DOCUMENTS[:4], encoder)
    assert same.fingerprint == index.fingerprint != fewer.fingerprint
    put(fewer, DOCUMENTS[4:], encoder)
    assert fewer.fingerprint == index.fingerprint
    put(fewer, [Document(id="d0", text="other")], encoder, replace=True)
    assert fewer.fingerprint != index.fingerprint
    put(fewer, DOCUMENTS, encoder, replace=True)
    assert fewer.fingerprint == index.fingerprint


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_faiss_file_is_refused_and_made_again(tmp_path: Path, index: Index, encoder, damage: str) -> None:
    folder = index.save(tmp_path / "index")
    file = next(folder.glob("*.faiss"))
    data = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(RestillError, match=rf"{file.name}.*--repair"):
        Index.open(folder)
    broken = Index.open(folder, derived=False)
    assert len(broken.check()) == 1
    assert broken.repair(lambda chunks: embed(chunks, encoder)) == []
    again = Index.open(folder)
    queries = encoder.encode(["Text number 3", "Title 4"])
    assert again.view.dense.search(queries, 9) == index.view.dense.search(queries, 9)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE vectors SET vector = zeroblob(512) WHERE row = 2", "1 vectors do not have their hash: rows 2"),
        ("DELETE FROM vectors WHERE row = 3", "1 rows have no vector: 3"),
        ("INSERT INTO vectors VALUES (99, zeroblob(512), x'00')", "1 rows have a vector but no passage: 99"),
        ("DELETE FROM sparse WHERE rowid = 1", "sparse index lacks 1 rows"),
        ("DELETE FROM terms WHERE document = 2", "the filters of 1 documents"),
        ("UPDATE meta SET value = '7' WHERE key = 'chunks'", "the recorded number"),
        ("UPDATE meta SET value = json_set(value, '$.last_row', 0) WHERE key = 'faiss'", "has 20 too many"),
    ],
)
def test_what_does_not_agree_is_named_and_mended(tmp_path: Path, index: Index, encoder, damage: str, words) -> None:
    folder = index.save(tmp_path / "index")
    with sqlite3.connect(folder / "store.db") as connection:
        connection.execute(damage)
    connection.close()
    broken = Index.open(folder, derived=False)
    assert words in " ".join(broken.check())
    assert broken.repair(lambda chunks: embed(chunks, encoder)) == []
    assert Index.open(folder).check() == []
    assert chunks(Index.open(folder)) == chunks(index)


@pytest.mark.parametrize(
    "damage",
    ["documents SET metadata = '{'", "documents SET metadata = '3'", "documents SET extra = '[1'",
     "chunks SET extra = 'x'"],
)  # fmt: skip
def test_a_document_whose_json_is_broken_is_named_and_mended(tmp_path, index: Index, encoder, damage: str) -> None:
    folder = index.save(tmp_path / "index")
    with sqlite3.connect(folder / "store.db") as connection:
        connection.execute(f"UPDATE {damage} WHERE document = 4")
        connection.execute("DELETE FROM vectors WHERE row IN (SELECT row FROM chunks WHERE document = 4)")
    connection.close()
    broken = Index.open(folder, derived=False)
    words = "1 documents or their passages were changed: d3; repair, then add"
    assert words in " ".join(broken.check())
    if "documents SET extra" not in damage:
        with pytest.raises(RestillError, match="document 'd3' is damaged"):
            chunks(broken)
    (left,) = broken.repair(lambda chunks: embed(chunks, encoder))
    assert words in left and len(chunks(broken)) == len(chunks(index))
    put(broken, DOCUMENTS, encoder, replace=True)
    assert broken.check() == [] and broken.fingerprint == index.fingerprint


@pytest.mark.parametrize("table", ["documents", "chunks"])
def test_damage_to_a_document_is_named_and_mended_by_adding_it_again(tmp_path, index: Index, encoder, table) -> None:
    folder = index.save(tmp_path / "index")
    with sqlite3.connect(folder / "store.db") as connection:
        connection.execute(f"UPDATE {table} SET text = replace(text, 'number 3', 'damage 3')")
    connection.close()
    broken = Index.open(folder)
    words = "1 documents or their passages were changed: d3; repair, then add"
    assert words in " ".join(broken.check())
    (left,) = broken.repair(lambda chunks: embed(chunks, encoder))
    assert words in left
    put(broken, DOCUMENTS, encoder, replace=True)
    assert broken.check() == [] and broken.fingerprint == index.fingerprint
    assert {c.chunk_id: c for c in chunks(broken)} == {c.chunk_id: c for c in chunks(index)}


def test_a_broken_store_is_named(tmp_path: Path, index: Index) -> None:
    file = index.save(tmp_path / "index") / "store.db"
    file.write_bytes(b"nonsense" * 1000)
    with pytest.raises(RestillError, match=r"store\.db: is no store, or damaged"):
        Index.open(tmp_path / "index")
    file.unlink()
    with pytest.raises(RestillError, match=r"store\.db"):
        Index.open(tmp_path / "index")


def test_where_nothing_can_be_written_a_log_is_not_passed_over(tmp_path: Path, index: Index, encoder) -> None:
    opened = Index.open(index.save(tmp_path / "index"))
    put(opened, [Document(id="new", text="something else")], encoder)
    for name, left_out in (("with", "nothing"), ("without", "store.db-wal")):
        copy = shutil.copytree(opened.folder, tmp_path / name, ignore=shutil.ignore_patterns("*-shm", left_out))
        (copy / "store.db-shm").symlink_to("nowhere/shm")  # so not even root can make the shared memory
    with pytest.raises(RestillError, match=r"unable to open.*store.db-wal holds changes"):
        Index.open(tmp_path / "with")
    assert Index.open(tmp_path / "without").fingerprint == index.fingerprint
    (unchecked,) = Index.open(tmp_path / "without").check()
    assert "the sparse index was not checked: unable to open" in unchecked
    store = tmp_path / "without" / "store.db"
    store.write_bytes(store.read_bytes()[:100] + bytes(8092))
    with pytest.raises(RestillError, match=r"store\.db: is no store, or damaged"):
        Index.open(tmp_path / "without")


def test_metadata_that_is_no_json_is_named(encoder) -> None:
    with pytest.raises(RestillError, match="metadata cannot be written as JSON"):
        build_index([Document(id="a", text="t", metadata={"x": object()})], encoder)


def test_readers_keep_their_file_while_another_is_written(tmp_path: Path, index: Index, encoder) -> None:
    folder = index.save(tmp_path / "index")
    reader, writer = Index.open(folder), Index.open(folder)
    before, view = chunks(reader), reader.view
    put(writer, [Document(id="new", text="something else")], encoder, delete=["d1"])
    writer.compact("hnsw")
    query = encoder.encode(["Text number 1"])
    assert chunks(reader) == before and len(reader.view.dense.search(query, 99)[0]) == len(before)
    assert reader.refresh() and not reader.refresh()
    assert reader.fingerprint == writer.fingerprint and reader.view.dense.kind == "hnsw"
    assert {chunk.doc_id for chunk in chunks(reader)} == {"d0", "d2", "d3", "d4", "new"}
    assert len(view.store.chunks(view.dense.rows)) == len(before)
    assert len(list(folder.glob("*.faiss"))) == 1 and reader.check() == []


@pytest.mark.parametrize("how", ["compact", "repair"])
def test_a_reader_forgets_what_an_emptied_index_had(tmp_path: Path, encoder, how: str) -> None:
    writer = create_index(tmp_path / "index", "hashing", encoder)
    put(writer, DOCUMENTS, encoder)
    reader = Index.open(writer.folder)
    assert reader.view.meta["faiss"] is None and len(reader.view.dense) > 0
    writer.write([], delete=[document.id for document in DOCUMENTS])
    if how == "compact":
        writer.compact()
    else:
        assert writer.repair(lambda chunks: embed(chunks, encoder)) == []
    put(writer, [Document(id="new", text="something else")], encoder)
    assert reader.refresh() and reader.view.dense.rows.tolist() == writer.view.dense.rows.tolist()


def test_checking_while_another_writes_finds_nothing_wrong(tmp_path: Path, index: Index, encoder, monkeypatch) -> None:
    opened, other = (Index.open(folder) for folder in [index.save(tmp_path / "index")] * 2)
    threads, view = [], View.open

    def then_write(*args, **options):
        found = view(*args, **options)
        documents = [Document(id=str(len(threads)), text="something else")]
        threads.append(threading.Thread(target=put, args=(other, documents, encoder)))
        threads[-1].start()
        threads[-1].join(0.3)  # or it waits for the check
        return found

    with monkeypatch.context() as patch:
        patch.setattr("restill.retrieval.check.View.open", then_write)
        assert opened.check() == []
    threads[0].join()
    assert opened.refresh() and len(opened.view.dense) == len(index) + len(threads) == len(index) + 1


def test_checking_while_another_compacts_finds_nothing_wrong(tmp_path: Path, index: Index, monkeypatch) -> None:
    opened, other = (Index.open(folder) for folder in [index.save(tmp_path / "index")] * 2)
    read = faiss_file.read

    def late(*args, **options):
        monkeypatch.setattr(faiss_file, "read", read)
        other.compact("hnsw")
        return read(*args, **options)

    monkeypatch.setattr(faiss_file, "read", late)
    assert opened.check() == [] and opened.refresh() and opened.kind == "hnsw"


def test_a_file_that_goes_while_it_is_read_is_looked_up_again(tmp_path: Path, index: Index, monkeypatch) -> None:
    folder = index.save(tmp_path / "index")
    other, read = Index.open(folder), faiss.read_index

    def late(*args):
        monkeypatch.setattr(faiss, "read_index", read)
        other.compact("hnsw")  # after the hash of the old file was compared
        return read(*args)

    monkeypatch.setattr(faiss, "read_index", late)
    assert Index.open(folder).view.dense.kind == "hnsw"


def test_compaction_comes_when_a_fifth_is_stale(tmp_path: Path, index: Index, encoder) -> None:
    opened = Index.open(index.save(tmp_path / "index"))
    file = opened.view.meta["faiss"]["name"]
    put(opened, [Document(id="new", text="one")], encoder)
    assert not opened.compact_if_due() and opened.view.dense.stale == 1
    put(opened, [Document(id=f"new{n}", text=f"more {n}") for n in range(10)], encoder)
    assert opened.compact_if_due(1) and opened.view.meta["faiss"]["name"] != file
    assert opened.view.dense.stale == 0 and opened.check() == []


def test_the_log_does_not_grow_with_what_is_written(tmp_path: Path, index: Index, encoder, monkeypatch) -> None:
    monkeypatch.setattr("restill.retrieval.store.LOG_LIMIT", 1 << 18)
    opened, sizes = Index.open(index.save(tmp_path / "index")), []
    for n in range(60):
        put(opened, [Document(id=f"more{n}", text=f"{n} words. " * 300)], encoder)
        sizes.append((opened.folder / "store.db-wal").stat().st_size)
    assert (opened.folder / "store.db").stat().st_size > 3 * max(sizes) and max(sizes) < 1 << 19
    assert opened.check() == []


def test_a_log_that_was_long_once_is_cut(tmp_path: Path, index: Index, encoder, monkeypatch) -> None:
    monkeypatch.setattr("restill.retrieval.store.LOG_LIMIT", 1 << 18)
    opened = Index.open(index.save(tmp_path / "index"))
    log = opened.folder / "store.db-wal"
    put(opened, [Document(id=f"long{n}", text="words. " * 3000) for n in range(60)], encoder, whole=True)
    assert log.stat().st_size > 1 << 20
    put(opened, [Document(id="short", text="words.")], encoder)
    assert log.stat().st_size <= 1 << 18
