"""Matmuls in mixed precision: bf16 factors, f32 sums, in both passes of training (Micikevicius et al. 1710.03740).

A processor with bf16 instructions does them about twice as fast as f32. XLA:CPU uses those where the result is f32,
and not where it is bf16, as that of ``x @ y`` would be, nor for a single row.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

NARROW = jnp.bfloat16
ROWS, COLUMNS = (-1, -1), (-2, -2)
"""``x @ y.mT`` and ``x.mT @ y``."""


def product(x: Array, y: Array, over: tuple[int, int] = (-1, -2)) -> Array:
    """``x @ y`` in f32; both are rounded to bf16 if one is bf16.

    Args:
        over: the axes to sum over. Not ``x @ y.mT``: a transposed right factor is slower on CPU.
    """
    dtype = NARROW if NARROW in (x.dtype, y.dtype) else jnp.float32
    x, y = x.astype(dtype), y.astype(dtype)
    if dtype == NARROW and x.ndim == 2 and jax.default_backend() == "cpu":
        if over == COLUMNS:  # half to a quarter of the speed, unless its left factor is transposed in memory too
            x, over = with_layout_constraint(x.T, Layout((0, 1))), (-1, -2)
        elif x.shape[0] == 1:  # a single row takes three times as long as two
            return product(jnp.pad(x, ((0, 1), (0, 0))), y, over)[:1]
    batch = tuple(range(x.ndim - 2))
    axes = ((x.ndim + over[0],), (y.ndim + over[1],)), (batch, batch)
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """``x [N, in]`` times a bf16 ``kernel [in, out]``: ``[N, out]`` f32."""
    return product(x, kernel)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x = x.astype(NARROW)
    return product(x, kernel), (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grad = grad.astype(NARROW)
    return product(grad, kernel, ROWS), product(x, grad, COLUMNS).astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def lora_matmul(x: Array, kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """``x @ kernel + scale * (x @ a) @ b`` with a frozen kernel and f32 ``a [in, rank]``, ``b [rank, out]``.

    The low-rank terms are further columns and rows of the product with the kernel, so there is no second sum over
    ``[N, out]``, and an update smaller than the kernel's last bit is not lost, as it would be in merged weights.
    """
    return _lora_forward(x, kernel, a, b, scale)[0]


def _lora_forward(x: Array, kernel: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    x, a, b = (part.astype(NARROW) for part in (x, a, b))
    inner = (scale * product(x, a)).astype(NARROW)
    wide = jnp.concatenate([x, inner], axis=1)
    return product(wide, jnp.concatenate([kernel, b])), (x, inner, kernel, a, b)


def _lora_backward(scale: float, saved: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    x, inner, kernel, a, b = saved
    grad = grad.astype(NARROW)
    outer = (scale * product(grad, b, ROWS)).astype(NARROW)
    wide = jnp.concatenate([grad, outer], axis=1)
    back = product(wide, jnp.concatenate([kernel, a], axis=1), ROWS)
    return back, None, product(x, outer, COLUMNS), product(inner, grad, COLUMNS)


lora_matmul.defvjp(_lora_forward, _lora_backward)
