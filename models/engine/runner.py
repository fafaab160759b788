"""The device side of the engine: compiled programs over parameters and the KV cache.

The cache of a layer is ``k [rows, KV, head_dim, context]`` and ``v [rows, KV, context, head_dim]``: these layouts let
XLA:CPU run decode attention as plain dots (measured 0.5 ms a layer at 16 rows x 512 tokens; ``[rows, context, KV,
head_dim]`` takes 20). A cache is such arrays for some rows and some tokens (``shapes``); those of one program are given
by segments, with the places where segments end. Programs that read the cache do not write it: they return new keys and
values, and ``put`` writes those in place. (XLA copies a cache that one program reads and writes.) A decode step is one
program, its layers unrolled; what a prompt needs are programs of one layer, called for each, which compile at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..config import DecoderConfig
from ..decoder import Block, Decoder, Params
from ..layers import rope_angles
from .attention import attend_cached
from .sampling import Drawn, draw, sample

Cache = tuple[tuple[Array, Array], ...]
"""Per layer ``(k, v)`` of a group of rows."""
Fresh = tuple[Array, Array]
"""New keys and values of all layers, ``[layers, B, T, KV, head_dim]`` each."""
Lora = tuple[Params, Array | np.ndarray]
"""Stacked adapter leaves and what each row takes of them (``adapters.Adapters``)."""


def new_cache(config: DecoderConfig, rows: int, context: int, dtype: Any) -> Cache:
    """An empty cache for ``rows`` sequences of up to ``context`` tokens."""
    kv, dim = config.num_kv_heads, config.head_dim
    return tuple(
        (jnp.zeros((rows, kv, dim, context), dtype), jnp.zeros((rows, kv, context, dim), dtype))
        for _ in range(config.num_layers)
    )


def _adapters(lora: Lora | None) -> tuple[Params, float | Array]:
    return (lora[0], jnp.asarray(lora[1])) if lora else ({}, 1.0)


@jax.jit
def embed(params: Params, tokens: Array) -> Array:
    """Rows ``[1, C, hidden]`` of the embedding for ``tokens [C]``, in the type of activations."""
    return params["embed"][tokens][None].astype(params["norm"].dtype)


@partial(jax.jit, static_argnums=0, static_argnames=("ends", "last"))
def prefill_layer(
    config: DecoderConfig,
    params: Params,
    x: Array,
    prefix: Sequence[tuple[Array, Array]],
    start: Array,
    lora: Lora | None = None,
    *,
    ends: Sequence[int] = (),
    last: bool = False,
) -> tuple[Array, Array, Array]:
    """One layer over a chunk of a prompt, after ``start`` tokens of ``prefix``, one row by segments.

    Layers are alike: a program of one compiles in about a tenth of the time of all.

    Args:
        params: of this layer, named as the first's. x: ``[1, C, hidden]``.
        last: only keys and values are wanted.

    Returns:
        what the next layer takes, and new keys and values ``[1, C, KV, head_dim]``.
    """
    fresh = list[Array]()

    def attend(_: int, q: Array, k: Array, v: Array) -> Array:
        fresh.extend((k, v))
        return q if last else attend_cached(q, k, v, prefix, start[None], ends, skip=True)

    layer = Block(config, params, 0, *_adapters(lora))
    angles = rope_angles((start + jnp.arange(x.shape[1]))[None], config.head_dim, config.rope_theta)
    out = layer(x, angles, attend)
    return x if last else out, fresh[0], fresh[1]


@partial(jax.jit, static_argnums=0)
def score(config: DecoderConfig, params: Params, x: Array, targets: Array) -> Array:
    """Raw log-probabilities f32 ``[C]`` of ``targets [C]`` after what all layers made of a chunk, ``x [1, C, hidden]``.

    Args:
        params: those that belong to no layer.
    """
    model = Decoder(replace(config, num_layers=0), params)
    logprobs = jax.nn.log_softmax(model.logits(model.norm(x)[0]), axis=-1)
    return jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]


@partial(jax.jit, static_argnums=0, static_argnames="ends")
def decode(
    config: DecoderConfig,
    params: Params,
    groups: Sequence[Sequence[Cache]],
    newest: Array,
    fed: Array,
    lengths: Array,
    drafts: Array | None = None,
    lora: Lora | None = None,
    *,
    ends: Sequence[int],
) -> tuple[list[Fresh], Array]:
    """What may follow each of the first B slots, and each of their T - 1 guesses.

    Args:
        groups: the cache of those B slots: per group its segments, which end at ``ends``.
        newest: ``[slots]`` each slot's newest token, not yet in the cache (``sampling.draw``).
        fed: ``[B]`` a token that the host feeds instead, or -1.
        lengths: ``[B]`` tokens in the cache.
        drafts: ``[B, T - 1]`` guesses of what comes next, -1 for none.

    Returns:
        for each group ``Fresh``, to be ``put`` at ``lengths``, and logits f32 ``[B, T, V]``.
    """
    batch = fed.shape[0]
    tokens = jnp.where(fed >= 0, fed, newest[:batch])[:, None]
    if drafts is not None:
        tokens = jnp.concatenate([tokens, jnp.maximum(drafts, 0)], axis=1)
    fresh = [list[tuple[Array, Array]]() for _ in groups]

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        out, row = list[Array](), 0
        for group, written in zip(groups, fresh, strict=True):
            rows = slice(row, row := row + group[0][layer][0].shape[0])
            written.append((k[rows], v[rows]))
            segments = [segment[layer] for segment in group]
            out.append(attend_cached(q[rows], k[rows], v[rows], segments, lengths[rows], ends, skip=batch > 1))
        return jnp.concatenate(out)

    model = Decoder(config, params, *_adapters(lora))
    hidden = model(tokens, lengths[:, None] + jnp.arange(tokens.shape[1], dtype=lengths.dtype), attend)
    return [_stack(written) for written in fresh], model.logits(hidden)


@partial(jax.jit, static_argnums=0, static_argnames=("ends", "steps"), donate_argnums=3)
def decode_steps(
    config: DecoderConfig,
    params: Params,
    groups: Sequence[Sequence[Cache]],
    newest: Array,
    fed: Array,
    lengths: Array,
    rules: Mapping[str, Any],
    lora: Lora | None = None,
    *,
    ends: Sequence[int],
    steps: int,
) -> tuple[list[Fresh], Array, Drawn]:
    """``steps`` times ``decode`` and ``sampling.draw`` in one program, for rows that need no host in between.

    What the steps write is kept apart until they end, so that no cache is copied: a program that reads it and writes
    it would.

    Args:
        groups, newest, fed, lengths, ends: as for ``decode``. rules: as for ``draw``, without ``bits``.

    Returns:
        for each group ``Fresh``, to be ``put`` at ``lengths``; then what ``draw`` returns, all columns kept.
    """
    batch, model = fed.shape[0], Decoder(config, params, *_adapters(lora))
    keys = jnp.zeros((config.num_layers, batch, config.num_kv_heads, config.head_dim, steps), groups[0][0][0][0].dtype)

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
        tokens, keys, values = carry
        there, own = jnp.arange(steps) < i, list[tuple[Array, Array]]()

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            own.append((k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)))
            out, row = list[Array](), 0
            for group in groups:
                rows = slice(row, row := row + group[0][layer][0].shape[0])
                segments = [segment[layer] for segment in group]
                made = (keys[layer, rows], values[layer, rows], there)
                out.append(attend_cached(q[rows], k[rows], v[rows], segments, lengths[rows], ends, batch > 1, [made]))
            return jnp.concatenate(out)

        logits = model.logits(model(tokens[:, None], (lengths + i)[:, None], attend))[:, 0]
        drawn, raw, sampled = sample(logits, None, **{**rules, "positions": rules["positions"] + i})
        keys = lax.dynamic_update_slice(keys, jnp.stack([k for k, _ in own]), (0, 0, 0, 0, i))
        values = lax.dynamic_update_slice(values, jnp.stack([v for _, v in own]), (0, 0, 0, i, 0))
        return (drawn.astype(newest.dtype), keys, values), (drawn, raw, sampled)

    first = (jnp.where(fed >= 0, fed, newest[:batch]), keys, keys.swapaxes(3, 4))
    (last, keys, values), drawn = lax.scan(step, first, jnp.arange(steps, dtype=lengths.dtype))
    fresh, row = list[Fresh](), 0
    for group in groups:
        rows = slice(row, row := row + group[0][0][0].shape[0])
        fresh.append((keys[:, rows].transpose(0, 1, 4, 2, 3), values[:, rows].swapaxes(2, 3)))
    tokens, raw, sampled = (part.T for part in drawn)
    return fresh, newest.at[:batch].set(last), (tokens, raw, sampled, jnp.full(batch, steps - 1, jnp.int32))


def _stack(fresh: Sequence[tuple[Array, Array]]) -> Fresh:
    return jnp.stack([k for k, _ in fresh]), jnp.stack([v for _, v in fresh])


@partial(jax.jit, donate_argnums=0)
def put(cache: tuple[Array, Array], k: Array, v: Array, rows: Array, starts: Array) -> tuple[Array, Array]:
    """Write ``k, v [B, T, KV, head_dim]`` of one layer into ``rows [B]`` at ``starts [B]``, in place.

    What is padding, or an idle row's, lands where nothing looks. The caller keeps ``starts + T`` within the cache.
    """
    return _put(cache, k, v, rows, starts)


@partial(jax.jit, donate_argnums=0)
def put_all(cache: Cache, fresh: Fresh, rows: Array, starts: Array) -> Cache:
    """``put`` for all layers."""
    return tuple(_put(layer, k, v, rows, starts) for layer, k, v in zip(cache, *fresh, strict=True))


@partial(jax.jit, donate_argnums=0)
def put_from(cache: Cache, fresh: Fresh, rows: Array, starts: Array, first: Array) -> Cache:
    """``put_all`` of each row's tokens from ``first [B]`` on; behind them come those before, where nothing looks."""
    count = fresh[0].shape[2]
    order = ((jnp.arange(count) + first[:, None]) % count)[None, :, :, None, None]
    k, v = (jnp.take_along_axis(side, order, axis=2) for side in fresh)
    return put_all(cache, (k, v), rows, starts)


