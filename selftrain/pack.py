"""Packing: many short sequences in few rows of one length, without one seeing another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RestillError
from .mixture import Example

if TYPE_CHECKING:
    from .teacher import TeacherTargets

IntArray = NDArray[np.int32]
PAD = -1


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Rows of ``length`` tokens.

    Attributes:
        tokens: ``[R, L]`` int32.
        positions: ``[R, L]`` int32, from 0 in every segment.
        segments: ``[R, L]`` int32, the index of the example; -1 on padding.
        weights: ``[R, L]`` f32; ``weights[r, i]`` belongs to predicting ``tokens[r, i]`` from position ``i
            - 1``.
        truncated: examples of which trained tokens lie beyond a row's end, and are not learnt.
    """

    tokens: IntArray
    positions: IntArray
    segments: IntArray
    weights: NDArray[np.float32]
    truncated: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fill(self) -> float:
        """Share of positions that hold a token."""
        return float((self.segments != PAD).mean())


def pack(examples: Sequence[Example], length: int) -> PackedRows:
    """First-fit-decreasing (ties by the order given), so the same examples always make the same rows.

    Examples longer than ``length`` keep their first ``length`` tokens.

    Raises:
        RestillError: nothing to pack, or no target is left within ``length``.
    """
    kept = [i for i, e in enumerate(examples) if any(e.weights[:length])]
    if not kept:
        raise RestillError(
            f"no example has a trained token among its first {length}; "
            + ("the mixture is empty: keep more trajectories" if not examples else "raise row_length")
        )
    order = sorted(kept, key=lambda i: (-min(len(examples[i].tokens), length), i))
    rows: list[list[int]] = []
    room = _Room(len(order), length)
    for i in order:
        row = room.take(min(len(examples[i].tokens), length))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)

    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments, weights = np.full(shape, PAD, np.int32), np.zeros(shape, np.float32)
    for r, members in enumerate(rows):
        start = 0
        for i in members:
            size = min(len(examples[i].tokens), length)
            at = slice(start, start + size)
            tokens[r, at], weights[r, at] = examples[i].tokens[:size], examples[i].weights[:size]
            positions[r, at], segments[r, at] = np.arange(size), i
            start += size
    truncated = sum(any(e.weights[length:]) for e in examples)
    return PackedRows(tokens=tokens, positions=positions, segments=segments, weights=weights, truncated=truncated)


class _Room:
    """Free places of rows: the first row with enough of them is found in logarithmic time.

    Args:
        rows: as many as there can be. length: places of a row.
    """

    def __init__(self, rows: int, length: int) -> None:
        self._leaves = 1 << (rows - 1).bit_length()
        self._most = [length] * (2 * self._leaves)  # a tree: node i has the larger of nodes 2 i and 2 i + 1

    def take(self, size: int) -> int:
        """Take ``size`` places of the first row that has them, and return its number."""
        at, most = 1, self._most
        while at < self._leaves:
            at = 2 * at + (most[2 * at] < size)
        row, most[at] = at - self._leaves, most[at] - size
        while at > 1:
            at //= 2
            most[at] = max(most[2 * at], most[2 * at + 1])
        return row


def epoch_order(rows: int, *, seed: int, epoch: int) -> IntArray:
    """Order of the rows in one epoch: a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows).astype(np.int32)


def micro_batch(
    rows: PackedRows, part: IntArray, size: int, teacher: TeacherTargets | None = None
) -> dict[str, NDArray[Any] | np.int32]:
    """Arrays of ``size`` rows, of which ``part`` gives the numbers; rows that are missing are padding.

    ``tokens``, ``positions`` and ``segments`` are ``[size, L]``. The others list the loss positions (N = size * L), the
    real ones first: ``at [N]`` int32, index into the flattened rows of the hidden state that predicts; ``ids [N, K]``
    int32 and ``shares [N, K]`` f32, the distribution to learn (the token itself, or what the teacher's samples say);
    ``weights [N]`` f32, 0 on padding; ``count``, how many are real.
    """
    pad = size - len(part)

    def take(values: NDArray[Any], fill: int) -> NDArray[Any]:
        return np.pad(values[part], ((0, pad), (0, 0)), constant_values=fill)

    tokens, weights = take(rows.tokens, 0), take(rows.weights, 0)
    positions, segments = take(rows.positions, 0), take(rows.segments, PAD)
    where = np.flatnonzero(weights.reshape(-1)).astype(np.int32)
    if teacher is None:
        found = tokens.reshape(-1)[where][:, None], np.ones((len(where), 1), np.float32)
    else:
        found = teacher.at(segments.reshape(-1)[where], positions.reshape(-1)[where])

    def fill(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros((tokens.size, *values.shape[1:]), values.dtype)
        out[: len(where)] = values
        return out

    return {
        "tokens": tokens,
        "positions": positions,
        "segments": segments,
        # An example's first token has no weight, so position i - 1 is in the same row and segment.
        "at": fill(where - 1),
        "ids": fill(found[0]),
        "shares": fill(found[1]),
        "weights": fill(weights.reshape(-1)[where]),
        "count": np.int32(len(where)),
    }
