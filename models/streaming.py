"""An asynchronous stream read from ordinary code."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(start: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """Run an asynchronous iterator in a thread of its own and yield its items; stops it when abandoned.

    Works where an event loop already runs (notebooks), as ``asyncio.run`` would not.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue()
    loop = asyncio.new_event_loop()

    async def consume() -> None:
        try:
            async for item in start():
                items.put(("item", item))
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            items.put(("error", error))
        items.put(("end", None))

    task = loop.create_task(consume())
    thread = threading.Thread(target=_run_until_done, args=(loop, task), name="restill-stream", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        if thread.is_alive():
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop closed in between
                pass
        thread.join()


def _run_until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Task) -> None:
    try:
        loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
