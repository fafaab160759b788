"""Every size that a program is compiled for: few of them, so that compiling ends.

The cache is a grid. Slots lie in groups of 1, 3, 4, 8, ... rows, tokens in segments of 256, 256, 512, ... A group has
an array for each segment, and a step takes the first few of both, whole. (A part of an array would be copied first:
8 rows, 512 of 2,016 tokens, took 70 ms instead of 49.) Programs are compiled for the segments' ends from 512 on; what
they get beyond a group's longest row they skip.

A deterministic engine has one program of each kind: a sum over other sizes may differ in its last bit. A prompt's length
alone decides where it is cut and how wide its last chunks are; only full chunks before them are reused. Segments that
it skips change nothing: what nobody reaches adds zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

CHUNKS = (16, 32, 64, 128, 256)
"""Prefill widths; a prompt is cut into these."""
WIDTHS = (4, 8)
"""Tokens a row of a step that checks guesses: the newest and three or seven guesses."""
STEPS = 8
"""Decode steps of one dispatch of a small model."""
LIGHT = 16_000_000
"""Parameters up to which a model is small: a step takes no longer than what the host does for it."""
MOST_ROWS = 4
"""More running rows than this fill the processor by themselves; nothing is guessed then."""
_FIXED_CHUNK = 64
_REACHES = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
_HALVED = 512
_BUCKETS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Shapes:
    """The sizes of one engine.

    Attributes:
        slots: rows of the cache. max_context: most tokens of a request.
        deterministic: one group, one reach, prompts cut at fixed places.
    """

    slots: int
    max_context: int
    deterministic: bool = False

    @property
    def margin(self) -> int:
        """Room at the end of every segment, for the padding of a chunk; nothing there counts."""
        return CHUNKS[0]

    @property
    def grain(self) -> int:
        """Prefixes are reused up to multiples of this."""
        return _FIXED_CHUNK if self.deterministic else 1

    @cached_property
    def row_buckets(self) -> list[int]:
        """How many rows a decode step may have."""
        few = set() if self.deterministic else {b for b in _BUCKETS if b < self.slots}
        return sorted(few | {self.slots})

    @cached_property
    def groups(self) -> list[range]:
        """The slots of every group."""
        return [range(a, b) for a, b in pairwise([0, *self.row_buckets])]

    @cached_property
    def reaches(self) -> tuple[int, ...]:
        """How many tokens a program may look at: there is one for each."""
        return self.ends[-1:] if self.deterministic else tuple(e for e in self.ends if e >= _HALVED) or self.ends

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where every segment ends: halfway to the first reach, and at each."""
        last = -(-self.max_context // self.grain) * self.grain  # the chunks of a deterministic engine begin at grains
        reaches = (*(r for r in _REACHES if r < last), last)
        return (reaches[0] // 2, *reaches) if reaches[0] >= _HALVED else reaches

    @cached_property
    def segments(self) -> list[range]:
        """The tokens of every segment."""
        return [range(a, b) for a, b in pairwise([0, *self.ends])]

    def row(self, slot: int) -> tuple[int, int]:
        """The group that holds a slot, and its row there."""
        return next((i, slot - group.start) for i, group in enumerate(self.groups) if slot in group)

    def parts(self, length: int) -> int:
        """How many segments hold the first ``length`` tokens."""
        return sum(segment.start < length for segment in self.segments)

    def reach(self, length: int) -> int:
        """How many segments a program gets that looks at the first ``length`` tokens."""
        return self.parts(next(r for r in (0, *self.reaches) if r >= length))

    def rest(self, length: int) -> int:
        """Tokens that still fit into the segment that ``length`` tokens reach."""
        return next(end for end in self.ends if end > length) - length

    def rows(self, highest: int) -> int:
        """Rows of the step that reaches slot ``highest``."""
        return next(b for b in self.row_buckets if b > highest)

    def widths(self, rows: int) -> tuple[int, ...]:
        """Tokens that a step of so many rows may compute in each."""
        return (1, *WIDTHS) if rows <= MOST_ROWS and not self.deterministic else (1,)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Prefill widths; of a deterministic engine one, and a narrow one for what is left."""
        return (CHUNKS[0], _FIXED_CHUNK) if self.deterministic else CHUNKS

    def chunk(self, count: int, start: int) -> int:
        """Width of the next chunk for ``count`` tokens at ``start``: full, at most a third padding, or the least.

        Its tokens stay in one segment, its padding in that segment's margin.
        """
        rest = self.rest(start)
        count = min(count, rest)
        enough = next((c for c in self.chunks if c >= count), self.chunks[-1])
        fits = [c for c in self.chunks if c <= count]
        return enough if not fits or (enough < 1.5 * count and enough <= rest + self.margin) else fits[-1]


def pad_to(values: Sequence[int], length: int) -> np.ndarray:
    """``values`` as int32, padded with zeros."""
    out = np.zeros(length, np.int32)
    out[: len(values)] = values
    return out