def _put(cache: tuple[Array, Array], k: Array, v: Array, rows: Array, starts: Array) -> tuple[Array, Array]:
    keys, values = cache
    for i in range(k.shape[0]):
        keys = lax.dynamic_update_slice(keys, k[i].transpose(1, 2, 0)[None], (rows[i], 0, 0, starts[i]))
        values = lax.dynamic_update_slice(values, v[i].transpose(1, 0, 2)[None], (rows[i], 0, starts[i], 0))
    return keys, values


@jax.jit
def take(layer: tuple[Array, Array], row: Array) -> tuple[Array, Array]:
    """One row of one layer."""
    return jax.tree.map(lambda side: lax.dynamic_slice_in_dim(side, row, 1), layer)


@partial(jax.jit, donate_argnums=0)
def give(layer: tuple[Array, Array], taken: tuple[Array, Array], row: Array) -> tuple[Array, Array]:
    """Write what was taken of one row into another, in place."""
    return jax.tree.map(lambda side, new: lax.dynamic_update_slice_in_dim(side, new, row, 0), layer, taken)


@partial(jax.jit, donate_argnums=0)
def clear(layer: tuple[Array, Array], row: Array) -> tuple[Array, Array]:
    """Zeros in ``row``: a NaN left there would reach later sequences, since zero weight times NaN is NaN."""
    return jax.tree.map(lambda side: side.at[row].set(0), layer)


def compilations() -> int:
    """Programs compiled so far in this process, over all engines."""
    steps: tuple[Any, ...] = (embed, prefill_layer, score, decode, decode_steps, draw)
    programs: tuple[Any, ...] = (*steps, put, put_all, put_from, take, give, clear)
    return sum(program._cache_size() for program in programs)
