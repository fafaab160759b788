"""The training forward pass: packed rows in, (sum of weighted losses, denominator) out.

Written for a CPU as much as for an accelerator: matmuls see ``[B*L, features]`` (XLA:CPU runs the backward
pass of three-dimensional ones at half the speed), attention goes by tiles, and logits exist only at loss
positions, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..models.config import DecoderConfig
from ..models.decoder import Block
from ..models.layers import RMSNorm, rope_angles
from ..models.mixed import COLUMNS, NARROW, ROWS, product
from .attention import packed_attention

Leaves = Mapping[str, Array]
LOSS_CHUNK = 128


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
        narrow = params[f"layers.{layer}.q"].dtype == NARROW
        return packed_attention(rows[0], rows[1], rows[2], segments, narrow=narrow).reshape(q.shape)

    for i in layers:
        x = Block(config, params, i, lora, scale)(x, angles, attend)
    return x


def final_norm(config: DecoderConfig, params: Leaves, x: Array) -> Array:
    """The norm before the logits, on ``[..., D]``."""
    return RMSNorm(params["norm"], config.rms_norm_eps)(x)


def head_of(config: DecoderConfig, params: Leaves) -> Array:
    """The output head ``[V, D]`` (tied) or ``[D, V]``."""
    return params["embed"] if config.tie_embeddings else params["lm_head"]


@dataclass(frozen=True)
class Head:
    """How the loss treats the output head: ``[V, D]`` (tied) or ``[D, V]``, with a gradient or frozen."""

    tied: bool
    trained: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    head: Head, hidden: Array, kernel: Array, ids: Array, shares: Array, weights: Array, count: Array
) -> Array:
    """Sum of ``-weights * sum_k shares_k * log p(ids_k)`` over the first ``count`` rows of ``hidden [N, D]`` (normed).

    A bf16 ``kernel`` makes the products those of mixed precision; all else is f32.

    A target is a distribution over few tokens: ``ids, shares [N, K]``, shares that sum to one, ids that differ (where
    a share is 0 any id). One token with share 1 is the usual loss; sampled teacher tokens with their shares are
    distillation (Gemma 3, 2503.19786, section 2). ``count`` is dynamic: a batch with few targets costs little, and
    nothing recompiles.
    """
    return _entropy(head, hidden, kernel, ids, shares, weights, count)[0]


def _entropy(
    head: Head, hidden: Array, kernel: Array, ids: Array, shares: Array, weights: Array, count: Array
) -> tuple[Array, tuple[Array, Array | None]]:
    """The sum, and its gradients in ``hidden`` and ``kernel``: one pass, no logits are kept."""
    rows = hidden.shape[0]
    chunk = min(LOSS_CHUNK, rows)

    def body(state: tuple[Array, Array, Array, Array | None]) -> tuple[Array, Array, Array, Array | None]:
        index, total, grad, kernel_grad = state
        start = jnp.minimum(index * chunk, rows - chunk)
        h, y, s, w = (jax.lax.dynamic_slice_in_dim(part, start, chunk) for part in (hidden, ids, shares, weights))
        # The last chunk may overlap the one before when rows is no multiple of chunk: count each row once.
        fresh = jnp.where(start + jnp.arange(chunk) >= index * chunk, w, 0.0)
        logits = product(h, kernel, ROWS) if head.tied else product(h, kernel)
        logsum = jax.nn.logsumexp(logits, axis=-1)
        picked = (s * jnp.take_along_axis(logits, y, axis=1)).sum(-1)
        # The gradient in the logits: what the model says less what it should have said.
        off = jnp.exp(logits - logsum[:, None]).at[jnp.arange(chunk)[:, None], y].add(-s)
        step = w[:, None] * (product(off, kernel) if head.tied else product(off, kernel, ROWS))
        if kernel_grad is not None:
            h, off = (part.astype(kernel.dtype) for part in (fresh[:, None] * h, off))
            left, right = (off, h) if head.tied else (h, off)
            kernel_grad = kernel_grad + product(left, right, COLUMNS)
        return (
            index + 1,
            total + jnp.sum(fresh * (logsum - picked)),
            jax.lax.dynamic_update_slice_in_dim(grad, step, start, 0),
            kernel_grad,
        )

    def more(state: tuple[Array, Array, Array, Array | None]) -> Array:
        return state[0] * chunk < count

    zeros = jnp.zeros(kernel.shape) if head.trained else None
    _, total, grad, kernel_grad = jax.lax.while_loop(
        more, body, (jnp.int32(0), jnp.float32(0), jnp.zeros_like(hidden), zeros)
    )
    return total, (grad, None if kernel_grad is None else kernel_grad.astype(kernel.dtype))


def _backward(head: Head, grads: tuple[Array, Array | None], seed: Array) -> Any:
    hidden, kernel = grads
    return seed * hidden, None if kernel is None else seed.astype(kernel.dtype) * kernel, None, None, None, None


cross_entropy.defvjp(_entropy, _backward)
