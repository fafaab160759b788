"""The training forward pass: packed rows in, (sum of weighted losses, denominator) out.

Written for a CPU as much as for an accelerator: matmuls see ``[B*L, features]`` (XLA:CPU runs the backward
pass of three-dimensional ones at half the speed), attention skips the keys after a block of queries, and
logits exist only at loss positions, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..models.config import DecoderConfig
from ..models.decoder import NEG_INF, Block
from ..models.layers import RMSNorm, rope_angles

Leaves = Mapping[str, Array]
QUERY_BLOCK = 256
LOSS_CHUNK = 128


def packed_attention(q: Array, k: Array, v: Array, segments: Array) -> Array:
    """Causal grouped-query attention within segments.

    Args:
        q: ``[B, L, H, D]``. k, v: ``[B, L, KV, D]``. segments: ``[B, L]``.

    Returns:
        ``[B, L, H, D]``.
    """
    batch, length, heads, dim = q.shape
    kv = k.shape[2]
    group = heads // kv
    q = (q * dim**-0.5).reshape(batch, length, kv, group, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    parts = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        size = end - start
        same = segments[:, start:end, None] == segments[:, None, :end]
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
        bias = jnp.where(same & causal, 0.0, NEG_INF)[:, None, None]
        rows = q[:, :, :, start:end].reshape(batch, kv, group * size, dim)
        scores = (rows @ k[..., :end]).reshape(batch, kv, group, size, end) + bias
        scores = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        out = (scores.reshape(batch, kv, group * size, end) @ v[:, :, :end]).reshape(batch, kv, group, size, dim)
        parts.append(out / scores.sum(-1, keepdims=True))
    return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def run_layers(
    config: DecoderConfig,
    params: Leaves,
    lora: Leaves,
    scale: float,
    x: Array,
    positions: Array,
    segments: Array,
    layers: range,
) -> Array:
    """Hidden states ``x [B*L, D]`` through ``layers``; ``positions, segments [B, L]``."""
    angles = rope_angles(positions.reshape(-1), config.head_dim, config.rope_theta)

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        rows = [part.reshape(*segments.shape, *part.shape[1:]) for part in (q, k, v)]
        return packed_attention(rows[0], rows[1], rows[2], segments).reshape(q.shape)

    for i in layers:
        x = Block(config, params, i, lora, scale)(x, angles, attend)
    return x


def final_norm(config: DecoderConfig, params: Leaves, x: Array) -> Array:
    """The norm before the logits, on ``[..., D]``."""
    return RMSNorm(params["norm"], config.rms_norm_eps)(x)


def head_of(config: DecoderConfig, params: Leaves) -> Array:
    """The output head ``[V, D]`` (tied) or ``[D, V]``."""
    return params["embed"] if config.tie_embeddings else params["lm_head"]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_nll(tied: bool, hidden: Array, head: Array, ids: Array, weights: Array, count: Array) -> Array:
    """Sum of ``-weights * log p(ids)`` over the first ``count`` rows of ``hidden [N, D]`` (normed).

    The head gets no gradient. ``count`` is dynamic: a batch with few targets costs little, and nothing
    recompiles.
    """
    return _nll(tied, hidden, head, ids, weights, count)[0]


def _nll(tied: bool, hidden: Array, head: Array, ids: Array, weights: Array, count: Array) -> tuple[Array, Array]:
    """The sum, and its gradient in ``hidden``: one pass, no logits are kept."""
    rows = hidden.shape[0]
    chunk = min(LOSS_CHUNK, rows)

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, total, grad = state
        start = jnp.minimum(index * chunk, rows - chunk)
        h, y, w = (jax.lax.dynamic_slice_in_dim(part, start, chunk) for part in (hidden, ids, weights))
        # The last chunk may overlap the one before when rows is no multiple of chunk: count each row once.
        fresh = jnp.where(start + jnp.arange(chunk) >= index * chunk, w, 0.0)
        logits = h @ (head.T if tied else head)
        logsum = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        p = jnp.exp(logits - logsum[:, None])
        mean = p @ (head if tied else head.T)
        step = w[:, None] * (mean - (head[y] if tied else head[:, y].T))
        return (
            index + 1,
            total + jnp.sum(fresh * (logsum - picked)),
            jax.lax.dynamic_update_slice_in_dim(grad, step, start, 0),
        )

    def more(state: tuple[Array, Array, Array]) -> Array:
        return state[0] * chunk < count

    start = (jnp.int32(0), jnp.float32(0), jnp.zeros_like(hidden))
    _, total, grad = jax.lax.while_loop(more, body, start)
    return total, grad


def _nll_forward(tied: bool, hidden: Array, head: Array, ids: Array, weights: Array, count: Array) -> Any:
    return _nll(tied, hidden, head, ids, weights, count)


def _nll_backward(tied: bool, grad: Array, seed: Array) -> Any:
    return seed * grad, None, None, None, None


weighted_nll.defvjp(_nll_forward, _nll_backward)
