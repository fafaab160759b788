"""A collection on disk, or several read as one: what is in it, and how it changes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr

from ..models.errors import RestillError
from .build import Changes, as_documents, encoder_name, put
from .index import Index
from .types import Chunk
from .view import Snapshot

Folder = str | os.PathLike[str]


class Collection(BaseModel):
    """Documents in one index or several, with the encoder of their vectors.

    Attributes:
        indexes: where the passages are; several are read as one.
        encoder: the text encoder; must be the one the indexes were built with.
        load_warnings: what was left out when it was loaded, and why.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    indexes: tuple[InstanceOf[Index], ...] = Field(repr=False, exclude=True)
    encoder: Any = Field(repr=False, exclude=True)
    load_warnings: tuple[str, ...] = ()
    _snapshot: Snapshot = PrivateAttr()

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
        self._snapshot = Snapshot([index.view for index in self.indexes])

    def __copy__(self) -> Self:
        """The same indexes, read through a snapshot of the copy's own."""
        copied = super().__copy__()
        copied.model_post_init(None)
        return copied

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Like ``copy.copy``, with other values, which are checked as for a new one (see ``model_post_init``).

        Raises:
            RestillError: the values contradict each other, or the copy is to be deep.
        """
        if deep:
            raise RestillError("a retriever's indexes cannot be copied; save it to a folder and open that")
        copied = super().model_copy(update=update)
        copied.model_post_init(None)
        return copied

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

    def resolve_title(self, title: str) -> list[str]:
        """Ids of all documents with this title; if none has it, of those that differ in case or spacing."""
        return self.snapshot.resolve_title(title)

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
