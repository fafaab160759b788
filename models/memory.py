"""Giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Return what was freed (a closed engine, a finished training) to the operating system.

    glibc keeps freed buffers in its arenas: a job that serves and trains in turns would end up holding the sum of
    all its phases. Other C libraries have no ``malloc_trim``, and need none.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
