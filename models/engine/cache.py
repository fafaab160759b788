"""The KV cache of all slots, as the host sees it: groups of rows that come into being and grow as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

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
        self._groups: list[Cache | None] = [None] * len(shapes.groups)
        self.context = 0

    def reserve(self, most: int) -> None:
        """Make room for requests of ``most`` tokens."""
        context = self._shapes.context(most)
        if context <= self.context:
            return
        self.context = context
        for i, group in enumerate(self._groups):
            if group is not None:
                self._groups[i] = None  # so that both are never held at once for more than one group
                self._groups[i] = runner.grow_cache(group, context)

    def groups(self, rows: int) -> tuple[Cache, ...]:
        """The groups of the first ``rows`` slots."""
        return tuple(self._group(i) for i, group in enumerate(self._shapes.groups) if group.start < rows)

    def _group(self, i: int) -> Cache:
        group = self._groups[i]
        if group is None:
            rows = len(self._shapes.groups[i])
            group = self._groups[i] = runner.new_cache(self._config, rows, self.context, self._dtype)
        return group

    def prefix(self, slot: int, length: int) -> Cache | None:
        """What a prompt goes on from: the first ``length`` tokens of a slot; None at the start."""
        extent = self._shapes.prefix(length)
        group, row = self._shapes.place(slot)
        return runner.take(self._group(group), np.int32(row), extent=extent) if extent else None

    def put_chunk(self, slot: int, start: int, fresh: Fresh) -> None:
        """Write a chunk of a prompt."""
        group, row = self._shapes.place(slot)
        self._groups[group] = runner.put(
            self._group(group), fresh, np.array([row], np.int32), np.array([start], np.int32)
        )

    def put_step(self, fresh: Sequence[Fresh], starts: np.ndarray) -> None:
        """Write what a step over the first slots has computed: ``Fresh`` of each group, ``starts [B]``."""
        for i, part in enumerate(fresh):
            slots = self._shapes.groups[i]
            rows = np.arange(len(slots), dtype=np.int32)
            self._groups[i] = runner.put(self._group(i), part, rows, starts[slots.start : slots.stop])

    def move(self, what: Fork | Swap) -> None:
        """Copy or exchange the first tokens of two slots."""
        pairs = [(what.source, what.target)] if isinstance(what, Fork) else [(what.a, what.b), (what.b, what.a)]
        extent = self._shapes.prefix(what.length)
        if not extent:
            return
        places = [(self._shapes.place(source), self._shapes.place(target)) for source, target in pairs]
        taken = [runner.take(self._group(group), np.int32(row), extent=extent) for (group, row), _ in places]
        for part, (_, (group, row)) in zip(taken, places, strict=True):
            self._groups[group] = runner.give(self._group(group), part, np.int32(row))

    def clear(self, slot: int) -> None:
        """Zeros in a slot."""
        group, row = self._shapes.place(slot)
        self._groups[group] = runner.clear(self._group(group), np.int32(row))

    def wait(self) -> None:
        """Until all that was asked is done."""
        jax.block_until_ready(self._groups)
