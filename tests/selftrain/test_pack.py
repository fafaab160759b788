"""Packing keeps every token once, and no segment sees another."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.decoder import MATMULS, forward, param_shapes
from restill.models.errors import RestillError
from restill.selftrain.loss import Head, cross_entropy, final_norm, head_of, run_layers
from restill.selftrain.mixture import Example
from restill.selftrain.pack import PAD, epoch_order, micro_batch, pack

from .tiny import CONFIG, examples, padded, random_params


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(24, 70), st.integers(0, 10_000))
def test_every_token_is_kept_exactly_once(count: int, length: int, seed: int) -> None:
    given_examples = examples(count, seed=seed)
    rows = pack(given_examples, length)
    assert rows.truncated == 0
    for i, example in enumerate(given_examples):
        where = rows.segments == i
        assert tuple(rows.tokens[where]) == example.tokens
        assert tuple(rows.weights[where]) == example.weights
        assert rows.positions[where].tolist() == list(range(len(example.tokens)))
        assert len(set(np.nonzero(where)[0])) == 1
    assert (rows.segments != PAD).sum() == sum(len(e.tokens) for e in given_examples)
    assert not rows.weights[rows.segments == PAD].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10_000))
def test_targets_point_at_the_token_before_in_the_same_segment(count: int, seed: int) -> None:
    rows = pack(examples(count, seed=seed), 40)
    found = micro_batch(rows, np.arange(len(rows)), len(rows))
    segments, tokens, count = rows.segments.reshape(-1), rows.tokens.reshape(-1), found["count"]
    at = found["at"][:count]
    assert count == np.count_nonzero(rows.weights)
    assert (segments[at] == segments[at + 1]).all()
    assert (tokens[at + 1] == found["ids"][:count, 0]).all()
    assert not found["weights"][count:].any()


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(20, seed=s, epoch=e)) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert tuple(epoch_order(20, seed=0, epoch=0)) == orders[0]


@given(st.lists(st.integers(2, 20), min_size=1, max_size=60))
def test_an_example_lies_in_the_first_row_that_has_room(sizes: list[int]) -> None:
    rows = pack([Example(tokens=(1,) * size, weights=(0.0,) + (1.0,) * (size - 1)) for size in sizes], 20)
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        first = next((r for r, free in enumerate(room) if free >= sizes[i]), len(room))
        room[first : first + 1] = [(room[first] if first < len(room) else 20) - sizes[i]]
        assert i in rows.segments[first]
    assert len(rows) == len(room)


def test_a_long_example_keeps_its_beginning_and_is_counted() -> None:
    long = Example(tokens=tuple(range(50)), weights=(0.0, *[1.0] * 49))
    late = Example(tokens=tuple(range(50)), weights=(*[0.0] * 49, 1.0))
    ready = Example(tokens=tuple(range(50)), weights=(0.0, *[1.0] * 31, *[0.0] * 18))
    rows = pack([long, late, ready], 32)
    assert rows.truncated == 2, "a target is lost of the first, the only one of the second, none of the third"
    assert rows.tokens[0].tolist() == list(range(32)) and len(rows) == 2


def test_nothing_to_train_on_is_refused() -> None:
    late = Example(tokens=tuple(range(50)), weights=(*[0.0] * 49, 1.0))
    with pytest.raises(RestillError, match="raise row_length"):
        pack([late], 32)
    with pytest.raises(RestillError, match="empty"):
        pack([], 32)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    return random_params(1)


@pytest.fixture(scope="module")
def lora() -> dict[str, np.ndarray]:
    leaves, rng = {}, np.random.default_rng(3)
    for name, shape in param_shapes(CONFIG).items():
        if name.split(".")[-1] in MATMULS:
            leaves[f"{name}.a"] = rng.normal(scale=0.2, size=(shape[0], 2)).astype(np.float32)
            leaves[f"{name}.b"] = rng.normal(scale=0.2, size=(2, shape[1])).astype(np.float32)
    return leaves


def _hidden(params: dict, lora: dict, tokens: np.ndarray, positions: np.ndarray, segments: np.ndarray) -> jax.Array:
    x = jnp.asarray(params["embed"])[tokens.reshape(-1)]
    x = run_layers(
        CONFIG, params, lora, 0.5, x, jnp.asarray(positions), jnp.asarray(segments), range(CONFIG.num_layers)
    )
    return final_norm(CONFIG, params, x)


def _packed_loss(lora: dict, params: dict, rows: object) -> jax.Array:
    found = micro_batch(rows, np.arange(len(rows)), len(rows))
    hidden = _hidden(params, lora, rows.tokens, rows.positions, rows.segments)[found["at"]]
    target = (found["ids"], found["shares"], found["weights"], found["count"])
    return cross_entropy(Head(tied=True), hidden, head_of(CONFIG, params), *target)


def _plain_loss(lora: dict, params: dict, listed: list[Example]) -> jax.Array:
    tokens, weights = padded(listed)
    logp = jax.nn.log_softmax(forward(CONFIG, params, jnp.asarray(tokens), lora=lora, lora_scale=0.5))
    picked = jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    return -(picked * weights[:, 1:]).sum()


def test_packed_loss_and_gradient_equal_plain_unpacked_ones(params: dict, lora: dict) -> None:
    listed = examples(9, seed=4)
    rows = pack(listed, 32)
    assert len(rows) < len(listed)
    packed, packed_grad = jax.jit(jax.value_and_grad(lambda lora, p: _packed_loss(lora, p, rows)))(lora, params)
    plain, plain_grad = jax.jit(jax.value_and_grad(lambda lora, p: _plain_loss(lora, p, listed)))(lora, params)
    assert float(packed) == pytest.approx(float(plain), rel=1e-5)
    for name, leaf in plain_grad.items():
        np.testing.assert_allclose(packed_grad[name], leaf, atol=1e-4, rtol=1e-3, err_msg=name)


def test_hidden_states_of_a_segment_do_not_depend_on_its_row(params: dict, lora: dict) -> None:
    listed = examples(3, seed=5)
    rows = pack(listed, 48)
    hidden = partial(jax.jit(_hidden), params, lora)
    packed = hidden(rows.tokens, rows.positions, rows.segments)
    for i, example in enumerate(listed):
        alone = pack([example], len(example.tokens))
        expected = hidden(alone.tokens, alone.positions, alone.segments)
        np.testing.assert_allclose(packed[rows.segments.reshape(-1) == i], expected, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 128, 129, 200])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [1, 5])
def test_chunked_loss_and_its_gradients_equal_log_softmax(count: int, tied: bool, width: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (200, 8)), jax.random.normal(keys[1], (40, 8))
    ids = jnp.argsort(jax.random.uniform(keys[2], (200, 40)))[:, :width]  # that differ
    shares = jax.nn.softmax(jax.random.normal(keys[3], (200, width)))
    weights = jnp.where(jnp.arange(200) < count, jnp.linspace(-1, 2, 200), 0.0)

    def plain(h: jax.Array, head: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(h @ head.T)
        return -(weights[:, None] * shares * jnp.take_along_axis(logp, ids, 1)).sum()

    def ours(h: jax.Array, head: jax.Array) -> jax.Array:
        kernel = head if tied else head.T
        return cross_entropy(Head(tied, trained=True), h, kernel, ids, shares, weights, jnp.int32(count))

    assert float(jax.jit(ours)(hidden, head)) == pytest.approx(float(plain(hidden, head)), rel=1e-5, abs=1e-5)
    for got, expected in zip(*(jax.jit(jax.grad(f, (0, 1)))(hidden, head) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
