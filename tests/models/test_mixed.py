"""Products of mixed precision: exact where bf16 is, and their gradients those of the rounded factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.layers import Linear
from restill.models.mixed import NARROW, lora_matmul, matmul, product

SCALE = 2.0


def _whole(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Small whole numbers: bf16 holds them, and f32 their sums of products."""
    return jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([(-1, -2), (-1, -1), (-2, -2)]))
def test_a_product_is_that_of_its_factors_in_any_orientation(seed: int, batch: int, over: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-99, 99, (batch, 4, 6)), rng.integers(-99, 99, (batch, 6, 5))
    turned = [x if over[0] == -1 else x.swapaxes(1, 2), y if over[1] == -2 else y.swapaxes(1, 2)]
    for dtype in (jnp.float32, NARROW):
        x32, other = jnp.asarray(turned[0], jnp.float32), jnp.asarray(turned[1], dtype)
        assert product(x32, other, over).dtype == jnp.float32
        np.testing.assert_array_equal(product(x32, other, over), x @ y)
        row = x32[0, :1] if over[0] == -1 else x32[0, :, :1]
        np.testing.assert_array_equal(product(row, other[0], over), x[0, :1] @ y[0])


def test_gradients_are_those_of_plain_products_where_nothing_is_rounded() -> None:
    rng = np.random.default_rng(0)
    x, kernel, a, b = (_whole(rng, *shape) for shape in ((5, 6), (6, 4), (6, 2), (2, 4)))
    seed = _whole(rng, 5, 4)

    def plain(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return (seed * (x @ kernel + SCALE * (x @ a) @ b)).sum()

    def mixed(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return (seed * lora_matmul(x, kernel, a, b, SCALE)).sum()

    given_ = (x, kernel.astype(NARROW), a, b)
    assert mixed(*given_) == plain(x, kernel, a, b)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.grad(mixed, (0, 2, 3))(*given_),
        jax.grad(plain, (0, 2, 3))(x, kernel, a, b),
    )
    whole = jax.grad(lambda x, kernel: (seed * matmul(x, kernel)).sum(), (0, 1))(x, kernel.astype(NARROW))
    assert whole[1].dtype == NARROW, "as its kernel"
    wanted = jax.grad(lambda x, kernel: (seed * (x @ kernel)).sum(), (0, 1))(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, whole, (wanted[0], wanted[1].astype(NARROW)))


def test_an_update_below_the_kernel_s_last_bit_counts() -> None:
    x, kernel = jnp.ones((1, 1)), jnp.full((1, 1), 256.0, NARROW)
    assert (kernel + NARROW(0.5)) == kernel, "merged weights would lose it"
    assert lora_matmul(x, kernel, jnp.full((1, 1), 0.25), jnp.ones((1, 1)), SCALE) == 256.5


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_bf16_kernel_under_an_f32_input_is_mixed(low_rank: bool) -> None:
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(2, 3, 16)).astype(np.float32), rng.normal(size=(16, 8)).astype(np.float32)
    lora = (jnp.asarray(rng.normal(size=(16, 2))), jnp.asarray(rng.normal(size=(2, 8)))) if low_rank else None
    found = Linear(jnp.asarray(kernel, NARROW), lora, SCALE)(jnp.asarray(x))
    wanted = Linear(jnp.asarray(kernel), lora, SCALE)(jnp.asarray(x))
    assert found.dtype == jnp.float32 and found.shape == (2, 3, 8)
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
