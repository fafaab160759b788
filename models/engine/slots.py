"""Who sits in which row of the KV cache, and what each row still remembers.

A slot keeps its tokens after its request is done. The next request is placed where it shares the longest prefix:
an agent's next step finds its own transcript, and a new question forks the row that holds the common prompt.
Matches are verified token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_FORK_GAIN = 32
"""A fork costs about as much as prefilling this many tokens."""


@dataclass
class Slot:
    """One row: the tokens whose keys and values are in the cache, under which adapter, and when it was last used.

    A free slot may move to another row, with what it holds.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    adapter: object = None
    busy: bool = False
    used: int = 0


@dataclass(frozen=True)
class Fork:
    """Copy the cache of slot ``source`` to slot ``target``."""

    source: int
    target: int


@dataclass(frozen=True)
class Swap:
    """Exchange the caches of two slots."""

    a: int
    b: int


@dataclass(frozen=True)
class Placement:
    """Where a request goes: after ``moves``, ``slot`` holds the first ``shared`` tokens of its prompt."""

    slot: Slot
    shared: int
    moves: tuple[Fork | Swap, ...] = ()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n


def row_buckets(slots: int) -> list[int]:
    """How many rows a decode step may have, with that many slots: few sizes, since each is compiled.

    Rows that are not all of them are copied out of the cache first; beyond a quarter that costs more than it saves.
    """
    return sorted({b for b in (1, 4, 8, 16, 32, 64) if 4 * b <= slots} | {slots})


class SlotTable:
    """All rows of one cache."""

    def __init__(self, count: int) -> None:
        self.slots = [Slot(i) for i in range(count)]
        self._buckets = row_buckets(count)
        self._clock = 0

    def rows(self, highest: int) -> int:
        """Rows of the step that reaches slot ``highest``."""
        return next(b for b in self._buckets if b > highest)

    def place(self, prompt: Sequence[int], adapter: object = None) -> Placement | None:
        """Choose and occupy a free slot for ``prompt``; None when all are busy.

        The last prompt token is never counted as shared: decoding feeds it. Nothing is shared between adapters.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        limit = len(prompt) - 1
        shared = {
            slot.index: min(common_prefix(slot.tokens, prompt), limit) if slot.adapter is adapter else 0
            for slot in self.slots
        }
        own = max(free, key=lambda s: (shared[s.index], -s.used, -s.index))
        donor = max(self.slots, key=lambda s: shared[s.index])
        count, source = shared[own.index], None
        # Continuing one's own transcript overwrites nothing; anything else evicts the row used longest ago.
        if count < len(own.tokens):
            own = min(free, key=lambda s: (len(s.tokens) > 0, s.used, s.index))
            count = shared[own.index]
        if shared[donor.index] - count >= _FORK_GAIN:
            count, source = shared[donor.index], donor
        # A step computes all rows up to the highest that runs: keep those that run low.
        low = free[0]
        highest = max((slot.index for slot in self.slots if slot.busy), default=0)
        moves: list[Fork | Swap] = []
        if self.rows(max(own.index, highest)) > self.rows(max(low.index, highest)):
            if count and source is None:
                moves.append(Swap(low.index, own.index) if low.tokens else Fork(own.index, low.index))
            elif low.tokens:
                moves.append(Fork(low.index, own.index))
            low.index, own.index = own.index, low.index
            self.slots[low.index], self.slots[own.index] = low, own
        if source is not None:
            moves.append(Fork(source.index, own.index))
        self._clock += 1
        own.busy, own.used, own.tokens, own.adapter = True, self._clock, list(prompt[:count]), adapter
        return Placement(own, count, tuple(moves))

    def forget(self) -> None:
        """Empty the rows that nobody uses."""
        for slot in self.slots:
            if not slot.busy:
                slot.tokens = []

    def release(self, slot: Slot) -> None:
        """Free the row; what it holds stays for later requests."""
        self._clock += 1
        slot.busy, slot.used = False, self._clock
