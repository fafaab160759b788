"""Loading files and folders, and what is said about those that cannot be read."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pypdf
import pytest
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from restill.models.errors import RestillError
from restill.retrieval.load import load


def pdf(text: str, title: str | None = None) -> bytes:
    """A PDF of one page; no text gives an empty page, as of a scan."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(612, 792)
    if text:
        content = StreamObject()
        content.set_data(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode())
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        named = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
        page[NameObject("/Contents")] = content
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): named})}
        )
    if title:
        writer.add_metadata({"/Title": title})
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def write(folder: Path, **files: str | bytes) -> Path:
    """Create files; ``__`` in a name is a dot, ``_in_`` a slash."""
    for name, content in files.items():
        path = folder / name.replace("_in_", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


PAGE = """<html><head><title>Kestrel - Site</title></head><body><nav><a href="/">Home</a></nav>
<article><h1>The <i>Kestrel</i></h1><p>Built by Orlan &amp; Sons in 1911, in a yard by the sea.</p>
<p>It had two masts.</p></article></body></html>"""


def test_a_folder_of_every_format(tmp_path: Path) -> None:
    write(
        tmp_path,
        b__md="intro\n\n## The *yard* ##\n\ntext\n",
        a__txt="plain\r\ntext",
        c__html=PAGE,
        d__pdf=pdf("The Kestrel sank.", title="Losses"),
        sub_in_e__jsonl='{"_id": 7, "title": "T", "text": "one", "year": 1911}\n\n{"text": "two"}\n',
        Z__text="last",
        __hidden__txt="no",
        __git_in_x__txt="no",
        f__docx="no",
        g__png="no",
    )
    report = load(tmp_path)
    found = {document.id: document for document in report.documents}
    assert list(found) == ["Z.text", "a.txt", "b.md", "c.html", "d.pdf", "7", "sub/e.jsonl:3"]
    assert [found[i].title for i in found] == ["Z", "a", "The *yard*", "The Kestrel", "Losses", "T", ""]
    assert found["a.txt"].text == "plain\ntext"
    assert "Orlan & Sons" in found["c.html"].text and "<p>" not in found["c.html"].text
    assert found["d.pdf"].text.strip() == "The Kestrel sank." and found["d.pdf"].metadata == {"pages": 1}
    assert found["7"].metadata == {"year": 1911}
    assert report.files == 6 and report.skipped == {".docx": 1, ".png": 1} and report.warnings == []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One #\n# Two", "One"),
        ("Setext\n======\n", "Setext"),
        ('---\ntitle: "Front"\ntags: [a]\n---\n# Other', "Front"),
        ("---\ntags: [a]\n---\n# After", "After"),
        ("no heading, #hashtag", "note"),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(tmp_path: Path, text: str, title: str) -> None:
    document = load(write(tmp_path, note__md=text) / "note.md").documents[0]
    assert (document.id, document.title, document.text) == ("note.md", title, text)


def test_a_page_too_small_for_extraction_keeps_its_text(tmp_path: Path) -> None:
    write(tmp_path, p__html="<title>Tiny</title><p>Grüße".encode("latin-1"))
    document = load(tmp_path).documents[0]
    assert document.title == "Tiny" and "Gr" in document.text


def test_a_collection_keeps_other_keys_as_metadata(tmp_path: Path) -> None:
    record = {"_id": "x", "title": None, "text": "t\ud800", "metadata": {"a": [1]}, "b": 2}
    document = load(write(tmp_path, c__jsonl="\ufeff" + json.dumps(record)) / "c.jsonl").documents[0]
    assert document.metadata == {"a": [1], "b": 2} and document.title == ""
    assert document.text.encode()  # a lone surrogate could not be written or tokenised


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no documents found", ".jsonl"]),
        ({"a__docx": b"x"}, ["no documents found", "1 .docx"]),
        ({"scan__pdf": pdf("")}, ["scan.pdf", "no text", "OCR"]),
        ({"bad__pdf": b"not a pdf"}, ["bad.pdf", "PDF"]),
        ({"empty__txt": b" \n"}, ["empty.txt", "no text"]),
        ({"empty__html": b""}, ["empty.html"]),
        ({"old__txt": "Grüße".encode("latin-1")}, ["old.txt", "not UTF-8", "byte 2", "iconv"]),
        ({"c__jsonl": b'{"text": "a"}\n{"text": '}, ["c.jsonl:2", "JSON"]),
        ({"c__jsonl": b'{"text": "a"}\n["text"]'}, ["c.jsonl:2", "list"]),
        ({"c__jsonl": b"[" * 100_000}, ["c.jsonl:1"]),
        ({"c__jsonl": b'{"_id": "a"}'}, ["c.jsonl:1", "'text' is missing"]),
        ({"c__jsonl": b'{"text": 3}'}, ["c.jsonl:1", "'text' is a int"]),
        ({"c__jsonl": b'{"text": "a", "title": 3}'}, ["c.jsonl:1", "'title'"]),
        ({"c__jsonl": b'{"text": "a", "_id": []}'}, ["c.jsonl:1", "'_id'"]),
        ({"c__jsonl": b'{"text": "a"}\n{"text": "\xff"}'}, ["c.jsonl:2", "not UTF-8"]),
        ({"c__jsonl": b'{"text": " "}\n'}, ["no documents", "without text", "line 1"]),
        (
            {"c__jsonl": b'{"_id": 1, "text": "a"}', "d__jsonl": b'{"_id": "1", "text": "b"}'},
            ["'1' occurs twice", "c.jsonl:1", "d.jsonl:1"],
        ),
    ],
)
def test_bad_input_is_named(tmp_path: Path, files: dict[str, bytes], words: list[str]) -> None:
    write(tmp_path, **files)
    with pytest.raises(RestillError) as error:
        load(tmp_path)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("scan", [pdf(""), b"%PDF-1.4 cut off"])
def test_an_unreadable_file_is_left_out_of_a_folder_and_reported(tmp_path: Path, scan: bytes) -> None:
    write(tmp_path, good__txt="text", scan__pdf=scan, old__txt=b"\xff\xff")
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["good.txt"]
    assert len(report.warnings) == 2 and "old.txt" in report.warnings[0] and "scan.pdf" in report.warnings[1]


def test_an_encrypted_pdf_is_named(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(RestillError, match=r"locked\.pdf: is encrypted"):
        load(tmp_path)


def test_missing_and_unknown_paths(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match=r"no such file or folder: .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(RestillError, match=r"a\.docx: cannot read '\.docx'"):
        load(write(tmp_path, a__docx="x") / "a.docx")
    with pytest.raises(RestillError, match="no path"):
        load()


def test_two_roots_with_the_same_name_inside_clash(tmp_path: Path) -> None:
    write(tmp_path, a_in_x__txt="1", b_in_x__txt="2")
    with pytest.raises(RestillError, match=r"'x\.txt' occurs twice"):
        load(tmp_path / "a", tmp_path / "b")
    assert [d.id for d in load(tmp_path).documents] == ["a/x.txt", "b/x.txt"]


def test_an_index_inside_the_folder_is_not_read_as_documents(tmp_path: Path) -> None:
    write(
        tmp_path,
        a__txt="text",
        out_in_index__json='{"format": "restill-index"}',
        out_in_chunks__jsonl='{"text": "x"}',
    )
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["a.txt"]
    assert "is an index" in report.warnings[0]
