"""Loading files and folders, and what is said about those that cannot be read."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import docx as python_docx
import pypdf
import pytest
from docx.oxml import OxmlElement
from hypothesis import given
from hypothesis import strategies as st
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from restill.models.errors import RestillError
from restill.retrieval import formats, word
from restill.retrieval import load as module
from restill.retrieval.formats import LoadOptions
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


def docx() -> bytes:
    """A document with what Word writes: headings, tracked changes, lists, a table, a content control."""
    document = python_docx.Document()
    document.add_heading("The Kestrel", 1)
    paragraph = document.add_paragraph("Built in 1911")
    for mark, text in (("del", "never read"), ("ins", " and sunk.")):
        change = OxmlElement(f"w:{mark}")
        change.append(paragraph.add_run(text)._r)
        paragraph._p.append(change)
    document.add_heading("Masts", 2)
    for text in ("fore", "main"):
        document.add_paragraph(text, style="List Bullet")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["name", "metres", "fore", "20\nhigh"], strict=True):
        cell.text = text
    document.add_paragraph("# no heading")
    control, content = OxmlElement("w:sdt"), OxmlElement("w:sdtContent")
    control.append(content)
    content.append(document.add_paragraph("In a content control.")._p)
    document.element.body.insert(-1, control)
    out = BytesIO()
    document.save(out)
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
        f__docx=docx(),
        g__png="no",
        h__csv="name;year\nHeron;1912\n",
    )
    report = load(tmp_path)
    found = {document.id: document for document in report.documents}
    assert list(found) == ["Z.text", "a.txt", "b.md", "c.html", "d.pdf", "f.docx", "h.csv:2", "7", "sub/e.jsonl:3"]
    titles = ["Z", "a", "The *yard*", "The Kestrel", "Losses", "The Kestrel", "Heron", "T", ""]
    assert [found[i].title for i in found] == titles
    assert found["a.txt"].text == "plain\ntext"
    assert "Orlan & Sons" in found["c.html"].text and "<p>" not in found["c.html"].text
    assert found["d.pdf"].text.strip() == "The Kestrel sank." and found["d.pdf"].metadata == {"pages": 1}
    assert found["7"].metadata == {"year": 1911}
    assert found["h.csv:2"].text == "name: Heron\nyear: 1912"
    assert found["7"].source == found["sub/e.jsonl:3"].source == str(tmp_path / "sub" / "e.jsonl")
    assert report.files == 8 and report.skipped == {".png": 1} and report.warnings == [] == list(report.unreadable)


def test_headings_of_html_and_docx_are_marked_and_other_text_is_not(tmp_path: Path) -> None:
    long = "It was the fastest of her ships on the way to the islands. " * 6
    write(tmp_path, c__html=PAGE.replace("<p>It", f"<h2>Masts</h2><p>{long}It <b>really</b>"), f__docx=docx())
    page, word = load(tmp_path).documents
    assert page.format == word.format == "markdown"
    head = "# The Kestrel\n\nBuilt by Orlan & Sons in 1911, in a yard by the sea.\n\n## Masts"
    assert page.text.strip() == f"{head}\n\n{long}It really had two masts."
    assert word.text == (
        "# The Kestrel\n\nBuilt in 1911 and sunk.\n\n## Masts\n\n- fore\n- main\n\n| name | metres |\n"
        "| fore | 20 high |\n\n\\# no heading\n\nIn a content control."
    )


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
        ({"a__xyz": b"x"}, ["no documents found", "1 .xyz"]),
        ({"a__docx": b"x"}, ["a.docx", "archive is broken"]),
        ({"a__docx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)}, ["a.docx", "encrypted"]),
        ({"a__docx": b"PK\x05\x06" + bytes(18)}, ["a.docx", "cannot be read as DOCX"]),
        ({"scan__pdf": pdf("")}, ["scan.pdf", "no text", "OCR"]),
        ({"bad__pdf": b"not a pdf"}, ["bad.pdf", "PDF"]),
        ({"empty__txt": b" \n"}, ["empty.txt", "no text"]),
        ({"empty__html": b""}, ["empty.html"]),
        ({"zero__txt": b""}, ["zero.txt", "0 bytes"]),
        ({"zero__pdf": b""}, ["zero.pdf", "0 bytes"]),
        ({"zero__jsonl": b"", "zero__csv": b""}, ["zero.jsonl", "zero.csv", "no documents"]),
        ({"a__txt": b"\x89PNG\r\n\x1a\n\0\0"}, ["a.txt", "byte 8 is zero"]),
        ({"a__txt": b"\x1f\x8b\x08\x01\x02\x03\xff"}, ["a.txt", "control characters"]),
        ({"a__html": b"<p>\0\0"}, ["a.html", "byte 3 is zero"]),
        ({"a__csv": b"a,b\n\0,1"}, ["a.csv", "byte 4 is zero"]),
        ({"a__txt": b"\xff\xfe\x00\xd8\x00"}, ["a.txt", "utf-16-le"]),
        ({"c__jsonl": '{"text": "a"}'.encode("utf-16")}, ["c.jsonl", "UTF-16"]),
        ({"c__jsonl": b'\n{"text": '}, ["c.jsonl:2", "JSON"]),
        ({"c__jsonl": b'\n["text"]'}, ["c.jsonl:2", "list"]),
        ({"c__jsonl": b"[" * 100_000}, ["c.jsonl:1"]),
        ({"c__jsonl": b'{"_id": "a"}'}, ["c.jsonl:1", "'text' is missing"]),
        ({"c__jsonl": b'{"text": 3}'}, ["c.jsonl:1", "'text' is a int"]),
        ({"c__jsonl": b'{"text": "a", "title": 3}'}, ["c.jsonl:1", "'title'"]),
        ({"c__jsonl": b'{"text": "a", "_id": []}'}, ["c.jsonl:1", "'_id'"]),
        ({"c__jsonl": b'\n{"text": "\xff"}'}, ["c.jsonl:2", "not UTF-8"]),
        ({"c__jsonl": b'{"text": " "}\n'}, ["c.jsonl", "without text", "line 1"]),
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
    write(tmp_path, good__txt="text", scan__pdf=scan, old__txt=b"\0\0\1")
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["good.txt"]
    assert len(report.warnings) == 2 and "old.txt" in report.warnings[0] and "scan.pdf" in report.warnings[1]
    assert list(report.unreadable.values()) == report.warnings
    assert list(report.unreadable) == [str(tmp_path / "old.txt"), str(tmp_path / "scan.pdf")]


def test_a_bad_list_of_urls_or_manifest_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path, a__txt="text", zero__urls=b"", binary__urls=b"\0\0\1", big__urls="x" * 101)
    write(tmp_path, b_in_index__json="[" * 100_000)
    names = ["zero.urls", "binary.urls", "big.urls", "missing.urls"]
    report = load(tmp_path, *(tmp_path / name for name in names), options=LoadOptions(max_bytes=100))
    assert [document.id for document in report.documents] == ["a.txt"]
    assert [Path(source).name for source in report.unreadable] == names
    assert "more than max_bytes=100" in report.unreadable[str(tmp_path / "big.urls")]


def test_of_lines_with_one_id_the_first_is_kept_and_both_are_named(tmp_path: Path) -> None:
    write(tmp_path, c__jsonl='{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}\n{"text": "c"}')
    write(tmp_path, d__csv="id,text\nx,1\nx,2\n")
    report = load(tmp_path)
    assert [document.text for document in report.documents] == ["a", "c", "1"]
    assert all(part in report.warnings[0] for part in ("c.jsonl:2: document id '1' occurs twice", "c.jsonl:1"))
    assert all(part in report.warnings[1] for part in ("d.csv:3: document id 'x' occurs twice", "d.csv:2"))


def test_an_encrypted_pdf_is_named(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(RestillError, match=r"locked\.pdf: is encrypted"):
        load(tmp_path)


def test_missing_and_unknown_paths(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match=r"no such file or folder: .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(RestillError, match=r"a\.xyz: cannot read '\.xyz'"):
        load(write(tmp_path, a__xyz="x") / "a.xyz")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(RestillError, match=r"no such file or folder: .*loop\.txt"):
        load(tmp_path / "loop.txt")
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


def test_broken_lines_of_a_collection_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "{", '{"text": "b"}', "[]", *["broken"] * 8]
    report = load(write(tmp_path, c__jsonl="\n".join(lines)) / "c.jsonl")
    assert [document.id for document in report.documents] == ["c.jsonl:1", "c.jsonl:3"]
    (warning,) = report.warnings
    assert all(part in warning for part in ("10 lines left out", "c.jsonl:2", "c.jsonl:4", "c.jsonl:7", "5 more"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = "The Kestrel, a ship of Orlan & Sons.\r\nIt sailed to Tromsø.\rThen it sank."
    report = load(write(tmp_path, a__txt=text.encode(encoding)))
    assert report.documents[0].text == "The Kestrel, a ship of Orlan & Sons.\nIt sailed to Tromsø.\nThen it sank."
    assert report.warnings == []


def test_text_that_is_not_unicode_is_read_with_a_warning_or_refused(tmp_path: Path) -> None:
    write(tmp_path, old__txt="Grüße “von” hier".encode("cp1252"))
    report = load(tmp_path)
    assert report.documents[0].text == "Grüße “von” hier"
    assert all(part in report.warnings[0] for part in ("old.txt", "byte 2 is 0xfc", "read as cp1252"))
    assert load(tmp_path, options=LoadOptions(fallback_encoding="cp850")).documents[0].text.startswith("Gr³")
    with pytest.raises(RestillError, match=r"old\.txt: not UTF-8 .*iconv"):
        load(tmp_path, options=LoadOptions(fallback_encoding=None))
    with pytest.raises(RestillError, match="fallback_encoding='klingon'"):
        LoadOptions(fallback_encoding="klingon")


def test_damage_in_utf8_does_not_spoil_the_rest(tmp_path: Path) -> None:
    report = load(write(tmp_path, a__txt="Grüße, Tromsø".encode() + b" \xff."))
    assert report.documents[0].text == "Grüße, Tromsø \ufffd."
    assert "1 places are not UTF-8" in report.warnings[0]


def test_html_is_read_in_the_encoding_it_declares(tmp_path: Path) -> None:
    page = f"<html><head><meta charset='iso-8859-2'><title>Łódź</title></head><body><p>{'Zażółć gęślą jaźń. ' * 9}"
    report = load(write(tmp_path, p__html=page.encode("iso-8859-2")))
    assert report.documents[0].title == "Łódź" and "gęślą" in report.documents[0].text and report.warnings == []


def test_a_row_of_a_table_is_a_document(tmp_path: Path) -> None:
    write(
        tmp_path,
        a__csv='\ufeffid,Text,year\nk,"It sank, they ""say"".\nLate.",1911\n\n,second,\n',
        b__tsv="name\tname\t\nHeron\tx\ty\n",
    )
    first, second, heron = load(tmp_path).documents
    assert (first.id, first.text, first.metadata) == ("k", 'It sank, they "say".\nLate.', {"year": "1911"})
    assert (second.id, second.text, second.metadata) == ("a.csv:5", "second", {})
    assert heron.text == "name (column 1): Heron\nname (column 2): x\ncolumn 3: y" and heron.title == "Heron"


def test_ragged_rows_and_huge_fields_are_kept(tmp_path: Path) -> None:
    huge = "word " * 60_000
    before = csv.field_size_limit()
    report = load(write(tmp_path, a__csv=f"a,b\n1\n2,3,4\n5,{huge}\n"))
    assert [d.text for d in report.documents][:2] == ["a: 1", "a: 2\nb: 3\ncolumn 3: 4"]
    assert len(report.documents[2].text) > 290_000 and csv.field_size_limit() == before
    assert "2 rows have other than the header's 2 values" in report.warnings[0] and "line 2" in report.warnings[0]


@given(rows=st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), min_size=1, max_size=8))
def test_no_value_of_a_table_is_lost(rows: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "t.csv")
        with file.open("w", encoding="utf-8", newline="", errors="replace") as out:
            csv.writer(out).writerows([["a", "b", "c"], ["first", "", ""], *rows])
        try:
            texts = [document.text for document in load(file).documents]
        except RestillError:
            assert any("\0" in value for row in rows for value in row)
            return
    full = [row for row in rows if any(map(str.strip, row))]
    assert len(texts) == 1 + len(full)
    for text, row in zip(texts[1:], full, strict=True):
        for value in row:
            clean = value.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n").strip()
            assert clean in text


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    bomb = BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(word.TREE_BYTES + 1))
    assert len(bomb.getvalue()) < 100_000
    write(tmp_path, a__docx=bomb.getvalue(), b__docx=docx())
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(RestillError, match=r"a\.docx: .* zip bomb"):
        load(tmp_path / "a.docx")
    with pytest.raises(RestillError, match=r"b\.docx: .* zip bomb"):
        load(tmp_path / "b.docx", options=LoadOptions(max_bytes=50_000))


def test_a_cut_off_docx_is_reported(tmp_path: Path) -> None:
    whole = docx()
    damaged = bytearray(whole)
    damaged[200:2000] = bytes(1800)
    write(tmp_path, a__docx=whole[:-500], b__docx=bytes(damaged), c__docx=whole)
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["c.docx"] and len(report.warnings) == 2


def test_a_page_of_a_pdf_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    writer = pypdf.PdfWriter()
    for text in ("First page.", "Second page."):
        writer.append(BytesIO(pdf(text)))
    content = writer.pages[1]["/Contents"].get_object()
    assert isinstance(content, StreamObject)
    content[NameObject("/Filter")] = NameObject("/Nonsense")
    writer.write(tmp_path / "two.pdf")
    report = load(tmp_path)
    assert report.documents[0].text.strip() == "First page."
    assert "1 of 2 pages cannot be read: 2 (" in report.warnings[0]


def test_a_file_over_the_limit_is_refused_but_a_collection_is_read_by_lines(tmp_path: Path) -> None:
    write(tmp_path, a__txt="x" * 101, b__txt="x" * 100, c__jsonl='{"text": "short"}\n' * 50)
    write(tmp_path, d__jsonl='{"text": "' + "x" * 100 + '"}')
    report = load(tmp_path, options=LoadOptions(max_bytes=100))
    assert [document.id for document in report.documents][:2] == ["b.txt", "c.jsonl:1"]
    assert len(report.documents) == 51 and "a.txt: 101 bytes, more than max_bytes=100" in report.warnings[0]
    assert "d.jsonl:1: the line is longer" in report.warnings[1]
    with pytest.raises(RestillError, match="max_bytes=0"):
        LoadOptions(max_bytes=0)


def test_too_much_html_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "HTML_BYTES", 20)
    with pytest.raises(RestillError, match=r"a\.html: .* bytes of HTML"):
        load(write(tmp_path, a__html=PAGE))


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_file_that_changes_while_it_is_read_is_read_once_more(tmp_path: Path, monkeypatch, suffix: str) -> None:
    file = write(tmp_path, **{f"a__{suffix}": '{"text": "old"}', "b__txt": "still"}) / f"a.{suffix}"
    changes = iter(["new", "newer"])

    class Watched(type(file)):
        """Somebody else writes each time it has been opened."""

        def open(self, *args, **kwargs):
            stream = super().open(*args, **kwargs)
            if self.name == file.name and (text := next(changes, None)):
                part = file.with_name("part")
                part.write_text(f'{{"text": "{text}"}}')
                part.replace(file)
            return stream

    monkeypatch.setattr(module, "Path", Watched)
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["b.txt"]
    assert f"a.{suffix}: changed while it was read, twice" in report.warnings[0]
    changes = iter(["newest"])
    assert "newest" in load(tmp_path).documents[0].text


def test_links_pipes_and_loops_do_not_stop_the_walk(tmp_path: Path) -> None:
    write(tmp_path, a_in_x__txt="text")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self.txt").symlink_to("self.txt")
    (tmp_path / "a" / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.txt")
    report = load(tmp_path)
    assert [document.id for document in report.documents] == ["a/x.txt"]
    assert [Path(source).name for source in report.unreadable] == ["gone.txt", "pipe.txt", "self.txt"]
    assert any("up: is a link to a folder" in warning for warning in report.warnings)


def test_what_one_may_not_read_is_reported() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write(root, good__txt="text", secret__txt="no", closed_in_x__txt="no")
        (root / "secret.txt").chmod(0)
        (root / "closed").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            report = load(root)
        finally:
            os.seteuid(user)
            (root / "closed").chmod(0o755)
    assert [document.id for document in report.documents] == ["good.txt"]
    assert sorted(Path(source).name for source in report.unreadable) == ["closed", "secret.txt"]
    assert all("Permission denied" in warning for warning in report.warnings)


def test_a_name_that_is_not_utf8_gives_an_id_that_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        (tmp_path / name).write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_bytes(b"\0")
    report = load(tmp_path)
    document = report.documents[0]
    assert document.id == "caf\\xe9.txt" and (document.source or "").endswith("caf\\xe9.txt")
    assert document.model_dump_json().encode() and report.warnings[0].encode()


def test_a_list_of_urls_in_a_folder_starts_no_fetch(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", None)
    report = load(write(tmp_path, a__txt="text", pages__urls="http://example.org/"))
    assert [document.id for document in report.documents] == ["a.txt"]
    assert "pages.urls: lists URLs" in report.warnings[0]
