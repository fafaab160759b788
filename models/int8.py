"""The int8 product: activations quantised per row at run time, sums exact in int32.

Where 8 bits of the activations are not enough they are written as a sum of two int8 rows, which is as good as 16 bits.
On XLA:CPU int8 x int8 is the fastest product there is, but only with at least two rows; a single row gets a second.
Kernels are ``[out, in]``: for few rows that takes a sixth less time than ``[in, out]`` (f32 is the other way round).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

TWO_TERMS = frozenset({"v", "qkv", "head"})
"""Matmuls whose input keeps 16 bits. With ``down`` among them perplexity would be 0.4 instead of 1.6 % above f32
(``benchmarks/perplexity.py``) and a step of one row a seventh slower."""


def rows_to_int8(x: Array) -> tuple[Array, Array]:
    """Rows ``[M, K]`` as int8 and their f32 scales ``[M, 1]``: ``x`` is about ``int8 * scale``."""
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def int8_matmul(x: Array, kernel: Array, scale: Array, *, two_terms: bool = False) -> Array:
    """``x [..., K] @ (kernel * scale).T`` with int8 ``kernel [N, K]``, ``scale [N]``; f32.

    With f32 ``x``, every row's result depends on that row alone, bit for bit. With bf16 ``x`` (accelerators) only
    the weights are int8, and the product is bf16's own.
    """
    if x.dtype == jnp.bfloat16:
        wide = jnp.matmul(x, kernel.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return wide * scale
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    count = flat.shape[0]
    terms = [rows_to_int8(flat)]
    if two_terms:
        first, size = terms[0]
        # What rounding left is at most half a step, so its scale is known.
        rest = jnp.round((flat - first.astype(jnp.float32) * size) / size * 254).astype(jnp.int8)
        terms.append((rest, size / 254))
    rows = jnp.concatenate([term for term, _ in terms])
    if rows.shape[0] == 1:
        rows = jnp.concatenate([rows, rows])
    sums = lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32).astype(jnp.float32)
    y = sum(sums[i * count : (i + 1) * count] * size for i, (_, size) in enumerate(terms)) * scale
    return y.reshape(*x.shape[:-1], -1)
