"""The folder of an index: its manifest ``index.json``, and how a new folder takes the place of one that is there."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models.errors import RestillError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = "restill-index"
VERSION = 2
MANIFEST = "index.json"

_LOCK = "restill.lock"


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
    except (ValueError, RecursionError) as error:
        raise RestillError(f"{folder} is no index: {MANIFEST} is no JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RestillError(f"{folder} is no index: {MANIFEST} does not say format {FORMAT!r}")
    if not any_version and manifest.get("version") != VERSION:
        raise RestillError(
            f"{folder}: index of format version {manifest.get('version')!r}, this restill reads {VERSION}; "
            "build it again"
        )
    return manifest


def write_manifest(folder: Path, encoder: dict[str, Any]) -> None:
    """Write ``index.json`` for vectors of ``encoder`` (name, fingerprint and dim), down to the disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, "version": VERSION, "encoder": encoder}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place at the end; after an error nothing has changed.

    On Linux the two change places in one step. Elsewhere there is a moment without: after a kill just then, the
    folder from before is ``old`` in the hidden folder ``.name.*`` beside it. What else kills left there is removed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        work, lock = _work_folder(folder)
        try:
            fresh, old = work / "new", work / "old"
            fresh.mkdir()
            yield fresh
            if not folder.exists() or not _exchanged(fresh, folder):
                if folder.exists():
                    os.rename(folder, old)
                try:
                    os.rename(fresh, folder)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.rename(old, folder)
                    raise
        finally:
            os.close(lock)
            _remove(work, folder)
    except (OSError, sqlite3.Error) as error:
        raise RestillError(f"cannot write the index {folder}: {getattr(error, 'strerror', None) or error}") from error


def _work_folder(folder: Path) -> tuple[Path, int]:
    """A hidden folder beside ``folder`` and the lock that says it is in use; whoever dies lets go of it."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: nobody takes it for a leftover
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if (work / _LOCK).exists():
                return work, lock
            os.close(lock)  # between our two calls another process took it for a leftover


def _remove_leftovers(folder: Path) -> None:
    """Delete the work folders of ``folder`` that no living process holds."""
    prefix, beside = f".{folder.name}.", []
    with contextlib.suppress(OSError):  # it may not be listed
        beside = list(folder.parent.iterdir())
    if fcntl is None:
        return
    for work in beside:
        if not work.name.startswith(prefix) or "." in work.name.removeprefix(prefix):
            continue
        with contextlib.suppress(OSError):  # no folder of ours, or in use
            lock = os.open(work / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(work, folder)
            finally:
                os.close(lock)


def _remove(work: Path, folder: Path) -> None:
    """Delete a work folder of ``folder``, its lock last: without one, nobody would know the rest for a leftover."""
    if (work / "old").exists() and not folder.exists():
        return  # all there is
    for name in ("new", "old"):
        shutil.rmtree(work / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        (work / _LOCK).unlink()
        work.rmdir()


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (Linux: renameat2(2), RENAME_EXCHANGE); False where this cannot be."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        return ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
    except (AttributeError, OSError, TypeError):  # another system, or another C library
        return False
