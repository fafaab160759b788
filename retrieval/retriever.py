"""The retriever: documents in, the passages nearest to a query out."""

from __future__ import annotations

import hashlib
import html
import os
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, InstanceOf, PrivateAttr

from ..models.errors import RestillError
from .batching import MicroBatcher
from .build import DEFAULT_ENCODER, build_index, encoder_name, load_encoder
from .filters import Where, allowed_rows
from .index import Index, is_index
from .load import load
from .types import Chunk, Encoder, Hit

_Ask = tuple[str, int, Where | None]


class Retriever(BaseRetriever):
    """Searches one collection by meaning: exact cosine search over passage vectors.

    Immutable; threads and event loops may share it. In LangChain code it is a retriever like any other, and
    ``as_tool`` makes an agent's search tool of it.

    Attributes:
        k: number of passages a search returns when it is not told.
        index: the passages and their vectors.
        encoder: the text encoder; must be the one the index was built with.
        load_warnings: what ``from_path`` left out, and why.
    """

    k: int = Field(default=3, ge=1)
    index: InstanceOf[Index] = Field(repr=False, exclude=True)
    encoder: Any = Field(repr=False, exclude=True)
    load_warnings: tuple[str, ...] = ()
    _batcher: MicroBatcher[_Ask, list[Hit]] = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check that encoder and index belong together.

        Raises:
            RestillError: the index was built with another encoder.
        """
        ours, theirs = self.index.encoder_fingerprint, self.encoder.fingerprint
        if ours != theirs:
            raise RestillError(
                f"the index was built with encoder {self.index.encoder!r} (fingerprint {ours[:12]}…), "
                f"not with {encoder_name(self.encoder)!r} ({theirs[:12]}…); "
                "open it with its own encoder, or build it again"
            )
        self._batcher = MicroBatcher(self._search_batch)

    @classmethod
    def from_path(
        cls,
        *paths: str | os.PathLike[str],
        encoder: str | Encoder | None = None,
        k: int = 3,
        chunk_tokens: int | None = None,
        progress: bool = False,
    ) -> Retriever:
        """Open the index at ``paths``, or read the files and folders there and index them in memory.

        Args:
            paths: one index folder, or any number of files and folders (see ``restill.retrieval.load``).
            encoder: name, folder or object; MiniLM if not given, for an index the one it was built with.
            k: number of passages a search returns when it is not told.
            chunk_tokens: tokens of a passage with its title; the encoder's maximum if not given.
            progress: show a progress bar while embedding.

        Raises:
            RestillError: nothing readable is there; see ``load``, ``build_index`` and ``open``.
        """
        if indexes := [path for path in paths if is_index(path)]:
            if len(paths) > 1:
                raise RestillError(f"{indexes[0]} is an index; give it alone, or give documents only")
            return cls.open(indexes[0], encoder, k=k)
        report = load(*paths)
        warnings = [f"left out: {count} files {suffix}" for suffix, count in report.skipped.items()]
        index, model = build_index(
            report.documents, encoder or DEFAULT_ENCODER, chunk_tokens=chunk_tokens, progress=progress
        )
        return cls(index=index, encoder=model, k=k, load_warnings=(*report.warnings, *warnings))

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Any],
        encoder: str | Encoder = DEFAULT_ENCODER,
        *,
        k: int = 3,
        chunk_tokens: int | None = None,
        progress: bool = False,
    ) -> Retriever:
        """Index ``documents`` in memory: ours, LangChain's, or mappings; see ``build_index``."""
        index, model = build_index(documents, encoder, chunk_tokens=chunk_tokens, progress=progress)
        return cls(index=index, encoder=model, k=k)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], encoder: str | Encoder | None = None, *, k: int = 3) -> Retriever:
        """Open an index written by ``save``, with the encoder that it names unless another is given.

        Raises:
            RestillError: no sound index is there, or it was built with another encoder.
        """
        index = Index.open(folder)
        return cls(index=index, encoder=load_encoder(encoder or index.encoder), k=k)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the index to ``folder``, whole or not at all; an index already there is replaced."""
        return self.index.save(folder)

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Every passage, in the order of the documents."""
        return self.index.chunks

    @property
    def fingerprint(self) -> str:
        """SHA-256 over encoder and passages: equal fingerprints give equal results."""
        return self.index.fingerprint

    def search(self, queries: Sequence[str], *, k: int | None = None, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` passages nearest to each query, best first; fewer if the collection has fewer.

        Args:
            queries: any number; they are embedded and searched as one batch.
            k: results a query, the retriever's ``k`` if not given.
            where: search only among passages with this metadata (exact, however few pass), see ``Where``.

        Raises:
            RestillError: a query is empty, ``k`` is below 1, or ``where`` names an unknown key.
        """
        if isinstance(queries, str):
            raise RestillError(f"search takes a list of queries; write search([{queries!r}])")
        queries, k = [_checked(query) for query in queries], self._checked_k(k)
        rows = allowed_rows(self.chunks, where)
        if not queries:
            return []
        found = self.index.vectors.search(self.encoder.encode(queries), k, rows)
        return [[Hit(chunk=self.chunks[row], score=score) for row, score in hits] for hits in found]

    async def asearch(self, query: str, *, k: int | None = None, where: Where | None = None) -> list[Hit]:
        """Like ``search`` for one query, off the event loop; concurrent calls become one batch."""
        return await self._batcher.submit((_checked(query), self._checked_k(k), where))

    def _search_batch(self, asks: list[_Ask]) -> list[list[Hit] | Exception]:
        """One search for all asks without a filter, one for each ask with one."""
        results: list[list[Hit] | Exception] = [[] for _ in asks]
        plain = [i for i, (_, _, where) in enumerate(asks) if where is None]
        if plain:
            found = self.search([asks[i][0] for i in plain], k=max(asks[i][1] for i in plain))
            for i, hits in zip(plain, found, strict=True):
                results[i] = hits[: asks[i][1]]
        for i, (query, k, where) in enumerate(asks):
            if where is not None:
                try:
                    results[i] = self.search([query], k=k, where=where)[0]
                except Exception as error:  # only this caller's: the filter may be a function of theirs
                    results[i] = error
        return results

    # Not Runnable.as_tool, which wraps invoke and would lose chunk ids and offsets.
    def as_tool(  # type: ignore[override]
        self, *, name: str = "search", k: int | None = None
    ) -> Callable[[str], Awaitable[list[Hit]]]:
        """A search function for agents; ``StructuredTool.from_function(coroutine=...)`` takes it too."""
        k = self._checked_k(k)

        async def search(query: str) -> list[Hit]:
            """Find passages about the query in the documents."""
            return await self.asearch(query, k=k)

        search.__name__ = search.__qualname__ = name
        search.fingerprint = hashlib.sha256(f"{self.fingerprint} {k}".encode()).hexdigest()  # type: ignore[attr-defined]
        return search

    def resolve_title(self, title: str) -> list[str]:
        """Ids of all documents with this title; if none has it, of those that differ in case or spacing."""
        exact, folded = self._titles
        return list(exact.get(title) or folded.get(_fold(title)) or ())

    @cached_property
    def _titles(self) -> tuple[dict[str, dict[str, None]], dict[str, dict[str, None]]]:
        exact: dict[str, dict[str, None]] = {}
        folded: dict[str, dict[str, None]] = {}
        for chunk in self.chunks:
            if chunk.title:
                exact.setdefault(chunk.title, {})[chunk.doc_id] = None
                folded.setdefault(_fold(chunk.title), {})[chunk.doc_id] = None
        return exact, folded

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Where | None = None,
    ) -> list[LangChainDocument]:
        return [_langchain(hit) for hit in self.search([query], k=k, where=where)[0]]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Where | None = None,
    ) -> list[LangChainDocument]:
        return [_langchain(hit) for hit in await self.asearch(query, k=k, where=where)]

    def _checked_k(self, k: int | None) -> int:
        if k is not None and k < 1:
            raise RestillError(f"k={k}: ask for at least 1 passage")
        return self.k if k is None else k


def _checked(query: str) -> str:
    if not isinstance(query, str):
        raise RestillError(f"the query {query!r} is a {type(query).__name__}; it must be a string")
    if not query.strip():
        raise RestillError(f"the query {query!r} is empty; write what to look for")
    return query


def _fold(title: str) -> str:
    """Case, spacing, underscores (Wikipedia's URLs) and HTML entities do not tell titles apart."""
    return " ".join(unicodedata.normalize("NFKC", html.unescape(title)).replace("_", " ").casefold().split())


def _langchain(hit: Hit) -> LangChainDocument:
    chunk = hit.chunk
    place = {"doc_id": chunk.doc_id, "chunk_id": chunk.chunk_id, "start": chunk.start, "end": chunk.end}
    metadata = {**chunk.metadata, **place, "title": chunk.title, "score": hit.score}
    return LangChainDocument(id=chunk.chunk_id, page_content=chunk.text, metadata=metadata)
