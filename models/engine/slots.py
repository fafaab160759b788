"""Who sits in which row of the KV cache, and what each row still remembers.

A slot keeps its tokens after its request is done. The next request is placed where it shares the longest prefix:
an agent's next step finds its own transcript, and a new question forks the row that holds the common prompt.
Matches are verified token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .shapes import Shapes

_FORK_GAIN = 8
"""Tokens that a fork must save. Rollouts of SmolLM2 and of a nano model took less time with 8 than with 32."""


@dataclass
class Slot:
    """One row: the tokens whose keys and values are in the cache, under which adapter, and when it was last used.

    A free slot may move to another row, with what it holds.

    Attributes:
        plain: how many of ``tokens`` were computed as chunks of a prompt that is not scored: what a deterministic
            engine may reuse.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    plain: int = 0
    adapter: object = None
    busy: bool = False
    used: int = 0


@dataclass(frozen=True)
class Fork:
    """Copy the first ``length`` tokens of slot ``source`` to slot ``target``, which has the first ``kept`` already."""

    source: int
    target: int
    length: int
    kept: int = 0


@dataclass(frozen=True)
class Swap:
    """Exchange the first ``length`` tokens of two slots."""

    a: int
    b: int
    length: int


@dataclass(frozen=True)
class Placement:
    """Where a request goes: after ``moves``, ``slot`` holds the first ``shared`` tokens of its prompt."""

    slot: Slot
    shared: int
    moves: tuple[Fork | Swap, ...] = ()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    a, b = list(a), list(b)
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing halves of lists takes a tenth of what making arrays of them takes
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SlotTable:
    """All rows of one cache."""

    def __init__(self, shapes: Shapes) -> None:
        self.slots = [Slot(i) for i in range(shapes.slots)]
        self._shapes = shapes
        self._clock = 0

    def place(self, prompt: Sequence[int], adapter: object = None) -> Placement | None:
        """Choose and occupy a free slot for ``prompt``; None when all are busy.

        The last prompt token is never counted as shared: decoding feeds it. Nothing is shared between adapters.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        shared = {slot.index: self._shared(slot, prompt, adapter) for slot in self.slots}
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
        if self._shapes.rows(max(own.index, highest)) > self._shapes.rows(max(low.index, highest)):
            if count and source is None:
                longest = max(len(low.tokens), count)
                fork = Fork(own.index, low.index, count)
                moves.append(Swap(low.index, own.index, longest) if low.tokens else fork)
            elif low.tokens:
                moves.append(Fork(low.index, own.index, len(low.tokens)))
            low.index, own.index = own.index, low.index
            self.slots[low.index], self.slots[own.index] = low, own
        if source is not None:
            moves.append(Fork(source.index, own.index, count, shared[own.index]))  # after a move, of what lies there
        self._clock += 1
        own.busy, own.used, own.tokens, own.adapter = True, self._clock, list(prompt[:count]), adapter
        own.plain = min(count, (source or own).plain)
        return Placement(own, count, tuple(moves))

    def _shared(self, slot: Slot, prompt: Sequence[int], adapter: object) -> int:
        if slot.adapter is not adapter:
            return 0
        usable = slot.tokens[: slot.plain] if self._shapes.deterministic else slot.tokens
        shared = min(common_prefix(usable, prompt), len(prompt) - 1)
        return shared - shared % self._shapes.grain

    def forget(self) -> None:
        """Empty the rows that nobody uses; what the others hold is shared with nobody."""
        for slot in self.slots:
            slot.adapter = self
            if not slot.busy:
                slot.tokens = []

    def release(self, slot: Slot) -> None:
        """Free the row; what it holds stays for later requests."""
        self._clock += 1
        slot.busy, slot.used = False, self._clock
