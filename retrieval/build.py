"""From documents to an index: check, split, embed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..models.errors import RestillError
from .dense import DenseIndex
from .index import Index
from .split import embedded_text, split
from .types import Chunk, Document, Encoder

DEFAULT_ENCODER = "minilm"


def load_encoder(encoder: str | Encoder) -> Encoder:
    """The encoder itself, or the one of that name (downloaded at first use)."""
    if not isinstance(encoder, str):
        return encoder
    from ..models.encoder import TextEncoder

    return TextEncoder.from_pretrained(encoder)


def build_index(
    documents: Iterable[Any],
    encoder: str | Encoder = DEFAULT_ENCODER,
    *,
    chunk_tokens: int | None = None,
    progress: bool = False,
) -> tuple[Index, Encoder]:
    """Split and embed ``documents``; may be interrupted at any time (nothing is written).

    Args:
        documents: ``Document`` objects, LangChain's, or mappings with ``_id``, ``title`` and ``text``.
        encoder: a name or an encoder; a name is what the index will record and ask for when opened.
        chunk_tokens: tokens of a passage with its title; the encoder's maximum if not given.
        progress: show a progress bar.

    Raises:
        RestillError: there are no documents with text, two share an id, or one is malformed.
    """
    read = [as_document(document, position) for position, document in enumerate(documents)]
    seen: set[str] = set()
    for document in read:
        if document.id in seen:
            raise RestillError(f"document id {document.id!r} occurs twice; ids must be unique")
        seen.add(document.id)
    if not any(document.text.strip() for document in read):
        raise RestillError(f"the collection is empty: {len(read)} documents, none with text")
    model = load_encoder(encoder)
    chunks: list[Chunk] = []
    for document in read:
        chunks += split(document, model, max_tokens=chunk_tokens)
    vectors = DenseIndex(model.dim)
    vectors.add(model.encode([embedded_text(chunk, model) for chunk in chunks], progress=progress))
    name = encoder if isinstance(encoder, str) else encoder_name(encoder)
    return Index(chunks=chunks, vectors=vectors, encoder=name, encoder_fingerprint=model.fingerprint), model


def encoder_name(encoder: Encoder) -> str:
    """What the encoder calls itself."""
    return str(getattr(encoder, "name", type(encoder).__name__))


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
