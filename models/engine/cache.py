"""The KV cache of all slots, as the host sees it: a grid of arrays (``shapes``) that come into being when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import jax
import numpy as np
from jax import Array

from ..config import DecoderConfig
from . import runner
from .runner import Cache, Fresh
from .shapes import Shapes
from .slots import Fork, Swap


class KVCache:
    """Keys and values of one decoder for every slot; where they lie is known here alone.

    A slot is truncated by writing at a lesser place: what lies beyond a request's length is never looked at.
    """

    def __init__(self, config: DecoderConfig, shapes: Shapes, dtype: Any) -> None:
        self._config, self._shapes, self._dtype = config, shapes, dtype
        self._grid: dict[tuple[int, int], Cache] = {}

    def _part(self, group: int, segment: int) -> Cache:
        where = (group, segment)
        if where not in self._grid:
            rows, tokens = len(self._shapes.groups[group]), len(self._shapes.segments[segment])
            self._grid[where] = runner.new_cache(self._config, rows, tokens + self._shapes.margin, self._dtype)
        return self._grid[where]

    def groups(self, rows: int, longest: int) -> tuple[tuple[Cache, ...], ...]:
        """What a program gets that looks at ``longest`` tokens of the first ``rows`` slots: per group its segments."""
        segments, groups = range(self._shapes.reach(max(1, longest))), enumerate(self._shapes.groups)
        return tuple(tuple(self._part(i, j) for j in segments) for i, group in groups if group.start < rows)

    def prefix(self, slot: int, length: int) -> Iterator[list[tuple[Array, Array]]]:
        """What a program gets that looks at the first ``length`` tokens of a slot: of each layer in turn, segments."""
        group, row = self._shapes.row(slot)
        where = np.int32(row)
        parts = [self._part(group, j) for j in range(self._shapes.reach(length))]
        return ([runner.take(part[i], where) for part in parts] for i in range(self._config.num_layers))

    def put_chunk(self, slot: int, start: int, fresh: Sequence[tuple[Array, Array]]) -> None:
        """Write a chunk of a prompt: ``k, v [1, C, KV, head_dim]`` of each layer."""
        group, row = self._shapes.row(slot)
        segment = self._shapes.parts(start + 1) - 1
        local = start - self._shapes.segments[segment].start
        where = (np.array([row], np.int32), np.array([local], np.int32))
        part = self._part(group, segment)
        self._grid[group, segment] = tuple(
            runner.put(layer, *new, *where) for layer, new in zip(part, fresh, strict=True)
        )

    def put_step(self, fresh: Sequence[Fresh], starts: np.ndarray, *, crossing: bool = False) -> None:
        """Write what a step over the first slots has computed.

        Args:
            fresh: of each group. starts: ``[B]``; -1 where nothing is to be written.
            crossing: a row's tokens may begin in one segment and end in the next.
        """
        for (i, part), (j, tokens) in product(enumerate(fresh), enumerate(self._shapes.segments)):
            slots = self._shapes.groups[i]
            own = starts[slots.start : slots.stop]
            before = tokens.start - own  # how many of a row's tokens belong into earlier segments
            here = (own >= 0) & (own < tokens.stop) & (before < (part[0].shape[2] if crossing else 1))
            if here.any():  # the others write into the margin
                local = np.where(here, np.maximum(-before, 0), len(tokens)).astype(np.int32)
                rows = np.arange(len(slots), dtype=np.int32)
                if crossing:
                    first = np.where(here, np.maximum(before, 0), 0).astype(np.int32)
                    self._grid[i, j] = runner.put_from(self._part(i, j), part, rows, local, first)
                else:
                    self._grid[i, j] = runner.put_all(self._part(i, j), part, rows, local)

    def move(self, what: Fork | Swap) -> None:
        """Copy or exchange the first tokens of two slots."""
        pairs = [(what.source, what.target)] if isinstance(what, Fork) else [(what.a, what.b), (what.b, what.a)]
        kept = what.kept if isinstance(what, Fork) else 0
        segments = range(self._shapes.parts(kept + 1) - 1, self._shapes.parts(what.length))
        taken = [[self._row(source, j) for j in segments] for source, _ in pairs]
        for copies, (_, target) in zip(taken, pairs, strict=True):
            group, row = self._shapes.row(target)
            where = np.int32(row)
            for j, copy in zip(segments, copies, strict=True):
                part = self._part(group, j)
                self._grid[group, j] = tuple(
                    runner.give(layer, new, where) for layer, new in zip(part, copy, strict=True)
                )

    def _row(self, slot: int, segment: int) -> Cache:
        group, row = self._shapes.row(slot)
        where = np.int32(row)
        return tuple(runner.take(layer, where) for layer in self._part(group, segment))

    def clear(self, slot: int) -> None:
        """Zeros in a slot."""
        group, row = self._shapes.row(slot)
        for where in [where for where in self._grid if where[0] == group]:
            self._grid[where] = tuple(runner.clear(layer, np.int32(row)) for layer in self._grid[where])

    def wait(self) -> None:
        """Until all that was asked is done."""
        jax.block_until_ready(self._grid)
