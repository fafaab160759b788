"""The device side of the engine: compiled programs over parameters and the KV cache.

The cache of a layer is ``k [rows, KV, head_dim, context]`` and ``v [rows, KV, context, head_dim]``: these layouts let
XLA:CPU run decode attention as plain dots (measured 0.5 ms a layer at 16 rows x 512 tokens; ``[rows, context, KV,
head_dim]`` takes 20). The slots are kept in groups of 1, 3, 4, 8, ... rows, so that a step over the first few reads
whole arrays: a part of an array is copied before it is multiplied. Programs that read the cache do not write it: they
return new keys and values, and ``put`` writes those in place. (XLA copies a cache that one program reads and writes.)
Layers are unrolled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..config import DecoderConfig
from ..decoder import NEG_INF, Decoder, Params
from .sampling import draw

Cache = tuple[tuple[Array, Array], ...]
"""Per layer ``(k, v)``: those of a group of rows, or of one row (a prefix)."""
Fresh = list[tuple[Array, Array]]
"""Per layer new keys and values, ``[B, T, KV, head_dim]`` each."""
Lora = tuple[Params, Array]
"""Stacked adapter leaves and what each row takes of them (``adapters.Adapters``)."""


def new_cache(config: DecoderConfig, rows: int, context: int, dtype: Any) -> Cache:
    """An empty cache for ``rows`` sequences of up to ``context`` tokens."""
    kv, dim = config.num_kv_heads, config.head_dim
    return tuple(
        (jnp.zeros((rows, kv, dim, context), dtype), jnp.zeros((rows, kv, context, dim), dtype))
        for _ in range(config.num_layers)
    )


def grow_cache(cache: Cache, context: int) -> Cache:
    """The same cache with room for ``context`` tokens."""
    extra = context - cache[0][1].shape[2]
    return tuple(
        (jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, extra))), jnp.pad(v, ((0, 0), (0, 0), (0, extra), (0, 0))))
        for k, v in cache
    )


def _model(config: DecoderConfig, params: Params, lora: Lora | None) -> Decoder:
    leaves, select = lora or (None, 1.0)
    return Decoder(config, params, leaves, select)


def _attend(q: Array, k: Array, v: Array, keys: Array, values: Array, lengths: Array) -> Array:
    """New tokens over the cached ones and, causally, over themselves.

    Args:
        q: ``[B, T, H, D]``. k, v: ``[B, T, KV, D]``. keys: ``[B, KV, D, C]``. values: ``[B, KV, C, D]``.
        lengths: ``[B]`` how much of C is there.
    """
    batch, count, heads, dim = q.shape
    kv = k.shape[2]
    groups = (q * dim**-0.5).reshape(batch, count, kv, -1, dim).transpose(0, 2, 1, 3, 4).reshape(batch, kv, -1, dim)
    causal = jnp.repeat(jnp.tril(jnp.ones((count, count), bool)), heads // kv, axis=0)
    old = jnp.einsum("bkqd,bkdc->bkqc", groups, keys, preferred_element_type=jnp.float32)
    new = jnp.einsum("bkqd,btkd->bkqt", groups, k, preferred_element_type=jnp.float32)
    old = jnp.where(jnp.arange(keys.shape[-1]) < lengths[:, None, None, None], old, NEG_INF)
    new = jnp.where(causal, new, NEG_INF)
    top = jnp.maximum(old.max(-1, initial=NEG_INF), new.max(-1))[..., None]
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    out = jnp.einsum("bkqc,bkcd->bkqd", old.astype(v.dtype), values, preferred_element_type=jnp.float32)
    out += jnp.einsum("bkqt,btkd->bkqd", new.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / (old.sum(-1) + new.sum(-1))[..., None]).astype(q.dtype).reshape(batch, kv, count, -1, dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, count, heads, dim)


def _nothing(k: Array) -> tuple[Array, Array]:
    _, _, kv, dim = k.shape
    return jnp.zeros((1, kv, dim, 0), k.dtype), jnp.zeros((1, kv, 0, dim), k.dtype)


@partial(jax.jit, static_argnums=0)
def prefill(
    config: DecoderConfig,
    params: Params,
    prefix: Cache | None,
    tokens: Array,
    start: Array,
    targets: Array | None = None,
    lora: Lora | None = None,
) -> tuple[Fresh, Array | None]:
    """Keys and values of ``tokens [C]`` after ``start`` tokens of ``prefix`` (one row; None at the start).

    Returns:
        ``Fresh [1, C]``, and raw log-probabilities f32 ``[C]`` of ``targets [C]``, the token after each of ``tokens``.
    """
    model, fresh = _model(config, params, lora), Fresh()

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        fresh.append((k, v))
        keys, values = prefix[layer] if prefix is not None else _nothing(k)
        return _attend(q, k, v, keys, values, start[None])

    hidden = model(tokens[None], (start + jnp.arange(tokens.shape[0]))[None], attend)
    if targets is None:
        return fresh, None
    logprobs = jax.nn.log_softmax(model.logits(hidden[0]), axis=-1)
    return fresh, jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]


@partial(jax.jit, static_argnums=0)
def decode(
    config: DecoderConfig,
    params: Params,
    groups: Sequence[Cache],
    newest: Array,
    fed: Array,
    lengths: Array,
    drafts: Array | None = None,
    lora: Lora | None = None,
) -> tuple[list[Fresh], Array]:
    """What may follow each of the first B slots, and each of their T - 1 guesses.

    Args:
        groups: the cache of those B slots; all of it is read, since a part would be copied first (measured: 8 rows,
            512 of 2,016 tokens, 70 ms instead of 49).
        newest: ``[slots]`` each slot's newest token, not yet in the cache (``sampling.draw``).
        fed: ``[B]`` a token that the host feeds instead, or -1.
        lengths: ``[B]`` tokens in the cache.
        drafts: ``[B, T - 1]`` guesses of what comes next, -1 for none.

    Returns:
        for each group ``Fresh [rows, T]``, to be ``put`` at ``lengths``, and logits f32 ``[B, T, V]``.
    """
    batch = fed.shape[0]
    tokens = jnp.where(fed >= 0, fed, newest[:batch])[:, None]
    if drafts is not None:
        tokens = jnp.concatenate([tokens, jnp.maximum(drafts, 0)], axis=1)
    fresh = [Fresh() for _ in groups]

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        out, row = list[Array](), 0
        for group, written in zip(groups, fresh, strict=True):
            keys, values = group[layer]
            rows = slice(row, row := row + keys.shape[0])
            written.append((k[rows], v[rows]))
            out.append(_attend(q[rows], k[rows], v[rows], keys, values, lengths[rows]))
        return jnp.concatenate(out)

    model = _model(config, params, lora)
    hidden = model(tokens, lengths[:, None] + jnp.arange(tokens.shape[1], dtype=lengths.dtype), attend)
    return fresh, model.logits(hidden)


@partial(jax.jit, donate_argnums=0)
def put(cache: Cache, fresh: Fresh, rows: Array, starts: Array) -> Cache:
    """Write ``fresh [B, T]`` into ``rows [B]`` at ``starts [B]``, in place.

    What is padding, or an idle row's, lands beyond the row's length, where nothing looks and the next write comes.
    The caller keeps ``starts + T`` within the cache.
    """
    updated: list[tuple[Array, Array]] = []
    for (keys, values), (k, v) in zip(cache, fresh, strict=True):
        for i in range(k.shape[0]):
            keys = lax.dynamic_update_slice(keys, k[i].transpose(1, 2, 0)[None], (rows[i], 0, 0, starts[i]))
            values = lax.dynamic_update_slice(values, v[i].transpose(1, 0, 2)[None], (rows[i], 0, starts[i], 0))
        updated.append((keys, values))
    return tuple(updated)


@partial(jax.jit, static_argnames="extent")
def take(cache: Cache, row: Array, *, extent: int) -> Cache:
    """The first ``extent`` tokens of one row, padded with zeros where the cache has fewer."""

    def part(side: Array, axis: int) -> Array:
        sizes = [1, *side.shape[1:]]
        sizes[axis] = min(extent, side.shape[axis])
        padding = [(0, extent - sizes[axis] if i == axis else 0) for i in range(4)]
        return jnp.pad(lax.dynamic_slice(side, (row, 0, 0, 0), sizes), padding)

    return tuple((part(k, 3), part(v, 2)) for k, v in cache)


@partial(jax.jit, donate_argnums=0)
def give(cache: Cache, taken: Cache, row: Array) -> Cache:
    """Write what was taken of one row into another, in place."""

    def part(side: Array, new: Array) -> Array:
        return lax.dynamic_update_slice(side, new[..., : side.shape[2], : side.shape[3]], (row, 0, 0, 0))

    return jax.tree.map(part, cache, taken)


@partial(jax.jit, donate_argnums=0)
def clear(cache: Cache, row: Array) -> Cache:
    """Zeros in ``row``: a NaN left there would reach later sequences, since zero weight times NaN is NaN."""
    return jax.tree.map(lambda side: side.at[row].set(0), cache)


def compilations() -> int:
    """Programs compiled so far in this process, over all engines."""
    programs: tuple[Any, ...] = (prefill, decode, draw, put, take, give, clear)
    return sum(program._cache_size() for program in programs)
