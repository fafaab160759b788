"""What agents get of a retriever: functions with a fingerprint that says what they read."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .types import Hit

if TYPE_CHECKING:
    from .retriever import Retriever

Tool = Callable[[str], Awaitable[list[Hit]]]


def search_tool(retriever: Retriever, name: str, k: int) -> Tool:
    """``retriever.asearch`` for an agent."""

    async def search(query: str) -> list[Hit]:
        """Find passages about the query in the documents."""
        return await retriever.asearch(query, k=k)

    ways = [index.kind for index in retriever.indexes if index.kind != "flat"]
    if retriever.mode != "dense":
        ways.append(retriever.mode)
    if retriever.reranker is not None:
        ways.append(f"{_identity(retriever.reranker)} {retriever.rerank_depth} {retriever.rerank_weight}")
    return _named(search, name, " ".join([retriever.fingerprint, str(k), *ways]))


def follow_tool(retriever: Retriever, name: str, k: int) -> Tool:
    """``retriever.follow`` for an agent."""

    async def follow(document: str) -> list[Hit]:
        """Read the documents that the document with this title names, or that name it."""
        return await asyncio.to_thread(retriever.follow, document, k=k)

    return _named(follow, name, f"{retriever.fingerprint} {k} follow")


def _identity(reranker: Any) -> str:
    """What tells one re-ranker from another: its ``fingerprint`` if it has one, else where its code is.

    Two lambdas of one function, or two instances of a class without fingerprint, cannot be told apart.
    """
    code = reranker if hasattr(reranker, "__qualname__") else type(reranker)
    return getattr(reranker, "fingerprint", None) or f"{code.__module__}.{code.__qualname__}"


def _named(tool: Tool, name: str, reads: str) -> Tool:
    tool.__name__ = tool.__qualname__ = name
    tool.fingerprint = hashlib.sha256(reads.encode()).hexdigest()  # type: ignore[attr-defined]
    return tool
