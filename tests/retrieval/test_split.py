"""Splitting: exact offsets, nothing lost, nothing too long."""

from __future__ import annotations

import re
import time
from itertools import takewhile

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tokenizers import models, normalizers, pre_tokenizers

from restill.models.errors import RestillError
from restill.retrieval import split as module
from restill.retrieval.markdown import headings
from restill.retrieval.markdown import title as markdown_title
from restill.retrieval.split import CHARS_PER_TOKEN, embedded_text, sentence_span, split
from restill.retrieval.types import Document

WORDS = st.sampled_from(
    ["the", "Kestrel", "was", "built", "Mr.", "U.S.", "1911.", "Why?", "“No!”", "\n", "\n\n", "  ", "# Head",
     "\n- item", "。", "ab" * 40, "\u2028", "é", "\t"]
)  # fmt: skip
TEXTS = st.one_of(st.lists(WORDS, max_size=150).map(" ".join), st.text(max_size=300))


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, title=st.text(max_size=60), max_tokens=st.integers(16, 80))
def test_passages_are_exact_complete_and_fit(make_encoder, text: str, title: str, max_tokens: int) -> None:
    encoder = make_encoder(max_tokens)
    document = Document(id="d", title=title, text=text, metadata={"year": 1911})
    chunks = split(document, encoder)
    assert [chunk.chunk_id for chunk in chunks] == [f"d#{n}" for n in range(len(chunks))]
    covered = bytearray(len(text))
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert encoder.count_tokens(embedded_text(chunk, encoder)) <= max_tokens
        assert len(chunk.text) <= max_tokens * CHARS_PER_TOKEN
        assert chunk.title == title and chunk.metadata == {"year": 1911}
        covered[chunk.start : chunk.end] = b"x" * (chunk.end - chunk.start)
    assert all(seen or char.isspace() for seen, char in zip(covered, text, strict=True))
    for left, right in zip(chunks, chunks[1:], strict=False):
        assert left.start < right.start and left.end < right.end
        shared = text[right.start : left.end]
        assert right.start >= left.end or len(encoder.token_offsets(shared)) <= max_tokens // 8


@settings(deadline=None)
@given(text=st.text(min_size=1, max_size=40).filter(str.strip))
def test_a_short_document_is_one_passage(make_encoder, text: str) -> None:
    (chunk,) = split(Document(id="d", text=text), make_encoder(64))
    assert chunk.text == text.strip()


def test_passages_end_with_sentences_and_share_a_short_one(make_encoder) -> None:
    sentence = "Mr. J. Orlan of the U.S. built number {} by the sea in a yard. It sank. "
    text = "".join(sentence.format(n) for n in range(40)).strip()
    chunks = split(Document(id="d", text=text), make_encoder(64))
    assert len(chunks) > 5
    assert all(chunk.text.endswith(("yard.", "sank.")) for chunk in chunks)
    assert all(chunk.text.startswith(("Mr. J.", "It sank.")) for chunk in chunks)
    assert any(right.start < left.end for left, right in zip(chunks, chunks[1:], strict=False))
    lengths = [len(chunk.text) for chunk in chunks]
    assert min(lengths) > max(lengths) / 3


def test_paragraphs_are_kept_together_where_they_fit(make_encoder) -> None:
    paragraphs = [f"Paragraph {n} says this. " + "And it goes on and on. " * 5 for n in range(6)]
    text = "\n\n".join(paragraph.strip() for paragraph in paragraphs)
    chunks = split(Document(id="d", text=text), make_encoder(64))
    assert all(chunk.text.startswith("Paragraph") for chunk in chunks)


def test_equal_content_has_an_equal_hash_and_another_title_another(encoder) -> None:
    one, same, other = (
        split(Document(id=i, title=t, text="text"), encoder)[0] for i, t in [("1", "A"), ("2", "A"), ("3", "B")]
    )
    assert one.content_hash == same.content_hash != other.content_hash


def test_a_smaller_limit_than_the_encoders_can_be_asked_for(make_encoder) -> None:
    document = Document(id="d", title="T", text="Some words here. " * 50)
    encoder = make_encoder(256)
    chunks = split(document, encoder, max_tokens=32)
    assert all(encoder.count_tokens(embedded_text(chunk, encoder)) <= 32 for chunk in chunks)
    with pytest.raises(RestillError, match="max_tokens=3"):
        split(document, encoder, max_tokens=3)


def test_a_long_title_leaves_room_under_a_smaller_limit(make_encoder) -> None:
    document = Document(id="d", title="Long title " * 40, text="Some words here. " * 50)
    encoder = make_encoder(256)
    chunks = split(document, encoder, max_tokens=32)
    assert max(encoder.count_tokens(embedded_text(chunk, encoder, 32)) for chunk in chunks) <= 32
    with pytest.raises(RestillError, match="of 'd'; give at least 32"):
        split(document, encoder, max_tokens=3)


