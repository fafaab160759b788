"""The device side of the engine: compiled programs over parameters and the KV cache.

The cache of a layer is ``k [slots, KV, head_dim, context]`` and ``v [slots, KV, context, head_dim]``: these two
layouts let XLA:CPU run decode attention as plain dots (measured 0.5 ms a layer at 16 slots x 512 tokens;
``[slots, context, KV, head_dim]`` takes 20). Every program donates the cache. Layers are unrolled.
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
"""Per layer ``(k, v)``."""
Lora = tuple[Params, Array]
"""Stacked adapter leaves and what each row takes of them (``adapters.Adapters``)."""


def new_cache(config: DecoderConfig, slots: int, context: int, dtype: Any) -> Cache:
    """An empty cache for ``slots`` sequences of up to ``context`` tokens."""
    kv, dim = config.num_kv_heads, config.head_dim
    return tuple(
        (jnp.zeros((slots, kv, dim, context), dtype), jnp.zeros((slots, kv, context, dim), dtype))
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

    The cache is read as it was before the step: a program that read what it has just written would copy all of it.

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


def _write(cache: Cache, fresh: Sequence[tuple[Array, Array]], slots: Sequence[Any], starts: Sequence[Any]) -> Cache:
    """``k, v [B, T, KV, D]`` of every layer into ``slots`` at ``starts``, both as long as B."""
    updated: list[tuple[Array, Array]] = []
    for (keys, values), (k, v) in zip(cache, fresh, strict=True):
        for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
            keys = lax.dynamic_update_slice(keys, k[row].transpose(1, 2, 0)[None], (slot, 0, 0, start))
            values = lax.dynamic_update_slice(values, v[row].transpose(1, 0, 2)[None], (slot, 0, start, 0))
        updated.append((keys, values))
    return tuple(updated)


def _after(position: Array, last: Array) -> Array:
    """``position``, known to the compiler only when ``last [N]`` is: then all reads precede the write, and the donated
    cache is written in place."""
    return jnp.where(last[0] > 3e38, 0, position)  # what is infinite is lost anyway


@partial(jax.jit, static_argnums=0, static_argnames="extent", donate_argnums=2)
def prefill(
    config: DecoderConfig,
    params: Params,
    cache: Cache,
    tokens: Array,
    slot: Array,
    start: Array,
    targets: Array | None = None,
    lora: Lora | None = None,
    *,
    extent: int,
) -> tuple[Cache, Array | None]:
    """Write keys and values of ``tokens [C]`` at ``start`` of ``slot``; ``start`` is at most ``extent`` (static).

    Padding at the end of a chunk is written too, beyond the slot's length, where nothing looks and the next
    write lands. The caller keeps ``start + C`` within the cache.

    Returns:
        the cache, and raw log-probabilities f32 ``[C]`` of ``targets [C]``, the token after each of ``tokens``.
    """
    model, fresh = _model(config, params, lora), list[tuple[Array, Array]]()

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        fresh.append((k, v))
        (keys, values), kv, dim = cache[layer], *k.shape[2:]
        keys = lax.dynamic_slice(keys, (slot, 0, 0, 0), (1, kv, dim, extent))
        values = lax.dynamic_slice(values, (slot, 0, 0, 0), (1, kv, extent, dim))
        return _attend(q, k, v, keys, values, start[None])

    hidden = model(tokens[None], (start + jnp.arange(tokens.shape[0]))[None], attend)
    # Without targets nobody needs what follows the last layer's keys: it is not computed.
    last = fresh[-1][0][0, 0, 0] if targets is None else hidden[0, 0]
    written = _write(cache, fresh, [slot], [_after(start, last)])
    if targets is None:
        return written, None
    logprobs = jax.nn.log_softmax(model.logits(hidden[0]), axis=-1)
    return written, jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]


@partial(jax.jit, static_argnums=0, static_argnames="extent", donate_argnums=2)
def decode(
    config: DecoderConfig,
    params: Params,
    cache: Cache,
    newest: Array,
    fresh: Array,
    lengths: Array,
    drafts: Array | None = None,
    lora: Lora | None = None,
    *,
    extent: int,
) -> tuple[Cache, Array]:
    """What may follow each of the first B slots, and each of their T - 1 guesses; their keys and values are written.

    Args:
        newest: ``[slots]`` each slot's newest token, not yet in the cache (``sampling.draw``).
        fresh: ``[B]`` a token that the host feeds instead, or -1.
        lengths: ``[B]`` tokens in the cache. An idle slot's row writes just beyond its length, where nothing looks.
        drafts: ``[B, T - 1]`` guesses of what comes next, -1 for none.
        extent: (static) no row that counts is longer; only so much of the cache is read.

    Returns:
        the cache, and logits f32 ``[B, T, V]``.
    """
    batch = fresh.shape[0]
    tokens = jnp.where(fresh >= 0, fresh, newest[:batch])[:, None]
    if drafts is not None:
        tokens = jnp.concatenate([tokens, jnp.maximum(drafts, 0)], axis=1)
    written: list[tuple[Array, Array]] = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        written.append((k, v))
        keys, values = cache[layer]
        return _attend(q, k, v, keys[:batch, ..., :extent], values[:batch, :, :extent], lengths)

    model = _model(config, params, lora)
    hidden = model(tokens, lengths[:, None] + jnp.arange(tokens.shape[1], dtype=lengths.dtype), attend)
    starts = [_after(lengths[row], hidden[row, 0]) for row in range(batch)]
    return _write(cache, written, range(batch), starts), model.logits(hidden)


@partial(jax.jit, donate_argnums=0)
def copy_slot(cache: Cache, source: Array, target: Array) -> Cache:
    """Fork: ``target`` becomes a copy of ``source``."""

    def copy(side: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(side, lax.dynamic_slice_in_dim(side, source, 1), target, axis=0)

    return jax.tree.map(copy, cache)


def swap_slots(cache: Cache, a: Any, b: Any) -> Cache:
    """Exchange two slots. Three programs: one that did it all would copy the whole cache."""
    kept = _take_slot(cache, a)
    return _put_slot(copy_slot(cache, b, a), kept, b)


@jax.jit
def _take_slot(cache: Cache, slot: Array) -> Cache:
    return jax.tree.map(lambda side: lax.dynamic_slice_in_dim(side, slot, 1), cache)


@partial(jax.jit, donate_argnums=0)
def _put_slot(cache: Cache, rows: Cache, slot: Array) -> Cache:
    return jax.tree.map(lambda side, row: lax.dynamic_update_slice_in_dim(side, row, slot, axis=0), cache, rows)


@partial(jax.jit, donate_argnums=0)
def clear_slot(cache: Cache, slot: Array) -> Cache:
    """Zeros in ``slot``: a NaN left there would reach later sequences, since zero weight times NaN is NaN."""
    return jax.tree.map(lambda side: side.at[slot].set(0), cache)


def compilations() -> int:
    """Programs compiled so far in this process, over all engines."""
    programs: tuple[Any, ...] = (prefill, decode, draw, copy_slot, _take_slot, _put_slot, clear_slot)
    return sum(program._cache_size() for program in programs)
