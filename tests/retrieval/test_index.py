"""The index folder: written whole, checked when opened."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from restill.models.errors import RestillError
from restill.retrieval.build import build_index
from restill.retrieval.index import Index, is_index
from restill.retrieval.types import Document

DOCUMENTS = [
    Document(id=f"d{n}", title=f"Title {n}", text=f"Text number {n}. " * 30, metadata={"n": n, "é": None})
    for n in range(5)
]


@pytest.fixture
def index(encoder) -> Index:
    return build_index(DOCUMENTS, encoder)[0]


def test_what_is_saved_is_opened_again(tmp_path: Path, index: Index) -> None:
    folder = index.save(tmp_path / "deep" / "index")
    again = Index.open(folder)
    assert sorted(os.listdir(folder)) == ["chunks.jsonl", "index.json", "vectors.faiss"]
    assert again.chunks == index.chunks and again.fingerprint == index.fingerprint
    assert again.encoder == "hashing" and len(again.vectors) == len(again.chunks)
    manifest = json.loads((folder / "index.json").read_text())
    assert manifest["documents"] == 5 and manifest["encoder"]["dim"] == 128 and manifest["version"] == 1
    assert is_index(folder) and not is_index(tmp_path)


def test_the_fingerprint_depends_on_every_document(encoder, index: Index) -> None:
    same, _ = build_index(DOCUMENTS, encoder)
    fewer, _ = build_index(DOCUMENTS[:4], encoder)
    assert same.fingerprint == index.fingerprint != fewer.fingerprint


def test_saving_replaces_an_index_and_nothing_else(tmp_path: Path, encoder, index: Index) -> None:
    folder = index.save(tmp_path / "index")
    build_index(DOCUMENTS[:1], encoder)[0].save(folder)
    assert {chunk.doc_id for chunk in Index.open(folder).chunks} == {"d0"}
    assert os.listdir(tmp_path) == ["index"]
    (tmp_path / "empty").mkdir()
    assert is_index(index.save(tmp_path / "empty"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    for name in ("mine", "mine/notes.txt"):
        with pytest.raises(RestillError, match="exists and is no index"):
            index.save(tmp_path / name)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


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
        with pytest.raises(RestillError, match="cannot write the index .*No space left"):
            build_index(DOCUMENTS[:1], encoder)[0].save(folder)
    assert Index.open(folder).fingerprint == index.fingerprint and os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize("name", ["chunks.jsonl", "vectors.faiss"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_before_a_file_is_parsed(tmp_path: Path, index: Index, name: str, damage: str) -> None:
    file = index.save(tmp_path / "index") / name
    data = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(RestillError, match=name):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "format version 2"),
        ({"format": "other"}, "is no index"),
        ({"sha256": {}}, "damaged"),
        ({"encoder": None}, "damaged"),
        ({"chunks": 1}, "vectors"),
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


def test_metadata_that_is_no_json_is_named(tmp_path: Path, encoder) -> None:
    index, _ = build_index([Document(id="a", text="t", metadata={"x": object()})], encoder)
    with pytest.raises(RestillError, match="metadata cannot be written as JSON"):
        index.save(tmp_path / "index")
    assert os.listdir(tmp_path) == []
