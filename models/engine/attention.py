"""Attention of new tokens over a cache that lies in segments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ..decoder import NEG_INF

Block = tuple[Array, Array, Array]
"""Keys ``[B, KV, D, C]``, values ``[B, KV, C, D]`` and what of them counts, broadcast to ``[B, KV, Q, C]``."""


class _Part(NamedTuple):
    """Attention over some of the keys.

    Attributes:
        top: ``[B, KV, Q, 1]`` largest score. total: ``[B, KV, Q, 1]`` sum of the weights, relative to it.
        out: ``[B, KV, Q, D]`` sum of the weighted values.
    """

    top: Array
    total: Array
    out: Array


def _part(q: Array, *blocks: Block) -> _Part:
    """Attention of ``q [B, KV, Q, D]`` over some blocks."""
    scores = list[Array]()
    for keys, _, there in blocks:
        some = jnp.einsum("bkqd,bkdc->bkqc", q, keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(there, some, NEG_INF))
    top = reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - top) for part in scores]
    out = [
        jnp.einsum("bkqc,bkcd->bkqd", part.astype(values.dtype), values, preferred_element_type=jnp.float32)
        for part, (_, values, _) in zip(weights, blocks, strict=True)
    ]
    return _Part(top, reduce(jnp.add, [part.sum(-1, keepdims=True) for part in weights]), reduce(jnp.add, out))


def attend_cached(
    q: Array,
    k: Array,
    v: Array,
    segments: Sequence[tuple[Array, Array]],
    lengths: Array,
    ends: Sequence[int],
    skip: bool,
    between: Sequence[Block] = (),
) -> Array:
    """New tokens over the cached ones and, causally, over themselves.

    Args:
        q: ``[B, T, H, D]``. k, v: ``[B, T, KV, D]``. segments: ``[B, KV, D, C]`` and ``[B, KV, C, D]`` of each.
        lengths: ``[B]`` how many cached tokens there are. ends: where the segments end.
        skip: segments that nobody reaches; a condition costs 5 us, which one row with few tokens does not save.
        between: what comes after the cached tokens and before the new ones.
    """
    batch, count, heads, dim = q.shape
    kv = k.shape[2]
    groups = (q * dim**-0.5).reshape(batch, count, kv, -1, dim).transpose(0, 2, 1, 3, 4).reshape(batch, kv, -1, dim)
    causal = jnp.repeat(jnp.tril(jnp.ones((count, count), bool)), heads // kv, axis=0)
    blocks = [(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), causal), *between]
    for segment, (start, end) in zip(segments, pairwise([0, *ends]), strict=True):
        there = jnp.arange(segment[0].shape[-1]) < jnp.minimum(lengths - start, end - start)[:, None, None, None]
        blocks.append((*segment, there))
    sure = len(between) + 2 if skip else len(blocks)
    parts = [_part(groups, *blocks[:sure])]
    none = _Part(*(jnp.full_like(x, fill) for x, fill in zip(parts[0], (NEG_INF, 0, 0), strict=True)))
    for block, start in zip(blocks[sure:], ends, strict=False):
        parts.append(lax.cond(jnp.max(lengths) > start, _part, lambda *_: none, groups, block))
    if len(parts) > 1:
        top = reduce(jnp.maximum, [part.top for part in parts])
        parts = [
            part._replace(total=part.total * (share := jnp.exp(part.top - top)), out=part.out * share) for part in parts
        ]
    out = reduce(jnp.add, [part.out for part in parts]) / reduce(jnp.add, [part.total for part in parts])
    out = out.astype(q.dtype).reshape(batch, kv, count, -1, dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, count, heads, dim)
