"""The random numbers of a draw, from a request's seed and a token's position."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def gumbel(seeds: Array, positions: Array, count: int) -> Array:
    """Gumbel noise ``[B, count]`` f32 for ``seeds [B]`` and ``positions [B]``, both int32 or uint32.

    A row is ``jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (count,))``, bit for bit. JAX
    loops over the cipher's rounds on CPU; written out, what draws compiles a quarter of a second sooner, and a warm
    engine has dozens of such programs.
    """
    zero = jnp.uint32(0)
    high, low = (part[:, None] for part in _cipher(zero, _words(seeds), zero, _words(positions)))
    one, other = _cipher(high, low, zero, lax.iota(jnp.uint32, count)[None])
    tiny = jnp.finfo(jnp.float32).tiny
    uniform = lax.bitcast_convert_type(((one ^ other) >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
    return -jnp.log(-jnp.log(jnp.maximum(tiny, uniform * (1.0 - tiny) + tiny)))


def _words(values: Array) -> Array:
    return lax.convert_element_type(values, jnp.uint32)


def _cipher(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, section 4.1)."""
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << bits) | (x1 >> (32 - bits)))
        x0, x1 = x0 + keys[(group + 1) % 3], x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1
