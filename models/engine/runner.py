"""The device side of the engine: compiled programs over parameters and the KV cache.

The cache of a layer is ``k [slots, KV, head_dim, context]`` and ``v [slots, KV, context, head_dim]``: these two
layouts let XLA:CPU run decode attention as plain dots (measured 0.5 ms a layer at 16 slots x 512 tokens;
``[slots, context, KV, head_dim]`` takes 20). Every program donates the cache. Layers are unrolled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..config import DecoderConfig
from ..decoder import NEG_INF, Decoder, Params
from .sampling import sample

Cache = tuple[tuple[Array, Array], ...]
"""Per layer ``(k, v)``."""

CHUNKS = (16, 32, 64, 128, 256)
"""Prefill widths; a prompt is cut into these."""
MARGIN = CHUNKS[0]
"""Kept free at the end of a slot, so that the last padded chunk fits."""


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


def _cached_attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """``q [B, L, H, D]`` over cached ``k [B, KV, D, T]``, ``v [B, KV, T, D]`` where ``visible [B, L, T]``."""
    batch, length, heads, dim = q.shape
    kv = k.shape[1]
    groups = q.reshape(batch, length, kv, -1, dim).transpose(0, 2, 1, 3, 4).reshape(batch, kv, -1, dim)
    scores = jnp.einsum("bkqd,bkdt->bkqt", groups, k, preferred_element_type=jnp.float32) * dim**-0.5
    mask = jnp.repeat(visible, heads // kv, axis=1)[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, NEG_INF), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkqt,bktd->bkqd", weights, v).reshape(batch, kv, length, -1, dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, heads, dim)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(config: DecoderConfig, params: Params, cache: Cache, tokens: Array, slot: Array, start: Array) -> Cache:
    """Write keys and values of ``tokens [C]`` at ``start`` of ``slot``.

    Padding at the end of a chunk is written too, beyond the slot's length, where nothing looks and the next
    write lands. The caller keeps ``start + C`` within the cache.
    """
    return _prefill(Decoder(config, params), cache, tokens, slot, start)[0]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def score(
    config: DecoderConfig, params: Params, cache: Cache, tokens: Array, slot: Array, start: Array, targets: Array
) -> tuple[Cache, Array]:
    """``prefill``, and the raw log-probabilities f32 ``[C]`` of ``targets [C]``, the token after each of ``tokens``."""
    model = Decoder(config, params)
    cache, hidden = _prefill(model, cache, tokens, slot, start)
    logits = model.logits(hidden[0])
    return cache, jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[:, None], axis=-1)[:, 0]


def _prefill(model: Decoder, cache: Cache, tokens: Array, slot: Array, start: Array) -> tuple[Cache, Array]:
    width, context = tokens.shape[0], cache[0][1].shape[2]
    positions = start + jnp.arange(width)
    visible = (jnp.arange(context) <= positions[:, None])[None]
    updated: list[tuple[Array, Array]] = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys, values = cache[layer]
        keys = lax.dynamic_update_slice(keys, k.transpose(0, 2, 3, 1), (slot, 0, 0, start))
        values = lax.dynamic_update_slice(values, v.transpose(0, 2, 1, 3), (slot, 0, start, 0))
        updated.append((keys, values))
        mine = lax.dynamic_slice_in_dim(keys, slot, 1), lax.dynamic_slice_in_dim(values, slot, 1)
        return _cached_attention(q, *mine, visible)

    hidden = model(tokens[None], positions[None], attend)
    return tuple(updated), hidden


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def decode(
    config: DecoderConfig,
    params: Params,
    cache: Cache,
    newest: Array,
    fresh: Array,
    lengths: Array,
    rules: Mapping[str, Any],
) -> tuple[Cache, Array, tuple[Array, Array, Array]]:
    """One token for each of the first B slots.

    Args:
        newest: ``[slots]`` each slot's newest token, not yet in the cache, as the step before left it here.
        fresh: ``[B]`` a token that the host feeds instead, or -1.
        lengths: ``[B]`` tokens in the cache. An idle slot's row writes just beyond its length, where nothing looks.
        rules: the keyword arguments of ``sampling.sample`` except logits.

    Returns:
        the cache, ``newest`` with what was drawn, and ``(tokens, raw, sampled log-probabilities)``, each ``[B]``.
    """
    batch, context = fresh.shape[0], cache[0][1].shape[2]
    tokens = jnp.where(fresh >= 0, fresh, newest[:batch])
    visible = (jnp.arange(context) <= lengths[:, None])[:, None]
    updated: list[tuple[Array, Array]] = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys, values = cache[layer]
        for row in range(batch):
            keys = lax.dynamic_update_slice(keys, k[row].transpose(1, 2, 0)[None], (row, 0, 0, lengths[row]))
            values = lax.dynamic_update_slice(values, v[row].transpose(1, 0, 2)[None], (row, 0, lengths[row], 0))
        updated.append((keys, values))
        return _cached_attention(q, keys[:batch], values[:batch], visible)

    model = Decoder(config, params)
    hidden = model(tokens[:, None], lengths[:, None], attend)
    drawn = sample(model.logits(hidden[:, 0]), **rules)
    return tuple(updated), newest.at[:batch].set(drawn[0].astype(newest.dtype)), drawn


@partial(jax.jit, donate_argnums=0)
def copy_slot(cache: Cache, source: Array, target: Array) -> Cache:
    """Fork: ``target`` becomes a copy of ``source``."""

    def copy(side: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(side, lax.dynamic_slice_in_dim(side, source, 1), target, axis=0)

    return jax.tree.map(copy, cache)


@partial(jax.jit, donate_argnums=0)
def clear_slot(cache: Cache, slot: Array) -> Cache:
    """Zeros in ``slot``: a NaN left there would reach later sequences, since zero weight times NaN is NaN."""
    return jax.tree.map(lambda side: side.at[slot].set(0), cache)


def chunk_width(count: int, room: int) -> int:
    """Width of the next chunk for ``count`` tokens: a full chunk, or one at most a third padding that fits in ``room``.

    Fewer tokens than the least chunk take that one; the caller has room for it.
    """
    enough = next((c for c in CHUNKS if c >= count), CHUNKS[-1])
    fits = [c for c in CHUNKS if c <= count]
    return enough if not fits or (enough < 1.5 * count and enough <= room) else fits[-1]


def pad_to(values: Sequence[int], length: int) -> np.ndarray:
    """``values`` as int32, padded with zeros."""
    out = np.zeros(length, np.int32)
    out[: len(values)] = values
    return out


def compilations() -> int:
    """Programs compiled so far in this process, over all engines."""
    programs: tuple[Any, ...] = (prefill, decode, copy_slot, clear_slot, score)
    return sum(program._cache_size() for program in programs)
