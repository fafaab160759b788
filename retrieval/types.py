"""What retrieval passes around: documents, chunks, hits, citations; and what it needs of an encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np


class Document(BaseModel):
    """One text of the collection. JSONL spells the id ``_id``; both spellings are read.

    Attributes:
        source: absolute path or URL it was read from; the documents of a JSONL or CSV file share it. What is
            loaded from the same source later replaces them.
        format: "markdown" if lines like ``## Masts`` are headings, "text" if they are nothing special.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(validation_alias=AliasChoices("_id", "id"), serialization_alias="_id")
    title: str = ""
    text: str
    metadata: dict[str, Any] = {}
    source: str | None = None
    format: Literal["text", "markdown"] = "text"


class Chunk(BaseModel):
    """A passage of a document: ``document.text[start:end] == chunk.text``.

    ``headings`` is the path of headings, outermost first, that hold for all of the passage. ``chunk_id`` is
    unique in the index, ``content_hash`` is the SHA-256 of title, headings and text: chunks with the same hash
    have the same vector under the same encoder.
    """

    model_config = ConfigDict(frozen=True)

    chunk_id: str
    doc_id: str
    title: str = ""
    text: str
    start: int
    end: int
    content_hash: str
    metadata: dict[str, Any] = {}
    headings: tuple[str, ...] = ()


def titled(title: str, text: str) -> str:
    """Title and text as one text, for what compares passages with questions; the text alone if there is no title."""
    return f"{title}\n{text}" if title else text


class Hit(BaseModel):
    """A chunk found by a search; scores of different modes cannot be compared.

    Attributes:
        score: higher is better. ``dense``: the cosine similarity to the query. ``sparse``: BM25. ``hybrid`` and
            ``hops``: a weighted sum of scaled scores, see ``pipeline.Settings``. With a re-ranker: 0 to 1 within the
            passages it ordered. Of ``follow``: how strong the link is, see ``hops.WEIGHTS``.
    """

    model_config = ConfigDict(frozen=True)

    chunk: Chunk
    score: float


class Citation(BaseModel):
    """Where an answer comes from: characters ``start:end`` of document ``doc_id``."""

    model_config = ConfigDict(frozen=True)

    doc_id: str
    chunk_id: str
    start: int
    end: int


class Encoder(Protocol):
    """What retrieval needs of a text encoder; ``restill.models.encoder.TextEncoder`` is the one we ship.

    One that embeds queries in another way than passages has ``encode_queries(texts)`` too.
    """

    dim: int
    max_tokens: int
    fingerprint: str

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """L2-normalised vectors, f32 ``[len(texts), dim]``."""
        ...

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, those that the encoder frames it with included."""
        ...

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of ``text``, in order, without the framing ones."""
        ...


def content_hash(title: str, text: str, headings: Sequence[str] = ()) -> str:
    """SHA-256 (hex) of title, headings and text; no two different triples give the same bytes."""
    # Without headings it starts with a digit, with them with a bracket; JSON has no line break inside.
    context = json.dumps([title, *headings]) if headings else f"{len(title)}\n{title}"
    return hashlib.sha256(f"{context}\n{text}".encode()).hexdigest()
