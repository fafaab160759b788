"""Crossing between synchronous and asynchronous code."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Run ``function(**arguments)`` in a daemon thread of its own.

    Not ``asyncio.to_thread``: its pool is joined when the loop closes, where one hung tool would hang all.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value, failure = None, None
        try:
            value = context.run(function, **arguments)
        except BaseException as error:  # SystemExit from a tool must not end the program
            ordinary = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failure = error if ordinary else RuntimeError(f"{type(error).__name__}: {error}")
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits

    threading.Thread(target=work, name=f"tool-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; inside a running event loop (a notebook), in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((asyncio.run(coroutine), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="restill-run", daemon=True)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
