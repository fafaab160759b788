"""``restill index``: files come, change and go, and the index follows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from restill.models.errors import RestillError
from restill.retrieval import build
from restill.retrieval.build import build_index
from restill.retrieval.index import Index
from restill.retrieval.maintain import bring_up_to_date, check_index
from restill.retrieval.types import Document


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Orlan founded Corvid.")
    (folder / "b.txt").write_text("Mira leads Tarn.")
    rows = [{"_id": f"r{n}", "text": f"Row number {n}."} for n in range(3)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def counts(report: dict) -> tuple[int, ...]:
    return tuple(report[key] for key in ("added", "updated", "unchanged", "embedded", "deleted"))


def test_only_what_changed_is_embedded(tmp_path: Path, docs: Path, encoder) -> None:
    out = tmp_path / "index"
    assert counts(bring_up_to_date(out, [docs], encoder=encoder)) == (5, 0, 0, 5, 0)
    encoder.batches.clear()
    assert counts(bring_up_to_date(out, [docs], encoder=encoder)) == (0, 0, 5, 0, 0)
    assert sum(encoder.batches) == 0
    (docs / "b.txt").write_text("Mira left Tarn.")
    (docs / "d.txt").write_text("The sea is deep.")
    assert counts(bring_up_to_date(out, [docs], encoder=encoder)) == (1, 1, 4, 2, 0)
    fresh = bring_up_to_date(tmp_path / "fresh", [docs], encoder=encoder)
    assert fresh["fingerprint"] == Index.open(out).fingerprint and check_index(out) == []


def test_what_is_gone_is_deleted_only_when_asked(tmp_path: Path, docs: Path, encoder) -> None:
    out, elsewhere = tmp_path / "index", tmp_path / "more.txt"
    elsewhere.write_text("From another place.")
    bring_up_to_date(out, [docs, elsewhere], encoder=encoder)
    (docs / "a.txt").unlink()
    (docs / "b.txt").write_bytes(b"")  # there, but nothing can be read from it: no reason to forget it
    (docs / "c.jsonl").write_text('{"_id": "r1", "text": "Row number 1."}\n')
    report = bring_up_to_date(out, [docs], encoder=encoder)
    assert report["documents"] == 6 and report["deleted"] == 0
    assert "3 documents are gone from the files given; --prune would delete a.txt, r0, r2" in report["warnings"]
    report = bring_up_to_date(out, [docs], encoder=encoder, prune=True)
    assert report["deleted"] == 3
    names = Index.open(out).view.store.select("SELECT doc_id FROM documents ORDER BY doc_id")
    assert [name for (name,) in names] == ["b.txt", "more.txt", "r1"]


def test_a_folder_that_cannot_be_listed_keeps_its_documents(tmp_path: Path, docs: Path, encoder, monkeypatch) -> None:
    out, closed = tmp_path / "index", docs / "deep" / "closed"
    closed.mkdir(parents=True)
    (closed / "inner").mkdir()
    (closed / "inner" / "x.txt").write_text("Behind a closed door.")
    bring_up_to_date(out, [docs], encoder=encoder)
    scandir = os.scandir

    def refused(path):  # chmod 0 would not stop root
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    exists = os.path.exists
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        patch.setattr(os.path, "exists", lambda path: not str(path).startswith(str(closed)) and exists(path))
        report = bring_up_to_date(out, [docs], encoder=encoder, prune=True)
    assert report["deleted"] == 0 and "cannot be listed" in " ".join(report["warnings"])
    assert bring_up_to_date(out, [docs], encoder=encoder, prune=True)["unchanged"] == 6


def test_a_file_of_the_same_name_elsewhere_does_not_take_its_place(tmp_path: Path, encoder) -> None:
    out, one, other = tmp_path / "index", tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "readme.md").write_text(f"About {folder.name}.")
    bring_up_to_date(out, [one], encoder=encoder)
    with pytest.raises(RestillError, match=r"'readme.md': .*other/readme.md would replace .*one/readme.md.*--out"):
        bring_up_to_date(out, [other], encoder=encoder)
    (tmp_path / "link").symlink_to(one)  # another way to the same file
    assert counts(bring_up_to_date(out, [tmp_path / "link"], encoder=encoder))[:2] == (0, 1)
    (one / "readme.md").unlink()  # moved away
    assert counts(bring_up_to_date(out, [other], encoder=encoder))[:2] == (0, 1)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path, docs: Path, encoder, monkeypatch) -> None:
    monkeypatch.setattr(build, "BATCH", 2)
    encode, out = encoder.encode, tmp_path / "index"

    def interrupted(texts, **options):
        if sum(encoder.batches) >= 4:
            raise KeyboardInterrupt
        return encode(texts, **options)

    encoder.encode = interrupted
    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(out, [docs], encoder=encoder)
    half = Index.open(out)
    assert len(half) == 4 and half.view.meta["unfinished"] and half.check() == []
    encoder.encode = encode
    assert counts(bring_up_to_date(out, [docs], encoder=encoder)) == (1, 0, 4, 1, 0)
    assert not Index.open(out).view.meta["unfinished"]


def test_deleting_and_another_kind_need_no_files(tmp_path: Path, docs: Path, encoder) -> None:
    out = tmp_path / "index"
    bring_up_to_date(out, [docs], encoder=encoder)
    assert bring_up_to_date(out, [], delete=["r1", "a.txt"])["documents"] == 3
    bring_up_to_date(out, [], kind="hnsw")
    assert Index.open(out).view.dense.kind == "hnsw" and check_index(out) == []


def test_contradictions_are_named(tmp_path: Path, docs: Path, encoder, make_encoder) -> None:
    out = tmp_path / "index"
    bring_up_to_date(out, [docs], encoder=encoder)
    for options, words in (
        ({"encoder": "other"}, "built with encoder 'hashing', not 'other'"),
        ({"encoder": make_encoder(name="other")}, "built with another 'hashing'"),
        ({"encoder": encoder, "chunk_tokens": 32}, "has passages of all the encoder takes tokens, not 32"),
        ({"encoder": encoder, "kind": "pq"}, "kind='pq' is unknown"),
    ):
        with pytest.raises(RestillError, match=words):
            bring_up_to_date(out, [docs], **options)
    with pytest.raises(RestillError, match="no document 'zz'"):
        bring_up_to_date(out, [], delete=["zz"])
    with pytest.raises(RestillError, match="is no index; give files"):
        bring_up_to_date(tmp_path / "nothing", [], delete=["a"])
    (out / "index.json").write_text('{"format": "restill-index", "version": 1}')
    with pytest.raises(RestillError, match="format version 1.*build it again"):
        bring_up_to_date(out, [docs], encoder=encoder)


def test_a_large_flat_index_is_advised_another_kind(tmp_path: Path, encoder, monkeypatch) -> None:
    monkeypatch.setattr("restill.retrieval.faiss_file.FLAT_UP_TO", 2)
    index, _ = build_index([Document(id=str(n), text=f"text {n}") for n in range(4)], encoder)
    out = index.save(tmp_path / "index")
    (warning,) = bring_up_to_date(out, [], delete=["0"])["warnings"]
    assert "3 passages: --kind ivf" in warning
    bring_up_to_date(out, [], kind="auto")
    assert Index.open(out).view.dense.kind == "ivf"
