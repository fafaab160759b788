"""Tiled attention is the plain formula: its output, its gradients, on one device or four."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.decoder import attention, causal_mask
from restill.selftrain.attention import packed_attention
from restill.selftrain.pack import PAD

ROWS = 2
SHAPES = ((128, 3, 1), (150, 4, 2), (5, 2, 1))
"""Length, query heads, key-value heads."""


def _inputs(length: int, heads: int, kv: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """q, k, v and what to multiply the output by."""
    keys = jax.random.split(jax.random.key(seed), 4)
    sizes = (heads, kv, kv, heads)
    return tuple(jax.random.normal(key, (ROWS, length, n, 8)) for key, n in zip(keys, sizes, strict=True))


def _row(sizes: Sequence[int], length: int) -> np.ndarray:
    """Segments of these sizes one after the other, as far as they fit, and padding."""
    row = np.repeat(np.arange(len(sizes)), sizes)[:length]
    return np.pad(row, (0, length - len(row)), constant_values=PAD)


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Every padding position is a segment of its own."""
    own = jnp.where(segments == PAD, -1 - jnp.arange(segments.shape[1]), segments)
    return attention(q, k, v, causal_mask(own))


@jax.jit
def _ours_and_plain(q: jax.Array, k: jax.Array, v: jax.Array, seed: jax.Array, segments: jax.Array) -> list:
    found = [jax.vjp(lambda *x, f=f: f(*x, segments), q, k, v) for f in (packed_attention, _plain)]
    return [(out, *back(seed)) for out, back in found]


@settings(max_examples=30)
@given(st.data())
def test_output_and_gradients_equal_autodiff_of_the_plain_formula(data: st.DataObject) -> None:
    length, heads, kv = data.draw(st.sampled_from(SHAPES))
    layout = [data.draw(st.lists(st.integers(1, length), max_size=6)) for _ in range(ROWS)]
    segments = np.stack([_row(sizes, length) for sizes in layout])
    ours, plain = _ours_and_plain(*_inputs(length, heads, kv, data.draw(st.integers(0, 99))), segments)
    for name, got, expected in zip(("out", "dq", "dk", "dv"), ours, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5, err_msg=name)


def test_a_row_of_padding_is_finite_and_padding_gets_no_gradient() -> None:
    q, k, v, seed = _inputs(150, 4, 2)
    segments = np.stack([_row([], 150), _row([90, 10], 150)])
    seed = jnp.where((segments == PAD)[..., None, None], 0.0, seed)
    out, *grads = _ours_and_plain(q, k, v, seed, segments)[0]
    assert np.isfinite(out).all()
    for grad in grads:
        assert not np.asarray(grad)[segments == PAD].any()
        assert np.asarray(grad)[1, :100].any()


def test_a_row_has_the_same_bits_beside_any_other() -> None:
    inputs = _inputs(150, 4, 2)
    rows = [np.stack([_row([130, 20], 150), _row(sizes, 150)]) for sizes in ([], [150], [10] * 15)]
    found = [_ours_and_plain(*inputs, segments)[0] for segments in rows]
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got[0], expected[0])


def test_bf16_in_and_out_with_f32_between() -> None:
    low = [x.astype(jnp.bfloat16) for x in _inputs(150, 4, 2)]
    segments = np.stack([_row([130, 20], 150), _row([70] * 4, 150)])
    exact = _ours_and_plain(*(x.astype(jnp.float32) for x in low), segments)[0]
    for got, expected in zip(_ours_and_plain(*low, segments)[0], exact, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), expected, rtol=2**-8, atol=1e-5)  # one rounding, at the end


def test_layers_may_be_computed_again() -> None:
    q, k, v, seed = _inputs(37, 6, 2)
    segments = np.stack([_row([20, 10], 37), _row([37], 37)])

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (jnp.tanh(packed_attention(q, k, v, segments)) * seed).sum()

    kept, again = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (loss, jax.checkpoint(loss)))
    for got, expected in zip(again, kept, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_no_array_of_length_squared_is_kept_or_made() -> None:
    length, heads = 2048, 4
    x = jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def used(f: object) -> int:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
            return jnp.square(f(q, k, v, segments)).sum()

        return (
            jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, segments).compile().memory_analysis().temp_size_in_bytes
        )

    assert used(packed_attention) < 4 * heads * length**2 / 8 < 4 * heads * length**2 < used(_plain)


PROGRAM = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from restill.models.sharding import make_mesh
from restill.selftrain.attention import packed_attention

keys = jax.random.split(jax.random.key(0), 4)
q, k, v, seed = (jax.random.normal(key, (4, 150, n, 8)) for key, n in zip(keys, (4, 2, 2, 4)))
segments = np.sort(np.random.default_rng(0).integers(0, 3, (4, 150)))
segments[1, 120:] = -1
run = jax.jit(lambda q, k, v, s, seed: jax.value_and_grad(
    lambda *x: (packed_attention(*x, s) * seed).sum(), (0, 1, 2))(q, k, v))
alone = run(q, k, v, segments, seed)
mesh = make_mesh(2, 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
q, k, v, seed = (put(x, "data", None, "tensor") for x in (q, k, v, seed))
value, grads = run(q, k, v, put(segments, "data"), seed)
assert all(len(grad.sharding.device_set) == 4 for grad in grads), grads[0].sharding
for got, expected in zip((value, *grads), (alone[0], *alone[1]), strict=True):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-4, atol=2e-5)
"""


def test_four_devices_give_the_gradients_of_one() -> None:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True)
