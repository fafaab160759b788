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
    """One row: the tokens whose keys and values are in the cache, and when it was last used."""

    index: int
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a request goes: ``slot`` keeps ``shared`` tokens, copied from ``source`` when that is another row."""

    slot: Slot
    shared: int
    source: Slot | None = None


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n


class SlotTable:
    """All rows of one cache."""

    def __init__(self, count: int) -> None:
        self.slots = [Slot(i) for i in range(count)]
        self._clock = 0

    def place(self, prompt: Sequence[int]) -> Placement | None:
        """Choose and occupy a free slot for ``prompt``; None when all are busy.

        The last prompt token is never counted as shared: decoding feeds it.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        limit = len(prompt) - 1
        shared = {slot.index: min(common_prefix(slot.tokens, prompt), limit) for slot in self.slots}
        own = max(free, key=lambda s: (shared[s.index], -s.used, -s.index))
        donor = max(self.slots, key=lambda s: shared[s.index])
        # Continuing one's own transcript overwrites nothing; anything else evicts the row used longest ago.
        if shared[own.index] < len(own.tokens):
            oldest = min(free, key=lambda s: (len(s.tokens) > 0, s.used, s.index))
            if shared[donor.index] - shared[oldest.index] >= _FORK_GAIN:
                return self._take(Placement(oldest, shared[donor.index], donor), prompt)
            own = oldest
        elif shared[donor.index] - shared[own.index] >= _FORK_GAIN:
            return self._take(Placement(own, shared[donor.index], donor), prompt)
        return self._take(Placement(own, shared[own.index]), prompt)

    def _take(self, placement: Placement, prompt: Sequence[int]) -> Placement:
        self._clock += 1
        slot = placement.slot
        slot.busy, slot.used = True, self._clock
        slot.tokens = list(prompt[: placement.shared])
        if placement.source is slot:
            return Placement(slot, placement.shared)
        return placement

    def release(self, slot: Slot) -> None:
        """Free the row; what it holds stays for later requests."""
        self._clock += 1
        slot.busy, slot.used = False, self._clock
