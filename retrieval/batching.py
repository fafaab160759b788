"""Turn many concurrent calls of one into few calls of many."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Queue(Generic[Item, Result]):
    """What waits in one event loop."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self.worker: asyncio.Task[None] | None = None


class MicroBatcher(Generic[Item, Result]):
    """Runs ``function(items)`` in a thread of its own for items submitted one by one.

    A batch is what arrives in one tick of the event loop, or while the batch before is running. Event
    loops in several threads may share one batcher; their batches run one after the other.
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Result | Exception]], *, max_batch: int = 256) -> None:
        self._function = function
        self._max_batch = max_batch
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue[Item, Result]]
        self._queues = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        # Not the loop's default threads: tools that block there must not keep searches waiting.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="restill-search")

    async def submit(self, item: Item) -> Result:
        """The result for ``item``.

        An exception in its place is raised here; one that ``function`` raises reaches the whole batch.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            queue = self._queues.setdefault(loop, _Queue())
        future: asyncio.Future[Result] = loop.create_future()
        queue.waiting.append((item, future))
        if queue.worker is None:
            queue.worker = loop.create_task(self._work(loop, queue))
        return await future

    async def _work(self, loop: asyncio.AbstractEventLoop, queue: _Queue[Item, Result]) -> None:
        futures: list[asyncio.Future[Result]] = []
        try:
            await asyncio.sleep(0)
            while queue.waiting:
                batch, queue.waiting = queue.waiting[: self._max_batch], queue.waiting[self._max_batch :]
                batch = [(item, future) for item, future in batch if not future.done()]
                if not batch:  # every caller was cancelled
                    continue
                futures = [future for _, future in batch]
                try:
                    results = await loop.run_in_executor(self._executor, self._function, [item for item, _ in batch])
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for future, result in zip(futures, results, strict=True):
                        if future.done():
                            continue
                        if isinstance(result, Exception):
                            future.set_exception(result)
                        else:
                            future.set_result(result)
        finally:
            # Reached with callers left only when the loop is being shut down.
            for future in [*futures, *(future for _, future in queue.waiting)]:
                future.cancel()
            queue.waiting, queue.worker = [], None
