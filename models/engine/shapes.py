"""Every size that a program is compiled for: few of them, so that compiling ends.

A deterministic engine has one size of each kind: a sum over other sizes may differ in its last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CHUNKS = (16, 32, 64, 128, 256)
"""Prefill widths; a prompt is cut into these."""
WIDTHS = (4, 8)
"""Tokens a row of a step that checks guesses: the newest and three or seven guesses."""
MOST_ROWS = 4
"""More running rows than this fill the processor by themselves; nothing is guessed then."""
_FIXED_CHUNK = 64
_CONTEXTS = (512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
"""Cache lengths; the cache starts small and grows to the next one when a request needs it."""
_PREFIXES = (0, 512, 1024, 2048, 4096)
_BUCKETS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Shapes:
    """The sizes of one engine.

    Attributes:
        slots: rows of the cache. max_context: most tokens of a request.
        deterministic: whole caches, all rows, prompts cut at fixed places.
    """

    slots: int
    max_context: int
    deterministic: bool = False

    @property
    def margin(self) -> int:
        """Kept free at the end of a slot, so that the last padded chunk fits."""
        return _FIXED_CHUNK if self.deterministic else CHUNKS[0]

    @property
    def grain(self) -> int:
        """Prefixes are reused up to multiples of this."""
        return _FIXED_CHUNK if self.deterministic else 1

    @property
    def whole(self) -> int:
        """The longest cache."""
        return self.max_context + self.margin

    def context(self, most: int) -> int:
        """Length of a cache for requests of up to ``most`` tokens."""
        if self.deterministic:
            return self.whole
        most += self.margin
        return min(next((c for c in _CONTEXTS if c >= most), most), self.whole)

    @property
    def row_buckets(self) -> list[int]:
        """How many rows a decode step may have."""
        few = set() if self.deterministic else {b for b in _BUCKETS if b < self.slots}
        return sorted(few | {self.slots})

    @property
    def groups(self) -> list[range]:
        """The slots of every group of the cache: a step takes the first few groups, whole."""
        return [range(a, b) for a, b in pairwise([0, *self.row_buckets])]

    def place(self, slot: int) -> tuple[int, int]:
        """The group that holds a slot, and its row there."""
        return next((i, slot - group.start) for i, group in enumerate(self.groups) if slot in group)

    def rows(self, highest: int) -> int:
        """Rows of the step that reaches slot ``highest``."""
        return next(b for b in self.row_buckets if b > highest)

    @property
    def prefixes(self) -> list[int]:
        """How much of a row may be taken out of the cache, for a prompt to go on from, or to be copied."""
        return [*(e for e in _PREFIXES if 5 * e <= 4 * self.whole), self.whole]

    def prefix(self, length: int) -> int:
        """The least of ``prefixes`` that holds ``length`` tokens."""
        return next(e for e in self.prefixes if e >= length)

    def widths(self, rows: int) -> tuple[int, ...]:
        """Tokens that a step of so many rows may compute in each."""
        return (1, *WIDTHS) if rows <= MOST_ROWS and not self.deterministic else (1,)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Prefill widths."""
        return (_FIXED_CHUNK,) if self.deterministic else CHUNKS

    def chunk(self, count: int, room: int) -> int:
        """Width of the next chunk for ``count`` tokens: a full one, or one at most a third padding, if ``room`` has it.

        Fewer tokens than the least chunk take that one; the caller has room for it.
        """
        enough = next((c for c in self.chunks if c >= count), self.chunks[-1])
        fits = [c for c in self.chunks if c <= count]
        return enough if not fits or (enough < 1.5 * count and enough <= room) else fits[-1]


def pad_to(values: Sequence[int], length: int) -> np.ndarray:
    """``values`` as int32, padded with zeros."""
    out = np.zeros(length, np.int32)
    out[: len(values)] = values
    return out
