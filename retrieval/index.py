"""An index on disk: a folder with a manifest, the chunks as JSONL and the vectors. No pickle anywhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..models.errors import RestillError
from .types import Chunk

if TYPE_CHECKING:
    from .dense import DenseIndex

FORMAT = "restill-index"
VERSION = 1
MANIFEST, CHUNKS, VECTORS = "index.json", "chunks.jsonl", "vectors.faiss"


@dataclass(frozen=True, kw_only=True)
class Index:
    """Chunks and their vectors (row i belongs to ``chunks[i]``), and the encoder that made them."""

    chunks: Sequence[Chunk]
    vectors: DenseIndex
    encoder: str
    encoder_fingerprint: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder's fingerprint and every chunk."""
        return hashlib.sha256(self.encoder_fingerprint.encode() + self._lines).hexdigest()

    @cached_property
    def _lines(self) -> bytes:
        try:
            return b"".join(chunk.model_dump_json().encode() + b"\n" for chunk in self.chunks)
        except (ValueError, TypeError) as error:
            raise RestillError(f"a document's metadata cannot be written as JSON ({error})") from error

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the folder: all of it, or nothing. An index already there is replaced.

        Raises:
            RestillError: something else than an index is there, or writing fails (disk full, no permission).
        """
        folder = Path(os.path.abspath(folder))
        if folder.exists() and not is_index(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise RestillError(f"{folder} exists and is no index; give a new folder, or remove it first")
        files = {CHUNKS: self._lines, VECTORS: self.vectors.to_bytes()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "encoder": {
                "name": self.encoder,
                "fingerprint": self.encoder_fingerprint,
                "dim": self.vectors.dim,
            },
            "documents": len({chunk.doc_id for chunk in self.chunks}),
            "chunks": len(self.chunks),
            "fingerprint": self.fingerprint,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        files[MANIFEST] = json.dumps(manifest, indent=2).encode() + b"\n"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _replace_folder(folder, files)
        except OSError as error:
            raise RestillError(f"cannot write the index {folder}: {error.strerror or error}") from error
        return folder

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """Read a folder written by ``save``, checking every file's hash first.

        Raises:
            RestillError: no index is there, it is of another version, or a file is missing or changed.
        """
        from .dense import DenseIndex

        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            hashes, encoder = manifest["sha256"], manifest["encoder"]
            lines = _read(folder / CHUNKS, hashes[CHUNKS])
            vectors = DenseIndex.from_bytes(_read(folder / VECTORS, hashes[VECTORS]))
            chunks = [Chunk.model_validate_json(line) for line in lines.split(b"\n") if line]
            index = cls(
                chunks=chunks,
                vectors=vectors,
                encoder=encoder["name"],
                encoder_fingerprint=encoder["fingerprint"],
            )
            counts = {len(chunks), len(vectors), manifest["chunks"]}
        except (KeyError, TypeError, ValidationError) as error:
            raise RestillError(
                f"{folder}: the index is damaged ({type(error).__name__}: {error}); build it again"
            ) from error
        if len(counts) > 1:
            raise RestillError(f"{folder}: {len(chunks)} chunks but {len(vectors)} vectors; build it again")
        return index


def is_index(folder: str | os.PathLike[str]) -> bool:
    """True if ``folder`` holds the manifest of an index, of whatever version."""
    try:
        return read_manifest(Path(folder), any_version=True)["format"] == FORMAT
    except RestillError:
        return False


def read_manifest(folder: Path, *, any_version: bool = False) -> dict[str, Any]:
    """The content of ``index.json``.

    Raises:
        RestillError: ``folder`` is no index, or (unless ``any_version``) one of another format version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise RestillError(f"{folder} is no index: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RestillError(f"{folder} is no index: {MANIFEST} is no JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RestillError(f"{folder} is no index: {MANIFEST} does not say format {FORMAT!r}")
    if not any_version and manifest.get("version") != VERSION:
        raise RestillError(
            f"{folder}: index of format version {manifest.get('version')!r}, this restill reads {VERSION}; "
            "build it again"
        )
    return manifest


def _read(file: Path, sha256: str) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RestillError(f"{file}: cannot be read ({error.strerror}); build the index again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RestillError(
            f"{file}: SHA-256 is {found[:12]}…, the manifest says {sha256[:12]}…; "
            "the file was changed or cut off: build the index again"
        )
    return data


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write ``files`` beside ``folder`` and move them there as a whole."""
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()
        for name, data in files.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(fresh, folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
