"""Files that survive a kill: locks, atomic replacement, and an append that is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..models.errors import RestillError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such lock on this platform: one writer at a time is then the user's care
    fcntl = None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file: after a crash it holds the old or the new text, whole.

    Raises:
        RestillError: it cannot be written (a full disk, no permission).
    """
    # Hosts that share a file system may share process numbers too.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RestillError(f"cannot write {path}: {error.strerror}; the old file is unchanged") from None


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the system lets go of it when the process dies, however it dies.

    Raises:
        RestillError: it is held elsewhere and ``wait`` is false, or the file cannot be made.
    """
    descriptor = _take_lock(path, wait=wait)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on a file that is there; where there are no locks, nobody does."""
    try:
        os.close(_take_lock(path, wait=False))
    except RestillError:
        return True
    return False


def checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """``shard``, by default the whole.

    Raises:
        RestillError: it is no (i, n) with 0 <= i < n.
    """
    i, n = shard or (0, 1)
    if not 0 <= i < n:
        raise RestillError(f"shard=({i}, {n}): give (i, n) with 0 <= i < n")
    return i, n


def in_shard(key: str, shard: tuple[int, int]) -> bool:
    """Whether the question with this key belongs to part i of n."""
    return int(key, 16) % shard[1] == shard[0]


def _take_lock(path: Path, *, wait: bool) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RestillError(f"cannot write in {path.parent}: {error.strerror}") from None
    if fcntl is None:
        return descriptor
    patience = time.monotonic() + 30
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return descriptor  # a file system without locks
            if not wait or time.monotonic() > patience:
                os.close(descriptor)
                raise RestillError(
                    f"another process is writing {path.stem} in {path.parent}; "
                    "wait for it, or give each process an output or shard of its own"
                ) from None
            time.sleep(0.02)


class ShardWriter:
    """Appends lines to one file, which it holds a lock on; a torn last line is cut off at the start.

    Raises:
        RestillError: another process writes the file, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _take_lock(path.with_suffix(".lock"), wait=False)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = self._whole_lines()
            os.ftruncate(self._file, self._end)
        except OSError as error:
            os.close(self._lock)
            raise RestillError(f"cannot write {path}: {error.strerror}") from None

    def write(self, line: bytes, safe: int) -> int:
        """Append ``line`` and its end, and wait for the disk; returns its offset.

        Args:
            safe: how many entries are on the disk, for the message.

        Raises:
            RestillError: the disk is full or fails; the file is as it was before.
        """
        start, data = self._end, memoryview(line + b"\n")
        try:
            done = 0
            os.lseek(self._file, start, os.SEEK_SET)
            while done < len(data):
                done += os.write(self._file, data[done:])
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
            raise RestillError(
                f"cannot write {self.path}: {why}. The {safe} entries written before are safe; "
                "make room and run the same command again, it goes on where it stopped"
            ) from None
        self._end = start + len(data)
        return start

    def close(self) -> None:
        """Close the file and let go of the lock."""
        os.close(self._file)
        os.close(self._lock)

    def _whole_lines(self) -> int:
        """Length of the file up to its last line end."""
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - 65536)
            os.lseek(self._file, start, os.SEEK_SET)
            at = os.read(self._file, end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0
