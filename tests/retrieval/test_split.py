"""Splitting: exact offsets, nothing lost, nothing too long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval.split import CHARS_PER_TOKEN, embedded_text, split
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


@pytest.mark.parametrize(
    "text",
    [" " * 300_000 + "x", "x" * 300_000, ". " * 100_000, "\n" * 300_000 + "x", "word " * 60_000,
     "." * 300_000, "\n " * 150_000 + "x", '."' * 100_000, "A." * 100_000],
    ids=lambda text: repr(text[:5]),
)  # fmt: skip
def test_odd_texts_take_no_more_than_linear_time(encoder, text: str) -> None:
    began = time.perf_counter()
    split(Document(id="d", text=text), encoder)
    assert time.perf_counter() - began < 10
