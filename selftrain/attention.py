"""Attention of the training pass: causal within the segments of packed rows, a tile of scores at a time.

FlashAttention-2 (Dao 2307.08691): the forward pass keeps a running maximum and sum of each query (algorithm 1) and
leaves their log-sum-exp behind, from which the backward pass computes the probabilities again (algorithm 2). No
``[L, L]`` array ever exists. Tiles after a block of queries, or wholly before the segments that it touches, are not
computed.

Inside, everything but the factors of ``narrow`` products is f32 and in tiles: N blocks of T positions, with the G
query heads of a key-value head side by side. Queries are columns, ``[D, G * T]``, and so are their scores, ``[T, G *
T]``: on a CPU a seventh faster than rows with the one key-value head of nano models (and a seventh slower with three
heads of 64).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..models.decoder import NEG_INF
from ..models.mixed import COLUMNS, NARROW, ROWS, product

TILE = {"cpu": 64}
"""Most positions of a tile, by backend: what stays in a CPU's cache."""
ELSEWHERE = 512
"""On accelerators, where a small product costs as much as a large one. Not measured yet."""
LANES = 8


def packed_attention(q: Array, k: Array, v: Array, segments: Array, *, narrow: bool = False) -> Array:
    """Causal grouped-query attention within segments.

    A segment is a run of equal numbers in a row. A negative number is padding, which sees nothing but itself, so that
    its output is finite and no gradient passes between it and a token. Tiles that only a neighbour in the batch needs
    add exact zeros, so a row has the same bits beside any other.

    Args:
        q: ``[B, L, H, D]``. k, v: ``[B, L, KV, D]``, H a multiple of KV. segments: ``[B, L]`` int.
        narrow: round the factors of all products to bf16, as ``models/mixed.py`` does.

    Returns:
        ``[B, L, H, D]``, of the type of ``q``.
    """
    length, heads, dim = q.shape[1:]
    kv = k.shape[2]
    tile = tile_size(length)
    spare = -length % tile
    if spare:
        q, k, v = (jnp.pad(x, ((0, 0), (0, spare), (0, 0), (0, 0))) for x in (q, k, v))
        segments = jnp.pad(segments, ((0, 0), (0, spare)), constant_values=-1)
    first = segment_starts(segments)
    low = first[:, ::tile].min(0) // tile
    starts = _cut(jnp.broadcast_to(first[..., None, None], (*first.shape, heads // kv, 1)), 1, tile)
    columns, keys, values = (_cut(x.astype(jnp.float32), kv, tile) for x in (q, k, v))
    out: Any = _attend(narrow, columns * dim**-0.5, keys.mT, values.mT, starts, low)
    return _join(out, tile)[:, :length].astype(q.dtype)


def tile_size(length: int) -> int:
    """Positions of a tile: few enough, and such that little is added to fill the last one."""
    blocks = -(-length // TILE.get(jax.default_backend(), ELSEWHERE))
    return -(-length // (blocks * LANES)) * LANES


def segment_starts(segments: Array) -> Array:
    """Where the segment of each position starts, ``[B, L]`` int32; padding starts at itself."""
    at = jnp.arange(segments.shape[1], dtype=jnp.int32)
    new = (segments != jnp.roll(segments, 1, axis=1)) | (segments < 0)
    return jax.lax.cummax(jnp.where(new, at, 0), axis=1)


def _cut(x: Array, kv: int, tile: int) -> Array:
    """``[B, N * T, KV * G, D]`` to ``[N, B, KV, D, G * T]``."""
    batch, length, heads, dim = x.shape
    x = x.reshape(batch, length // tile, tile, kv, heads // kv, dim).transpose(1, 0, 3, 5, 4, 2)
    return x.reshape(length // tile, batch, kv, dim, -1)


def _join(x: Array, tile: int) -> Array:
    """The inverse of ``_cut``."""
    blocks, batch, kv, dim, _ = x.shape
    x = x.reshape(blocks, batch, kv, dim, -1, tile).transpose(1, 0, 5, 2, 4, 3)
    return x.reshape(batch, blocks * tile, -1, dim)


def _at(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _add(x: Array, part: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, _at(x, index) + part, index, 0)


def _scores(columns: Array, keys: Array, starts: Array, i: Array, j: Array) -> Array:
    """``[B, KV, T, G * T]``: tile ``j`` of keys by block ``i`` of queries, ``NEG_INF`` where one may not look."""
    tile = keys.shape[-2]
    query = i * tile + jnp.arange(columns.shape[-1]) % tile
    key = (j * tile + jnp.arange(tile))[:, None]
    return jnp.where((key >= starts) & (key <= query), product(keys, columns), NEG_INF)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(narrow: bool, q: Array, k: Array, v: Array, starts: Array, low: Array) -> Array:
    """Attention on tiles.

    Args:
        q: ``[N, B, KV, D, G * T]``, scaled. k, v: ``[N, B, KV, T, D]``.
        starts: ``[N, B, 1, 1, G * T]``, where a query's segment starts. low: ``[N]``, the first tile of keys that a
            block of queries sees in any row.

    Returns:
        As ``q``.
    """
    return _forward(narrow, q, k, v, starts, low)[0]


def _forward(narrow: bool, q: Array, k: Array, v: Array, starts: Array, low: Array) -> tuple[Array, tuple[Array, ...]]:
    if narrow:
        q, k, v = (x.astype(NARROW) for x in (q, k, v))

    def block(x: tuple[Array, ...]) -> tuple[Array, Array]:
        i, columns, start, first = x

        def tile(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            # A query that may not see the tile adds ones; exp(NEG_INF - top) = 0 clears them at the tile where its
            # segment starts, and there is one: every query sees itself.
            top, total, out = state
            scores = _scores(columns, _at(k, j), start, i, j)
            higher = jnp.maximum(top, scores.max(-2, keepdims=True))
            p, fade = jnp.exp(scores - higher), jnp.exp(top - higher)
            return higher, total * fade + p.sum(-2, keepdims=True), out * fade + product(_at(v, j), p, COLUMNS)

        line = columns[..., :1, :]
        state = jnp.full(line.shape, NEG_INF), jnp.zeros(line.shape), jnp.zeros(columns.shape)
        top, total, out = jax.lax.fori_loop(first, i + 1, tile, state)
        return out / total, top + jnp.log(total)

    out, logsum = jax.lax.map(block, (jnp.arange(len(q)), q, starts, low))
    return out, (q, k, v, starts, low, out, logsum)


def _backward(narrow: bool, saved: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    q, k, v, starts, low, out, logsum = saved
    inner = (grad * out).sum(-2, keepdims=True)
    grad = grad.astype(NARROW) if narrow else grad

    def block(sums: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        i, columns, start, first, logs, seed, mean = x

        def tile(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = state
            keys = _at(k, j)
            p = jnp.exp(_scores(columns, keys, start, i, j) - logs)
            ds = p * (product(_at(v, j), seed) - mean)
            dk, dv = _add(dk, product(ds, columns, ROWS), j), _add(dv, product(p, seed, ROWS), j)
            return dq + product(keys, ds, COLUMNS), dk, dv

        dq, dk, dv = jax.lax.fori_loop(first, i + 1, tile, (jnp.zeros(columns.shape), *sums))
        return (dk, dv), dq

    zeros = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (dk, dv), dq = jax.lax.scan(block, zeros, (jnp.arange(len(q)), q, starts, low, logsum, grad, inner))
    return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)
