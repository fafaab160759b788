"""Observations: a tool's result as one line of text, cut to so many tokens, in fair shares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from ..models.text import well_formed
from ..retrieval.types import Hit
from .tool_results import ToolResult

# Control characters and all line ends: a text from outside cannot begin a line of its own.
_FOLD = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CUT = " ..."


class Counter(Protocol):
    """The part of a tokenizer that cutting needs."""

    def encode(self, text: str) -> list[Any]:
        """Ids of ``text``; control tokens in it are plain text."""
        ...

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of ``ids``."""
        ...


def render_observation(
    result: ToolResult, first_handle: int, tokenizer: Counter | None = None, max_tokens: int | None = None
) -> str:
    """The text of an observation turn: ``Observation: [1] Title: text [2] Title: text``.

    Args:
        result: of the call; a failure reads ``Observation: error: ...``.
        first_handle: number of the first passage.
        tokenizer: counts tokens; without one, a token is taken to be four characters.
        max_tokens: longest text, in tokens; each passage keeps its number and a fair share.
    """
    counter = tokenizer or Characters()
    head = "Observation:"
    if result.status != "ok":
        parts = [f"error: {fold(result.text or result.error or result.status)}"]
    elif result.hits:
        parts = [_passage(handle, hit) for handle, hit in enumerate(result.hits, first_handle)]
    else:
        parts = [fold(result.text) or "nothing found"]
    if max_tokens is None:
        return f"{head} {' '.join(parts)}"
    room = max_tokens - len(counter.encode(head))
    while True:
        text = f"{head} {' '.join(_share(parts, room, counter))}".rstrip()
        excess = len(counter.encode(text)) - max_tokens
        # Cut pieces may encode to a token more than they were cut to.
        if excess <= 0 or room <= 0:
            return text
        room -= max(excess, 1)


def shorten(text: str, tokens: int, counter: Counter) -> str:
    """``text``, cut to so many tokens (marked by ``...``)."""
    ids = counter.encode(text)
    return text if len(ids) <= tokens else _cut(text, ids, tokens, counter)


def fold(text: str) -> str:
    """One line: runs of spaces, line ends and control characters become one space."""
    return _FOLD.sub(" ", well_formed(text)).strip()


def _passage(handle: int, hit: Hit) -> str:
    title, text = fold(hit.chunk.title), fold(hit.chunk.text)
    if title and not text.casefold().startswith(title.casefold()):
        text = f"{title}: {text}"
    return f"[{handle}] {text}"


def _share(parts: list[str], room: int, counter: Counter) -> list[str]:
    """Cut what is too long for ``room`` tokens: short parts stay whole, long ones get equal shares."""
    encoded = [counter.encode(" " + part) for part in parts]
    sizes = [len(ids) for ids in encoded]
    shares = [0] * len(parts)
    left, waiting = max(room, 0), sorted(range(len(parts)), key=sizes.__getitem__)
    for done, index in enumerate(waiting):
        shares[index] = min(sizes[index], left // (len(waiting) - done))
        left -= shares[index]
    out = []
    for part, ids, size, share in zip(parts, encoded, sizes, shares, strict=True):
        out.append(part if share >= size else _cut(part, ids, share, counter))
    return [part for part in out if part]


def _cut(part: str, ids: list[Any], tokens: int, counter: Counter) -> str:
    keep = tokens - len(counter.encode(_CUT))
    if keep <= 0:
        return part.split(" ", 1)[0] if part.startswith("[") and tokens > 0 else ""
    text = counter.decode(ids[:keep]).lstrip().rstrip("\ufffd").rstrip()
    return text + _CUT


class Characters:
    """Stands in for a tokenizer where there is none: four characters a token."""

    def encode(self, text: str) -> list[str]:
        """``text`` in pieces of four characters."""
        return [text[i : i + 4] for i in range(0, len(text), 4)]

    def decode(self, ids: Iterable[str]) -> str:
        """The text of such pieces."""
        return "".join(ids)
