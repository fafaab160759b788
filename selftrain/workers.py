"""Several processes in one job's folder: which of them may work there, and how one waits for another's file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..agents.shards import is_locked, locked
from ..models.errors import RestillError

POLL = 0.5
"""Seconds between two looks at a file that another worker is to write."""
REMIND = 60.0
"""Seconds after which a waiting worker says again what it waits for."""

Found = TypeVar("Found")


@contextlib.contextmanager
def at_work(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Be worker i of n in ``folder``; the system ends that when the process dies, however it dies.

    Raises:
        RestillError: this worker runs already, or one of another number of workers does.
    """
    mine = f"worker-{shard[0]}-of-{shard[1]}"
    with locked(folder / f"{mine}.lock", wait=False):
        for other in sorted(folder.glob("worker-*-of-*.lock")):
            if not other.stem.endswith(f"-of-{shard[1]}") and is_locked(other):
                raise RestillError(
                    f"{other.stem} is running in {folder}, {mine} cannot join it: give all workers of a job the same n"
                )
        yield


def wait_for(look: Callable[[], Found | None], say: Callable[[str], None], what: str) -> Found:
    """Look again and again, without end, until there is something; tells every minute ``what`` it waits for."""
    began, told = time.monotonic(), float("-inf")
    while (found := look()) is None:
        waited = time.monotonic() - began
        if waited - told >= REMIND:
            say(f"waiting for {what}" + (f", {waited / 60:.0f} min so far" if told >= 0 else ""))
            told = waited
        time.sleep(POLL)
    return found
