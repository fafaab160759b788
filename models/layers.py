"""The parts a decoder block is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from .int8 import int8_matmul
from .mixed import NARROW, lora_matmul, matmul


class LoRAParam(nnx.Param):
    """A low-rank leaf: what LoRA trains while the kernel stays frozen."""


class Linear(nnx.Module):
    """``x @ kernel`` plus, where the layer carries LoRA leaves, ``scale * (x @ a) @ b``.

    Args:
        kernel: ``[in, out]``, under an f32 input in f32 or, for mixed precision (``mixed``), in bf16; or int8
            ``[out, in]`` with ``channels [out]`` f32, its scales (``int8.int8_matmul``).
        two_terms: of an int8 kernel: write the input as two int8 rows.
        lora: ``(a [in, rank], b [rank, out])`` or None (Hu et al. 2106.09685, section 4.1).
        scale: ``alpha / rank``, or ``[B, n]`` where the leaves hold n adapters side by side: what of each a row takes.
    """

    def __init__(
        self,
        kernel: Array,
        lora: tuple[Array, Array] | None = None,
        scale: float | Array = 1.0,
        *,
        channels: Array | None = None,
        two_terms: bool = False,
    ) -> None:
        self.kernel = nnx.Param(kernel)
        self.channels = nnx.data(None if channels is None else nnx.Param(channels))
        self.two_terms = two_terms
        self.lora_a = nnx.data(LoRAParam(lora[0]) if lora else None)
        self.lora_b = nnx.data(LoRAParam(lora[1]) if lora else None)
        self.scale = scale if isinstance(scale, float | int) else nnx.data(scale)

    def __call__(self, x: Array) -> Array:
        """Map ``[..., in]`` to ``[..., out]``."""
        kernel = self.kernel[...]
        if self.channels is None and kernel.dtype == NARROW and x.dtype == jnp.float32:
            rows = x.reshape(-1, x.shape[-1])
            if self.lora_a is not None and self.lora_b is not None and jnp.ndim(self.scale) == 0:
                y: Array = lora_matmul(rows, kernel, self.lora_a[...], self.lora_b[...], float(self.scale))
                return y.reshape(*x.shape[:-1], -1)
            y = matmul(rows, kernel).reshape(*x.shape[:-1], -1)
        elif self.channels is None:
            y = x @ kernel
        else:
            y = int8_matmul(x, kernel, self.channels[...], two_terms=self.two_terms).astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            inner = x @ self.lora_a[...]
            if jnp.ndim(self.scale) == 0:
                y = y + self.scale * (inner @ self.lora_b[...])
            else:
                select = jnp.asarray(self.scale)
                share = jnp.repeat(select, inner.shape[-1] // select.shape[-1], axis=-1)
                y = y + (inner * share[:, None].astype(x.dtype)) @ self.lora_b[...]
        return y


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale, computed in f32 (Zhang & Sennrich 1910.07467)."""

    def __init__(self, scale: Array, eps: float) -> None:
        self.scale = nnx.Param(scale)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalise the last axis; keeps shape and dtype."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...]


def rope_angles(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines of the rotary embedding (Su et al. 2104.09864): two ``[..., head_dim/2]`` f32 arrays."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotate ``x [..., heads, head_dim]`` in the half-split layout of Hugging Face checkpoints."""
    cos, sin = (part[..., None, :] for part in angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