@pytest.mark.parametrize(
    "text",
    [" " * 300_000 + "x", "x" * 300_000, ". " * 100_000, "\n" * 300_000 + "x", "word " * 60_000,
     "." * 300_000, "\n " * 150_000 + "x", '."' * 100_000, "A." * 100_000],
    ids=lambda text: repr(text[:5]),
)  # fmt: skip
def test_odd_texts_take_no_more_than_linear_time(encoder, text: str) -> None:
    began = time.process_time()
    split(Document(id="d", text=text), encoder)
    assert time.process_time() - began < 10


LINES = st.sampled_from(
    ["# One", "## Two ##", "### Three", "####### seven", "#", "#no", "Some text stands here.", "More words. And more.",
     "===", "---", "- item", "> quote", "```", "~~~ python", "", "", "", "    code", "* * *", "1. first", "<!-- x -->",
     "  para", "  # H", "   more", "      deep", "  <!-- x -->", "-", "- # In", "  ===", "10. ten", "    ## Far",
     "\ttab", "-\ttabbed", "<pre>", "</pre> x", "<div>", "<DIV a", "<b>bold</b> text", "<b>", "</b>", "<a href='x'>",
     "<https://x.org>", "<script x>", "<?php", "?>", "<!DOCTYPE x", "<![CDATA[", "]]>", "<!--", "-->", "- <pre>"]
)  # fmt: skip
MARKDOWN = st.lists(LINES, max_size=60).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(text=MARKDOWN)
@example(text="- item\n\n    code\n####### seven\n===")  # goes on with the item's second paragraph
def test_headings_are_those_of_a_whole_markdown_parser(text: str) -> None:
    if text.startswith("---"):
        text = "\n" + text  # front matter is not CommonMark
    tokens = MarkdownIt("commonmark").parse(text)
    expected = [
        (token.map[0], int(token.tag[1]), " ".join(inline.content.split()))
        for token, inline in zip(tokens, tokens[1:], strict=False)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    assert [(text.count("\n", 0, h.start), h.level, h.title) for h in headings(text)] == expected


@settings(max_examples=200, deadline=None)
@given(text=MARKDOWN, title=st.sampled_from(["", "One", "A title"]), max_tokens=st.integers(20, 80))
def test_a_passage_of_markdown_has_the_headings_that_hold_for_all_of_it(make_encoder, text, title, max_tokens):
    encoder = make_encoder(max_tokens)
    chunks = split(Document(id="d", title=title, text=text, format="markdown"), encoder)
    found = list(headings(text))
    path: list[tuple[int, str]] = []
    paths: list[tuple[str, ...] | None] = [()] * len(text)  # of each character; None in heading lines
    for heading, end in zip(found, [*(h.start for h in found[1:]), len(text)][: len(found)], strict=True):
        path = [(level, name) for level, name in path if level < heading.level] + [(heading.level, heading.title)]
        paths[heading.start : heading.end] = [None] * (heading.end - heading.start)
        paths[heading.end : end] = [tuple(name for _, name in path if name)] * (end - heading.end)
    covered = set()
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert encoder.count_tokens(embedded_text(chunk, encoder)) <= max_tokens
        covered.update(range(chunk.start, chunk.end))
        own = {paths[i] for i in range(chunk.start, chunk.end) if not text[i].isspace() and paths[i] is not None}
        common = takewhile(lambda level: len(set(level)) == 1, zip(*own, strict=False))
        assert not own or chunk.headings == tuple(level[0] for level in common)
    assert all(i in covered or text[i].isspace() for i in range(len(text)))


def test_sections_stay_whole_and_small_ones_join_the_next(make_encoder) -> None:
    body = "It has words and more words in it. " * 6
    text = f"# Ships\n\n## Kestrel\n\n{body}\n\n### Masts\n\n{body}\n\n## Heron\n\n{body}{body}{body}"
    chunks = split(Document(id="d", title="Ships", text=text, format="markdown"), make_encoder(100))
    assert [chunk.headings for chunk in chunks[:3]] == [("Ships", "Kestrel"), ("Ships", "Kestrel", "Masts"),
                                                        ("Ships", "Heron")]  # fmt: skip
    assert chunks[0].text.startswith("# Ships\n\n## Kestrel") and chunks[1].text.startswith("### Masts")
    assert chunks[2].headings == chunks[3].headings and not chunks[3].text.startswith("#")
    assert embedded_text(chunks[3], make_encoder(100)).startswith("Ships > Heron\nIt has words")


def test_the_same_text_under_another_heading_is_embedded_anew(encoder) -> None:
    def hashes(text: str, form: str) -> list[str]:
        chunks = split(Document.model_validate({"_id": "d", "text": text, "format": form}), encoder)
        return [chunk.content_hash for chunk in chunks if chunk.text.startswith("Long")]

    body = "Long text stands here. " * 12
    one, other = (f"# {name}\n{body}\n\n{body}" for name in ("One", "Two"))
    assert hashes(one, "markdown") and not set(hashes(one, "markdown")) & set(hashes(other, "markdown"))
    assert hashes(one, "text") == hashes(other, "text") != []


def test_plain_text_has_no_headings(encoder) -> None:
    assert {c.headings for c in split(Document(id="d", text="# One\n\ntext\n\n" * 50), encoder)} == {()}


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, overlap=st.integers(0, 30), max_tokens=st.integers(70, 90))
def test_an_overlap_asked_for_is_kept_and_passages_still_advance(make_encoder, text, overlap, max_tokens) -> None:
    encoder = make_encoder(max_tokens)
    chunks = split(Document(id="d", text=text), encoder, overlap=overlap)
    assert all(encoder.count_tokens(chunk.text) <= max_tokens for chunk in chunks)
    for left, right in zip(chunks, chunks[1:], strict=False):
        assert left.start < right.start and left.end < right.end
        assert right.start >= left.end or len(encoder.token_offsets(text[right.start : left.end])) <= overlap


