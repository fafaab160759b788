"""An index on disk: a folder with a manifest, the store, and the FAISS file derived from it. No pickle anywhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..models.errors import RestillError
from . import faiss_file, store
from .faiss_file import checked_kind
from .folder import MANIFEST, is_index, read_manifest, replacing, write_manifest
from .store import Store
from .types import Chunk
from .view import STORE, Snapshot, View
from .write import Entry, write

COMPACT_SHARE, COMPACT_ROWS = 0.2, 20_000
"""A new FAISS file is written when so many rows, and this share of all, are not in the old one, or deleted."""


class Index:
    """A folder that one process at a time writes to and any number read.

    Threads may share it: a search works on the ``view`` it began with. Changes by others are seen after `refresh`.

    Attributes:
        folder: where it is.
        view: what searches see.
    """

    def __init__(self, folder: Path, view: View, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.folder, self.view = folder, view
        self._temporary = temporary
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str] | None,
        *,
        encoder: str,
        encoder_fingerprint: str,
        dim: int,
        chunk_tokens: int | None = None,
        kind: str = "flat",
        threads: int | None = None,
    ) -> Index:
        """Make an empty index; without ``folder`` a temporary one, which goes when it is no longer used.

        Args:
            encoder: the name by which the encoder is loaded when the index is opened.
            kind: flat, ivf, hnsw, or auto for what `faiss_file.advise` says at each compaction.

        Raises:
            RestillError: something is there already, it cannot be written, or there is no such kind.
        """
        checked_kind(kind, 0)
        about = {"name": encoder, "fingerprint": encoder_fingerprint, "dim": dim}
        meta = {"encoder": encoder, "encoder_fingerprint": encoder_fingerprint, "dim": dim}
        meta |= {"chunk_tokens": chunk_tokens, "kind": kind, "faiss": None, "unfinished": False}
        temporary = None
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="restill-", ignore_cleanup_errors=True)
            place = Path(temporary.name)
            Store.create(place / STORE, meta, durable=False).close()
        else:
            place = Path(os.path.abspath(folder))
            if place.exists() and (not place.is_dir() or any(place.iterdir())):
                raise RestillError(f"{place} exists and is not empty; give a new folder, or remove it first")
            with replacing(place) as fresh:
                Store.create(fresh / STORE, meta).close()
                write_manifest(fresh, about)
        return cls(place, View.open(place, threads), temporary)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, threads: int | None = None, derived: bool = True) -> Index:
        """Open a folder; a large FAISS file is mapped into memory.

        Args:
            derived: without, the FAISS file is not opened and cannot fail: for `check` and `repair` alone.
            threads: threads of a vector search; ``$RESTILL_THREADS`` or all cores if not given.

        Raises:
            RestillError: no index is there, it is of another version, or a file is missing or changed.
        """
        place = Path(os.path.abspath(folder))
        manifest = read_manifest(place)
        try:
            view = View.open(place, threads, derived=derived)
            about = manifest["encoder"]
            same = about["fingerprint"] == view.meta["encoder_fingerprint"] and about["dim"] == view.meta["dim"]
        except (KeyError, TypeError) as error:
            raise RestillError(f"{place}: the index is damaged ({type(error).__name__}: {error})") from error
        if not same:
            raise RestillError(f"{place}: {MANIFEST} and {STORE} name different encoders; they are not of one index")
        return cls(place, view)

    @property
    def encoder(self) -> str:
        """The name of the encoder that made the vectors."""
        return self.view.meta["encoder"]

    @property
    def encoder_fingerprint(self) -> str:
        """Its fingerprint."""
        return self.view.meta["encoder_fingerprint"]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.view.meta["dim"]

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of a passage with its title; None for the encoder's maximum."""
        return self.view.meta["chunk_tokens"]

    @property
    def kind(self) -> str:
        """The kind of FAISS file asked for."""
        return self.view.meta["kind"]

    @property
    def fingerprint(self) -> str:
        """See `Snapshot.fingerprint`."""
        return Snapshot([self.view]).fingerprint

    def __len__(self) -> int:
        """Number of passages."""
        return self.view.meta["chunks"]

    @cached_property
    def writer(self) -> Store:
        """The connection for writing."""
        return Store.writer(self.folder / STORE)

    def refresh(self) -> bool:
        """See what others wrote since; True if anything was."""
        with self._lock:
            before, self.view = self.view, self.view.refreshed()
            return self.view is not before

    def write(self, entries: Sequence[Entry], *, delete: Sequence[str] = (), replace: bool = False) -> None:
        """Put and delete documents in one transaction; see `write.write`."""
        with self._lock:
            write(self.writer, entries, delete=delete, replace=replace)
            self.refresh()
            self.trim_log()

    def trim_log(self) -> None:
        """Write a long write-ahead log into the store, as far as no older view that is still held needs it."""
        with self._lock:
            if (self.folder / f"{STORE}-wal").stat().st_size > store.LOG_LIMIT:
                # What our reader sees is the end of the log, so all of it can go to the store. A reader that begins
                # after that does not need the log, which then starts again; one from before would keep it growing.
                self.writer.select("PRAGMA wal_checkpoint(PASSIVE)")
                self.view = self.view.refreshed(anyway=True)

    def compact_if_due(self, least: int = COMPACT_ROWS) -> bool:
        """`compact` when ``least`` rows and a fifth of all are not in the file, or deleted; True if it did."""
        stale = self.view.dense.stale
        wanted = checked_kind(self.kind, len(self))
        if self._temporary is not None and wanted == self.view.dense.kind == "flat":
            return False  # a flat file would only repeat what is in memory
        if stale < least or stale < COMPACT_SHARE * len(self):
            return False
        self.compact()
        return True

    def mark_unfinished(self, unfinished: bool) -> None:
        """Record that a long build began, or ended."""
        with self._lock, self.writer.transaction():
            self.writer.set_meta(unfinished=unfinished)

    def compact(self, kind: str | None = None) -> None:
        """Write a FAISS file of all live vectors, record it, and remove the one before.

        Readers go on with the file they have open. Killed at any moment, the old file is still the one recorded.

        Args:
            kind: use this kind from now on.

        Raises:
            RestillError: there is no such kind, or the disk is full.
        """
        with self._lock:
            view, record = View.open(self.folder, derived=False), None  # its vectors need not be in memory
            rows = view.store.rows()
            chosen = checked_kind(kind or self.kind, len(rows))
            if len(rows):
                index = faiss_file.build(
                    chosen,
                    self.dim,
                    self._sample(view, rows) if chosen == "ivf" else np.empty((0, self.dim), np.float32),
                    view.store.vectors_after(-1, self.dim),
                    len(rows),
                )
                generation = view.meta["generation"]
                record = faiss_file.write(
                    index, self.folder, kind=chosen, last_row=int(rows[-1]), generation=generation
                ).to_dict()
                del index
            with self.writer.transaction():
                # Else another writer was faster, and took our file for one left by a crash perhaps.
                there = record is None or (self.folder / record["name"]).exists()
                if there and self.writer.meta().get("faiss") == view.meta.get("faiss"):
                    purged = view.meta["generation"]
                    self.writer.set_meta(faiss=record, kind=kind or self.kind, purged=purged)
                    self.writer.connection.execute("DELETE FROM deleted WHERE generation <= ?", [purged])
            self.remove_orphans()
            self.refresh()

    def orphans(self) -> list[Path]:
        """FAISS files that the store does not refer to: left by a crash."""
        recorded = self.writer.meta().get("faiss") or {}
        return sorted(path for path in self.folder.glob("*.faiss") if path.name != recorded.get("name"))

    def remove_orphans(self) -> None:
        """Delete them. Readers that have one open keep it (POSIX)."""
        # In a transaction, so that nobody records one of them now; one of its own, since the file that
        # was recorded before may go only after the new record is committed.
        with self.writer.transaction():
            for path in self.orphans():
                with contextlib.suppress(OSError):  # in use (Windows)
                    path.unlink()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a compacted copy: all of it, or nothing. An index already there is replaced.

        Raises:
            RestillError: something else than an index is there, or writing fails (disk full, no permission).
        """
        folder = Path(os.path.abspath(folder))
        if folder == self.folder:
            self.compact()
            return folder
        if folder.exists() and not is_index(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise RestillError(f"{folder} exists and is no index; give a new folder, or remove it first")
        with replacing(folder) as fresh:
            self.view.store.copy_to(fresh / STORE)
            copy = Index(fresh, View.open(fresh, self.view.dense.threads, derived=False))
            with copy.writer.transaction():
                copy.writer.set_meta(faiss=None)  # that file was not copied
            copy.compact()
            copy.close()
            about = {"name": self.encoder, "fingerprint": self.encoder_fingerprint, "dim": self.dim}
            write_manifest(fresh, about)
        return folder

    def close(self) -> None:
        """Let go of the files; the index cannot be used afterwards."""
        self.view.store.close()
        if "writer" in self.__dict__:  # last, since a reader cannot clear away the write-ahead log
            self.writer.close()

    def check(self) -> list[str]:
        """What does not agree, a sentence each; see `check.check`."""
        from .check import check

        return check(self)

    def repair(self, embed: Callable[[list[Chunk]], np.ndarray]) -> list[str]:
        """Make what is derived again, and what is missing; returns what is left; see `check.repair`."""
        from .check import repair

        return repair(self, embed)

    def _sample(self, view: View, rows: np.ndarray) -> np.ndarray:
        """Up to 64 vectors for each ivf cluster, drawn with a fixed seed."""
        count = min(len(rows), 64 * faiss_file.clusters(len(rows)))
        drawn = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
        return np.concatenate([view.store.vectors(drawn[at : at + 8192], self.dim) for at in range(0, count, 8192)])
