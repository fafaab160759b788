"""The folder of an index: replaced whole or not at all, cleared of what a kill left, told from other folders."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from restill.models.errors import RestillError
from restill.retrieval.build import build_index, create_index
from restill.retrieval.folder import is_index, replacing
from restill.retrieval.index import Index
from restill.retrieval.store import Store
from restill.retrieval.types import Document

DOCUMENTS = [Document(id=f"d{n}", title=f"Title {n}", text=f"Text number {n}. " * 30) for n in range(5)]

KILLED = """
import os, sys
from pathlib import Path
from restill.retrieval.folder import replacing
with replacing(Path(sys.argv[1])) as fresh:
    (fresh / "store.db").write_bytes(b"half of it")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def index(encoder) -> Index:
    return build_index(DOCUMENTS, encoder)[0]


def chunks(index: Index) -> list:
    return [chunk for _, chunk in index.view.store.all_chunks()]


def test_saving_replaces_an_index_and_nothing_else(tmp_path: Path, encoder, index: Index) -> None:
    folder = index.save(tmp_path / "index")
    build_index(DOCUMENTS[:1], encoder)[0].save(folder)
    assert {chunk.doc_id for chunk in chunks(Index.open(folder))} == {"d0"}
    assert os.listdir(tmp_path) == ["index"]
    (tmp_path / "empty").mkdir()
    assert is_index(index.save(tmp_path / "empty"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    for name in ("mine", "mine/notes.txt"):
        with pytest.raises(RestillError, match="exists and is no index"):
            index.save(tmp_path / name)
        with pytest.raises(RestillError, match="exists and is not empty"):
            create_index(tmp_path / name, "hashing", encoder)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_opened_index_is_saved_elsewhere_whole(tmp_path: Path, index: Index, kind: str) -> None:
    index.compact(kind)
    first = Index.open(index.save(tmp_path / "first"))
    again = Index.open(first.save(tmp_path / "again"))
    assert again.fingerprint == index.fingerprint and again.kind == kind and not again.check()
    assert len(list((tmp_path / "again").glob("*.faiss"))) == 1


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_index(tmp_path: Path, encoder, index: Index, failing: str, monkeypatch) -> None:
    folder = index.save(tmp_path / "index")
    calls = []

    def full(*args: object) -> None:
        calls.append(args)
        if failing == "fsync" or len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    real = getattr(os, failing)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        patch.setattr("restill.retrieval.folder._exchanged", lambda one, other: False)  # two renames
        with pytest.raises(RestillError, match="cannot write .*No space left"):
            build_index(DOCUMENTS[:1], encoder)[0].save(folder)
    assert Index.open(folder).fingerprint == index.fingerprint and os.listdir(tmp_path) == ["index"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is of Linux")
def test_at_no_moment_of_replacing_is_there_no_index(tmp_path: Path, encoder, index: Index, monkeypatch) -> None:
    folder = index.save(tmp_path / "index")

    def two_steps(*args: object) -> None:
        raise AssertionError("between two renames nothing would be there")

    monkeypatch.setattr(os, "rename", two_steps)
    build_index(DOCUMENTS[:1], encoder)[0].save(folder)
    assert {chunk.doc_id for chunk in chunks(Index.open(folder))} == {"d0"} and os.listdir(tmp_path) == ["index"]


def test_an_error_of_the_store_while_saving_is_named(tmp_path: Path, index: Index, monkeypatch) -> None:
    def full(store: Store, path: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "copy_to", full)
    with pytest.raises(RestillError, match="cannot write the index .*disk is full"):
        index.save(tmp_path / "index")
    assert os.listdir(tmp_path) == []


def leftovers(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder.parent) if name.startswith(f".{folder.name}.")}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no telling whether a process lives")
def test_what_a_killed_save_left_goes_at_the_next_and_what_is_in_use_stays(tmp_path: Path, index: Index) -> None:
    folder = tmp_path / "index"
    (tmp_path / ".index.settings").mkdir()  # somebody else's
    killed = [subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)]) for name in ("index", "index.v2")]
    assert [process.returncode for process in killed] == [-9, -9]
    others = leftovers(tmp_path / "index.v2") | {".index.settings"}
    assert len(others) == 2 and len(leftovers(folder) - others) == 1
    with replacing(folder) as fresh:
        assert leftovers(folder) - others == {fresh.parent.name}
        assert is_index(index.save(folder))
        assert leftovers(folder) - others == {fresh.parent.name} and fresh.is_dir()
    assert leftovers(folder) == others


def test_the_only_copy_of_an_index_is_no_leftover(tmp_path: Path, index: Index, monkeypatch) -> None:
    folder = index.save(tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr("restill.retrieval.folder._remove", lambda *folders: None)  # killed between two renames
        with replacing(tmp_path / "index"):
            pass
    (work,) = leftovers(folder)
    os.rename(folder, tmp_path / work / "old")
    index.save(folder)
    assert leftovers(folder) == {work}  # it was all there was
    index.save(folder)
    assert leftovers(folder) == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 1}, "format version 1, this restill reads 2; build it again"),
        ({"format": "other"}, "is no index"),
        ({"encoder": None}, "damaged"),
        ({"encoder": {"fingerprint": "x", "dim": 128}}, "different encoders"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, index: Index, change: dict, words: str) -> None:
    file = index.save(tmp_path / "index") / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RestillError, match=words):
        Index.open(tmp_path / "index")
    file.write_text("{")
    with pytest.raises(RestillError, match="is no JSON"):
        Index.open(tmp_path / "index")
    with pytest.raises(RestillError, match="is no index"):
        Index.open(tmp_path)
