"""The retriever: documents in, the passages nearest to a query out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, InstanceOf, PrivateAttr, field_validator

from ..models.errors import RestillError
from . import modes
from .batching import MicroBatcher
from .build import DEFAULT_ENCODER, Changes, as_documents, build_index, encoder_name, load_encoder, put
from .filters import Where
from .folder import is_index
from .hops import WEIGHTS
from .index import Index
from .load import load
from .modes import Mode
from .rerank import rerank
from .tools import follow_tool, search_tool
from .types import Chunk, Encoder, Hit, titled
from .view import Found, Snapshot

_Ask = tuple[str, int, Where | None]
Folder = str | os.PathLike[str]


class Retriever(BaseRetriever):
    """Searches a collection: by meaning (cosine of passage vectors), by words, by both or along links.

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
        indexes: where the passages are; several are searched as one.
        encoder: the text encoder; must be the one the indexes were built with.
        load_warnings: what ``from_path`` left out, and why.
    """

    k: int = Field(default=3, ge=1)
    mode: Mode = "dense"
    reranker: Any = Field(default=None, repr=False, exclude=True)
    rerank_depth: int = Field(default=10, ge=1)
    rerank_weight: float = Field(default=1.0, ge=0, le=1)
    indexes: tuple[InstanceOf[Index], ...] = Field(repr=False, exclude=True)
    encoder: Any = Field(repr=False, exclude=True)
    load_warnings: tuple[str, ...] = ()
    _batcher: MicroBatcher[_Ask, list[Hit]] = PrivateAttr()
    _snapshot: Snapshot = PrivateAttr()

    @field_validator("mode", mode="before")
    @classmethod
    def _known_mode(cls, value: str) -> Mode:
        return modes.checked_mode(value)

    def model_post_init(self, context: Any, /) -> None:
        """Check that encoder and indexes belong together.

        Raises:
            RestillError: an index was built with another encoder.
        """
        for index in self.indexes:
            ours, theirs = index.encoder_fingerprint, self.encoder.fingerprint
            if ours != theirs:
                raise RestillError(
                    f"the index was built with encoder {index.encoder!r} (fingerprint {ours[:12]}…), "
                    f"not with {encoder_name(self.encoder)!r} ({theirs[:12]}…); "
                    "open it with its own encoder, or build it again"
                )
        self._batcher = MicroBatcher(self._search_batch)
        self._snapshot = Snapshot([index.view for index in self.indexes])

    def __copy__(self) -> Self:
        """A retriever on the same indexes, with a batcher and a snapshot of its own."""
        copied = super().__copy__()
        copied.model_post_init(None)
        return copied

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Like ``copy.copy``, with other values; ``mode``, ``indexes`` and ``encoder`` are checked as for a new one.

        Raises:
            RestillError: the mode is unknown, an index was built with another encoder, or the copy is to be deep.
        """
        if deep:
            raise RestillError("a retriever's indexes cannot be copied; save it to a folder and open that")
        if update and "mode" in update:
            modes.checked_mode(update["mode"])
        copied = super().model_copy(update=update)
        copied.model_post_init(None)
        return copied

    @classmethod
    def from_path(
        cls,
        *paths: Folder,
        encoder: str | Encoder | None = None,
        k: int = 3,
        mode: Mode = "dense",
        chunk_tokens: int | None = None,
        progress: bool = False,
    ) -> Retriever:
        """Open the index at ``paths``, or read the files and folders there and index them in memory.

        Args:
            paths: one index folder, or any number of files and folders (see ``restill.retrieval.load``).
            encoder: name, folder or object; MiniLM if not given, for an index the one it was built with.
            k: number of passages a search returns when it is not told.
            mode: how it searches, see ``modes.Mode``.
            chunk_tokens: tokens of a passage with its title; the encoder's maximum if not given.
            progress: show a progress bar while embedding.

        Raises:
            RestillError: nothing readable is there; see ``load``, ``build_index`` and ``open``.
        """
        if indexes := [path for path in paths if is_index(path)]:
            if len(paths) > 1:
                raise RestillError(f"{indexes[0]} is an index; give it alone, or give documents only")
            return cls.open(indexes[0], encoder, k=k, mode=mode)
        report = load(*paths)
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

    def save(self, folder: Folder) -> Path:
        """Write the index to ``folder``, whole or not at all; an index already there is replaced."""
        return self.index.save(folder)

    @property
    def index(self) -> Index:
        """The only index.

        Raises:
            RestillError: there are several.
        """
        if len(self.indexes) != 1:
            raise RestillError(
                f"this retriever reads {len(self.indexes)} indexes; open the one to change or save alone"
            )
        return self.indexes[0]

    @property
    def snapshot(self) -> Snapshot:
        """What searches see now; it stays as it is. Rows and passages taken from one snapshot belong together."""
        return self._renew()

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Every passage, in the order they were written; read from the store when asked for."""
        return self.snapshot.chunks

    @property
    def fingerprint(self) -> str:
        """SHA-256 over encoder and passages: equal for equal contents, however they came to be.

        Retrievers of one fingerprint find the same, but for the order of passages with equal scores, and for what
        approximate kinds miss.
        """
        return self.snapshot.fingerprint

    def add(self, documents: Iterable[Any], *, progress: bool = False) -> Changes:
        """Add documents in one transaction; when this returns they are on the disk and searches find them.

        Raises:
            RestillError: a document is there already, or malformed; nothing is added then.
        """
        changes = put(self.index, as_documents(documents), self.encoder, whole=True, progress=progress)
        self._let_go()
        return changes

    def update(self, documents: Iterable[Any], *, source: str | None = None, progress: bool = False) -> Changes:
        """Add or replace documents in one transaction; only passages with new content are embedded.

        Args:
            source: the documents are all that now comes from this source (a file, say): others that did are deleted.
            progress: show a progress bar.

        Raises:
            RestillError: a document is malformed; nothing is changed then.
        """
        read, index, gone = as_documents(documents), self.index, []
        if source is not None:
            ids = {document.id for document in read}
            known = index.view.store.select("SELECT doc_id FROM documents WHERE source = ?", [source])
            gone = [doc_id for (doc_id,) in known if doc_id not in ids]
            read = [document.model_copy(update={"source": source}) for document in read]
        changes = put(index, read, self.encoder, replace=True, delete=gone, whole=True, progress=progress)
        self._let_go()
        return changes

    def delete(self, doc_ids: Iterable[str]) -> None:
        """Delete documents in one transaction.

        Raises:
            RestillError: one is not there; nothing is deleted then.
        """
        if isinstance(doc_ids, str):
            raise RestillError(f"delete takes a list of ids; write delete([{doc_ids!r}])")
        self.index.write([], delete=list(dict.fromkeys(doc_ids)))
        self.index.compact_if_due()
        self._let_go()

    def refresh(self) -> bool:
        """See what other processes wrote since; True if anything was."""
        changed = any([index.refresh() for index in self.indexes])
        self._renew()
        return changed

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
        found = _hits(snapshot, modes.search(snapshot, self.encoder, self.mode, queries, depth, where))
        return [self._reranked(query, hits)[:k] for query, hits in zip(queries, found, strict=True)]

    def _renew(self) -> Snapshot:
        """Let go of a snapshot that was overtaken: while it is held, the write-ahead log cannot begin again."""
        snapshot, views = self._snapshot, tuple(index.view for index in self.indexes)
        if views != snapshot.views:
            self._snapshot = snapshot = Snapshot(views)
        return snapshot

    def _let_go(self) -> None:
        """After a change: the snapshot from before kept the log, which only now can be written into the store."""
        self._renew()
        self.index.trim_log()
        self._renew()

    def _reranked(self, query: str, hits: list[Hit]) -> list[Hit]:
        if self.reranker is None:
            return hits
        # Always the same number, so that results do not depend on the k of others in the batch.
        best, rest = hits[: self.rerank_depth], hits[self.rerank_depth :]
        scored = [(hit, hit.score) for hit in best]
        ordered = rerank(
            query,
            scored,
            [titled(hit.chunk.title, hit.chunk.text) for hit in best],
            self.reranker,
            weight=self.rerank_weight,
        )
        ordered += [(hit, min(hit.score, ordered[-1][1])) for hit in rest]
        return [hit.model_copy(update={"score": score}) for hit, score in ordered]

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
        return _hits(snapshot, [found[:k]])[0]

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

    def resolve_title(self, title: str) -> list[str]:
        """Ids of all documents with this title; if none has it, of those that differ in case or spacing."""
        return self.snapshot.resolve_title(title)

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


def _hits(snapshot: Snapshot, found: Found) -> list[list[Hit]]:
    rows = sorted({row for hits in found for row, _ in hits})
    chunks = dict(zip(rows, snapshot.chunks_at(rows), strict=True))
    return [[Hit(chunk=chunks[row], score=score) for row, score in hits] for hits in found]


def _langchain(hit: Hit) -> LangChainDocument:
    chunk = hit.chunk
    place = {"doc_id": chunk.doc_id, "chunk_id": chunk.chunk_id, "start": chunk.start, "end": chunk.end}
    metadata = {**chunk.metadata, **place, "title": chunk.title, "score": hit.score}
    return LangChainDocument(id=chunk.chunk_id, page_content=chunk.text, metadata=metadata)
