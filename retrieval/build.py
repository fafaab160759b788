"""From documents to an index: check, split, embed what is new, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..models.errors import RestillError
from ..models.progress import progress_bar
from .index import Index
from .split import embedded_text, split
from .types import Chunk, Document, Encoder
from .write import Entry, document_hash

DEFAULT_ENCODER = "minilm"

BATCH = 2048
"""Passages embedded and committed at a time: an interruption costs at most these."""


@dataclass(kw_only=True)
class Changes:
    """What `put` did: numbers of documents, and of passages embedded."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    embedded: int = 0


def load_encoder(encoder: str | Encoder) -> Encoder:
    """The encoder itself, or the one of that name (downloaded at first use)."""
    if not isinstance(encoder, str):
        return encoder
    from ..models.encoder import TextEncoder

    return TextEncoder.from_pretrained(encoder)


def encoder_name(encoder: str | Encoder) -> str:
    """The name given, or what the encoder calls itself."""
    return encoder if isinstance(encoder, str) else str(getattr(encoder, "name", type(encoder).__name__))


def build_index(
    documents: Iterable[Any],
    encoder: str | Encoder = DEFAULT_ENCODER,
    *,
    chunk_tokens: int | None = None,
    kind: str = "flat",
    progress: bool = False,
) -> tuple[Index, Encoder]:
    """Split and embed ``documents`` into a temporary index.

    Args:
        documents: ``Document`` objects, LangChain's, or mappings with ``_id``, ``title`` and ``text``.
        encoder: a name or an encoder; a name is what the index will record and ask for when opened.
        chunk_tokens: tokens of a passage with its title; the encoder's maximum if not given.
        kind: see ``Index.create``.
        progress: show a progress bar.

    Raises:
        RestillError: there are no documents with text, two share an id, or one is malformed.
    """
    read = as_documents(documents)
    if not any(document.text.strip() for document in read):
        raise RestillError(f"the collection is empty: {len(read)} documents, none with text")
    model = load_encoder(encoder)
    index = create_index(None, encoder, model, chunk_tokens=chunk_tokens, kind=kind)
    put(index, read, model, progress=progress)
    return index, model


def create_index(
    folder: Any, encoder: str | Encoder, model: Encoder, *, chunk_tokens: int | None = None, kind: str = "flat"
) -> Index:
    """An empty index for ``model``, which is called ``encoder``; see ``Index.create``."""
    return Index.create(
        folder,
        encoder=encoder_name(encoder),
        encoder_fingerprint=model.fingerprint,
        dim=model.dim,
        chunk_tokens=chunk_tokens,
        kind=kind,
    )


def put(
    index: Index,
    documents: Sequence[Document],
    encoder: Encoder,
    *,
    replace: bool = False,
    delete: Sequence[str] = (),
    whole: bool = False,
    progress: bool = False,
) -> Changes:
    """Split, embed and write ``documents``; those that are there as they are cost nothing.

    Only passages whose content is new to their document are embedded. Every batch is committed, so that an
    interrupted call goes on where it was when it is made again.

    Args:
        replace: allow documents that are there with another content.
        delete: ids to delete in the first transaction.
        whole: one transaction for all.
        progress: show a progress bar.

    Raises:
        RestillError: see `write.write`.
    """
    changes, removed = Changes(), set(delete)
    waiting: list[tuple[Document, list[Chunk], set[str]]] = []
    size = 0

    def flush() -> None:
        nonlocal delete, size
        new: dict[str, Chunk] = {}
        for _, chunks, known in waiting:
            new.update((chunk.content_hash, chunk) for chunk in chunks if chunk.content_hash not in known)
        vectors = dict(zip(new, embed(list(new.values()), encoder, index.chunk_tokens), strict=True))
        entries = [Entry(document=document, chunks=chunks, vectors=vectors) for document, chunks, _ in waiting]
        if entries or delete:
            index.write(entries, delete=delete, replace=replace)
        changes.embedded += len(new)
        waiting.clear()
        delete, size = (), 0

    with progress_bar("indexing", len(documents), show=progress) as advance:
        for at in range(0, len(documents), 1000):
            batch = documents[at : at + 1000]
            there = index.view.store.hashes(document.id for document in batch)
            for document in batch:
                known_hash = None if document.id in removed else there.get(document.id)
                if replace and known_hash == document_hash(document):
                    changes.unchanged += 1
                    advance(1)
                    continue
                chunks = split(document, encoder, max_tokens=index.chunk_tokens)
                known = set() if known_hash is None else index.view.store.embedded(document.id)
                waiting.append((document, chunks, known))
                changes.added += known_hash is None
                changes.updated += known_hash is not None
                size += len(chunks)
                if size >= BATCH and not whole:
                    done = len(waiting)
                    flush()
                    advance(done)
        done = len(waiting)
        flush()
        advance(done)
    index.compact_if_due()
    return changes


def embed(chunks: Sequence[Chunk], encoder: Encoder, max_tokens: int | None = None) -> np.ndarray:
    """The vectors of passages, f32 [N, dim]; ``max_tokens`` is what they were cut with.

    Raises:
        RestillError: one holds NaN or infinity (it could never be found).
    """
    vectors = np.asarray(encoder.encode([embedded_text(chunk, encoder, max_tokens) for chunk in chunks]), np.float32)
    if not np.isfinite(vectors).all():
        raise RestillError("a vector holds NaN or infinity; the encoder's weights are probably broken")
    return vectors


def as_documents(values: Iterable[Any]) -> list[Document]:
    """Read documents of whatever kind.

    Raises:
        RestillError: one is malformed, or two share an id.
    """
    documents = [as_document(value, position) for position, value in enumerate(values)]
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise RestillError(f"document id {document.id!r} occurs twice; ids must be unique")
        seen.add(document.id)
    return documents


def as_document(value: Any, position: int) -> Document:
    """Read a document of whatever kind; a LangChain document without id gets its position as id.

    Raises:
        RestillError: it is none, or a field has the wrong type.
    """
    if isinstance(value, Document):
        return value
    try:
        if isinstance(value, Mapping):
            return Document.model_validate(value)
        if hasattr(value, "page_content"):
            metadata = dict(value.metadata)
            return Document(
                id=str(position) if value.id is None else value.id,
                title=str(metadata.get("title") or ""),
                text=value.page_content,
                metadata=metadata,
            )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise RestillError(f"document number {position}: {where!r}: {problem['msg']}") from error
    raise RestillError(f"document number {position} is a {type(value).__name__}; give Document objects")