def test_overlap_goes_over_paragraphs_when_asked_for(make_encoder) -> None:
    text = "\n\n".join(f"Paragraph {n} ends here." for n in range(60))
    document, encoder = Document(id="d", text=text), make_encoder(64)
    plain, shared = split(document, encoder), split(document, encoder, overlap=16)
    assert all(a.end < b.start for a, b in zip(plain, plain[1:], strict=False))
    assert all(a.end > b.start for a, b in zip(shared, shared[1:], strict=False))
    with pytest.raises(RestillError, match="overlap=32: .* give 0 to 31"):
        split(document, encoder, overlap=32)


class WordPieces:
    """BERT's algorithm: a word over ten characters is one unknown token, and its parts are several."""

    dim, fingerprint = 1, "pieces"

    def __init__(self, max_tokens: int) -> None:
        vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "a", "b", "##a", "##b", "ab", "."])}
        self.max_tokens = max_tokens
        self.pieces = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=10))
        self.pieces.normalizer, self.pieces.pre_tokenizer = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
        )

    def encode(self, texts, *, batch_size=32, progress=False):
        raise NotImplementedError

    def count_tokens(self, text: str) -> int:
        return len(self.token_offsets(text)) + 2

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        return self.pieces.encode(text, add_special_tokens=False).offsets


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aab. \n", max_size=600), max_tokens=st.integers(8, 20))
def test_parts_of_a_cut_word_fit_the_encoder_too(text: str, max_tokens: int) -> None:
    encoder = WordPieces(max_tokens)
    chunks = split(Document(id="d", text=text + "a" * 400 + " b" * 30), encoder)
    assert all(encoder.count_tokens(chunk.text) <= max_tokens for chunk in chunks)
    covered = "".join(re.sub(r"\s", "", chunk.text) for chunk in chunks)
    assert len(covered) >= len(re.sub(r"\s", "", text)) + 430


def test_a_long_text_is_tokenised_in_windows_without_a_trace(make_encoder, monkeypatch) -> None:
    document = Document(id="d", text="The Kestrel was built in 1911, by the sea.\n" * 200)
    whole = split(document, make_encoder())
    monkeypatch.setattr(module, "WINDOW", 777)
    assert split(document, make_encoder()) == whole


def test_a_citation_shows_its_whole_sentences() -> None:
    text = "One stands first. Mr. Orlan built it in 1911. It sank.\n\nA new one. Last"
    start = text.index("1911")
    assert text[slice(*sentence_span(text, start, start + 4))] == "Mr. Orlan built it in 1911."
    end = text.index("sank") + 4
    assert text[slice(*sentence_span(text, start, end))] == "Mr. Orlan built it in 1911. It sank."
    assert text[slice(*sentence_span(text, len(text) - 2, len(text)))] == "Last"
    with pytest.raises(RestillError, match="5:5 is no span"):
        sentence_span(text, 5, 5)


@given(text=TEXTS, data=st.data())
def test_a_sentence_span_holds_the_span(text: str, data: st.DataObject) -> None:
    if text.strip():
        start = data.draw(st.sampled_from([i for i, c in enumerate(text) if not c.isspace()]))
        end = data.draw(st.integers(start + 1, len(text)))
        left, right = sentence_span(text, start, end)
        assert left <= start and text[left:right] == text[left:right].strip()
        assert not text[right:end].strip()


@pytest.mark.parametrize(
    "text", ["# a\n" * 50_000, "<!--" * 100_000, "# " + " #" * 200_000, "a\n" * 200_000, "```\n#\n" * 50_000,
     "<a b=c" + " d=e" * 100_000, "<pre>\n" * 50_000],
    ids=lambda text: repr(text[:5]),
)  # fmt: skip
def test_odd_markdown_takes_no_more_than_linear_time(encoder, text: str) -> None:
    began = time.process_time()
    split(Document(id="d", text=text, format="markdown"), encoder)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "title"), [("---\ntitle: T\n---\n# X", "T"), ("---\na: 1\n---\n\n# X", "X"), ("---\n# X", "X")]
)
def test_front_matter_names_the_document(text: str, title: str) -> None:
    assert markdown_title(text) == title
