"""The retriever: documents in, the passages nearest to a query out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, PrivateAttr, field_validator

from ..models.errors import RestillError
from . import modes
from .batching import MicroBatcher
from .build import DEFAULT_ENCODER, build_index, load_encoder
from .collection import Collection, Folder
from .filters import Where
from .folder import is_index
from .hops import WEIGHTS
from .index import Index
from .load import load
from .modes import Mode
from .rerank import rerank_hits
from .tools import follow_tool, search_tool
from .types import Encoder, Hit

if TYPE_CHECKING:
    from .formats import LoadOptions
    from .web import WebOptions

_Ask = tuple[str, int, Where | None]


class Retriever(Collection, BaseRetriever):
    """Searches a `Collection`: by meaning (cosine of passage vectors), by words, by both or along links.

    Threads and event loops may share it. A search sees the collection as it was when it began; what other
    processes change is seen after `refresh`. In LangChain code it is a retriever like any other, and
    ``as_tool`` makes an agent's search tool of it.

    Attributes:
        k: number of passages a search returns when it is not told.
        mode: how it searches, see ``modes.Mode``.
        reranker: orders the best ``rerank_depth`` passages again, any callable or ``rerank.LateInteraction``; None
            leaves them. Its scores, scaled to 0 to 1, count ``rerank_weight`` beside the search's. Passages further
            down follow in the search's order, with the search's score or that of the last one ordered again, whichever
            is lower.
    """

    k: int = Field(default=3, ge=1)
    mode: Mode = "dense"
    reranker: Any = Field(default=None, repr=False, exclude=True)
    rerank_depth: int = Field(default=10, ge=1)
    rerank_weight: float = Field(default=1.0, ge=0, le=1)
    _batcher: MicroBatcher[_Ask, list[Hit]] = PrivateAttr()

    @field_validator("mode", mode="before")
    @classmethod
    def _known_mode(cls, value: str) -> Mode:
        return modes.checked_mode(value)

    def model_post_init(self, context: Any, /) -> None:
        """Check what belongs together.

        Raises:
            RestillError: an index was built with another encoder, or the mode is unknown or ranks fewer passages than
                the re-ranker is to order again.
        """
        super().model_post_init(context)
        modes.checked_mode(self.mode)
        if self.reranker is not None:
            modes.check_rerank_depth(self.mode, self.rerank_depth)
        self._batcher = MicroBatcher(self._search_batch)

    @classmethod
    def from_path(
        cls,
        *paths: Folder,
        encoder: str | Encoder | None = None,
        k: int = 3,
        mode: Mode = "dense",
        chunk_tokens: int | None = None,
        options: LoadOptions | None = None,
        web: WebOptions | None = None,
        progress: bool = False,
    ) -> Retriever:
        """Open the index at ``paths``, or read the files, folders and URLs there and index them in memory.

        Args:
            paths: one index folder, or any number of files, folders and URLs (see ``restill.retrieval.load``).
            encoder: name, folder or object; MiniLM if not given, for an index the one it was built with.
            k: number of passages a search returns when it is not told.
            mode: how it searches, see ``modes.Mode``.
            chunk_tokens: tokens of a passage with its title; the encoder's maximum if not given.
            options, web: how files are read and pages fetched, see ``load``.
            progress: show a progress bar while embedding.

        Raises:
            RestillError: nothing readable is there; see ``load``, ``build_index`` and ``open``.
        """
        if indexes := [path for path in paths if is_index(path)]:
            if len(paths) > 1:
                raise RestillError(f"{indexes[0]} is an index; give it alone, or give documents only")
            return cls.open(indexes[0], encoder, k=k, mode=mode)
        report = load(*paths, options=options, web=web)
        warnings = [f"left out: {count} files {suffix}" for suffix, count in report.skipped.items()]
        index, model = build_index(
            report.documents, encoder or DEFAULT_ENCODER, chunk_tokens=chunk_tokens, progress=progress
        )
        return cls(indexes=(index,), encoder=model, k=k, mode=mode, load_warnings=(*report.warnings, *warnings))

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Any],
        encoder: str | Encoder = DEFAULT_ENCODER,
        *,
        k: int = 3,
        mode: Mode = "dense",
        chunk_tokens: int | None = None,
        kind: str = "flat",
        progress: bool = False,
    ) -> Retriever:
        """Index ``documents`` for as long as this process lives: ours, LangChain's, or mappings; see ``build_index``.

        The index is a temporary folder, which is removed with the retriever; ``save`` keeps it.
        """
        index, model = build_index(documents, encoder, chunk_tokens=chunk_tokens, kind=kind, progress=progress)
        return cls(indexes=(index,), encoder=model, k=k, mode=mode)

    @classmethod
    def open(
        cls,
        folder: Folder | Sequence[Folder],
        encoder: str | Encoder | None = None,
        *,
        k: int = 3,
        mode: Mode = "dense",
        threads: int | None = None,
    ) -> Retriever:
        """Open an index, or several to be searched as one, with the encoder it names unless another is given.

        Args:
            folder: what ``save`` or ``restill index`` wrote; of several, none may hold a document of another.
            encoder: name, folder or object.
            k: number of passages a search returns when it is not told.
            mode: how it searches, see ``modes.Mode``.
            threads: threads of a vector search; ``$RESTILL_THREADS`` or all cores if not given.

        Raises:
            RestillError: no sound index is there, or it was built with another encoder.
        """
        folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
        if not folders:
            raise RestillError("no folder given; name at least one index")
        places: dict[str, Folder] = {}
        for one in folders:
            if (place := os.path.realpath(one)) in places:
                raise RestillError(f"{one} and {places[place]} are the same index; name each once")
            places[place] = one
        indexes = tuple(Index.open(one, threads=threads) for one in folders)
        unfinished = tuple(
            f"{index.folder}: building it was interrupted; run the same `restill index` again"
            for index in indexes
            if index.view.meta["unfinished"]
        )
        model = load_encoder(encoder or indexes[0].encoder)
        return cls(indexes=indexes, encoder=model, k=k, mode=mode, load_warnings=unfinished)

    def search(self, queries: Sequence[str], *, k: int | None = None, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` passages nearest to each query, best first; fewer if the collection has fewer.

        Args:
            queries: any number; they are embedded and searched as one batch.
            k: results a query, the retriever's ``k`` if not given.
            where: search only among passages with this metadata (exact, however few pass), see ``Where``.

        Raises:
            RestillError: a query is empty, ``k`` is below 1 or more than the mode ranks, or ``where`` names an
                unknown key.
        """
        if isinstance(queries, str):
            raise RestillError(f"search takes a list of queries; write search([{queries!r}])")
        queries, k, snapshot = [_checked(query) for query in queries], self._searched_k(k), self.snapshot
        if not queries:
            return []
        depth = k if self.reranker is None else max(k, self.rerank_depth)
        found = snapshot.hits(modes.search(snapshot, self.encoder, self.mode, queries, depth, where))
        return [self._reranked(query, hits)[:k] for query, hits in zip(queries, found, strict=True)]

    def _reranked(self, query: str, hits: list[Hit]) -> list[Hit]:
        if self.reranker is None:
            return hits
        return rerank_hits(query, hits, self.reranker, depth=self.rerank_depth, weight=self.rerank_weight)

    def follow(self, document: str, *, k: int | None = None) -> list[Hit]:
        """The first passages of the ``k`` documents linked to one: those it names, then those that name it, then
        those that share a rare name with it.

        Args:
            document: an id or a title.
            k: results, the retriever's ``k`` if not given.

        Raises:
            RestillError: there is no such document, or ``k`` is below 1.
        """
        snapshot, k = self.snapshot, self._checked_k(k)
        linked = snapshot.graph.follow(document)
        found = [(rows[0], WEIGHTS[link.relation]) for link in linked if (rows := snapshot.rows_of(link.doc_id))]
        return snapshot.hits([found[:k]])[0]

    async def asearch(self, query: str, *, k: int | None = None, where: Where | None = None) -> list[Hit]:
        """Like ``search`` for one query, off the event loop; concurrent calls become one batch."""
        return await self._batcher.submit((_checked(query), self._searched_k(k), where))

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
        return search_tool(self, name, self._searched_k(k))

    def as_follow_tool(self, *, name: str = "follow", k: int | None = None) -> Callable[[str], Awaitable[list[Hit]]]:
        """A function for agents that reads what a document leads to, beside the search tool."""
        return follow_tool(self, name, self._checked_k(k))

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

    def _searched_k(self, k: int | None) -> int:
        """Checked before a batch is made, so that who asks for too much fails alone."""
        k = self._checked_k(k)
        modes.check_k(self.mode, k)
        return k


def _checked(query: str) -> str:
    if not isinstance(query, str):
        raise RestillError(f"the query {query!r} is a {type(query).__name__}; it must be a string")
    if not query.strip():
        raise RestillError(f"the query {query!r} is empty; write what to look for")
    return query


def _langchain(hit: Hit) -> LangChainDocument:
    chunk = hit.chunk
    place = {"doc_id": chunk.doc_id, "chunk_id": chunk.chunk_id, "start": chunk.start, "end": chunk.end}
    metadata = {**chunk.metadata, **place, "title": chunk.title, "score": hit.score}
    return LangChainDocument(id=chunk.chunk_id, page_content=chunk.text, metadata=metadata)
