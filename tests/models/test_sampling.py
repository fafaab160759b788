"""Sampling draws from exactly the distribution asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from restill.models.engine.noise import gumbel
from restill.models.engine.sampling import argmax, categorical, penalise, sample, truncate, unpack_mask

pick = jax.jit(categorical)
cut = jax.jit(truncate)
noise = jax.jit(gumbel, static_argnums=2)


def places(count: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A seed, and as many positions."""
    return jnp.full(count, seed), jnp.arange(count)


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, 3))
def test_the_noise_is_that_of_jax(seed: int, position: int, blocks: int) -> None:
    key = jax.random.fold_in(jax.random.key(jnp.int32(seed)), position)
    ours = noise(jnp.array([seed]), jnp.array([position]), 100 * blocks)[0]
    np.testing.assert_array_equal(ours, jax.random.gumbel(key, (100 * blocks,)))


def test_draws_follow_the_softmax_across_blocks() -> None:
    vocab, draws = 300, 100_000
    logits = 2.0 * jax.random.normal(jax.random.key(0), (vocab,))
    counts = np.bincount(pick(jnp.broadcast_to(logits, (draws, vocab)), *places(draws)), minlength=vocab)
    expected = draws * np.asarray(jax.nn.softmax(logits), np.float64)
    assert chisquare(counts, expected * draws / expected.sum()).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(0, 399), st.sampled_from([-1e30, 2.0, 3.0, np.nan])), max_size=8),
)
def test_the_argmax_by_blocks_is_the_first_of_the_greatest(vocab: int, places: list[tuple[int, float]]) -> None:
    logits = np.zeros((2, vocab), np.float32)
    for place, value in places:
        logits[0, place % vocab] = value
    np.testing.assert_array_equal(argmax(jnp.asarray(logits)), jnp.argmax(logits, axis=-1))


@pytest.mark.parametrize("vocab", [3, 300])
def test_close_distributions_draw_alike_as_often_as_the_closed_form_says(vocab: int) -> None:
    logits = np.asarray(jax.random.normal(jax.random.key(1), (2, vocab)), np.float64) * [[1.0], [1.4]]
    p, q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def alike(p: np.ndarray, q: np.ndarray) -> float:  # Daliri et al. 2408.07978, on one level
        return sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in range(len(p)))

    blocks = [slice(at, at + 128) for at in range(0, vocab, 128)]
    tops = np.array([[side[block].sum() for block in blocks] for side in (p, q)])
    expected = sum(
        alike(p[block] / p[block].sum(), q[block] / q[block].sum()) / np.maximum(*(tops / tops[:, i : i + 1])).sum()
        for i, block in enumerate(blocks)
    )
    draws = 100_000
    same = [pick(jnp.broadcast_to(jnp.float32(row), (draws, vocab)), *places(draws)) for row in logits]
    rate = float((same[0] == same[1]).mean())
    distance = np.abs(p - q).sum() / 2
    assert abs(rate - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5
    assert (1 - distance) / (1 + distance) <= expected + 1e-9 or vocab > 128
    assert expected <= 1 - distance + 1e-9


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**31), st.integers(1, 300))
def test_a_forbidden_token_is_never_drawn(seed: int, allowed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = np.full(300, -1e30, np.float32)
    keep = rng.choice(300, allowed, replace=False)
    logits[keep] = 30 * rng.standard_normal(allowed)
    assert int(pick(logits[None], *places(1, seed))[0]) in keep


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.integers(0, 50), st.floats(0.05, 1.0))
def test_truncation_keeps_what_a_plain_sort_keeps(seed: int, top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 2
    order = np.argsort(-logits)
    order = order[:top_k] if top_k else order
    p = np.exp(logits[order] - logits.max())
    p /= p.sum()
    before = np.cumsum(p) - p
    expected = {int(t) for t, b in zip(order, before, strict=True) if b < top_p - 1e-5} | {int(order[0])}
    allowed = {int(t) for t, b in zip(order, before, strict=True) if b < top_p + 1e-5}
    kept = cut(logits[None], jnp.int32([top_k]), jnp.float32([top_p]), jnp.float32([0]))[0]
    got = set(np.flatnonzero(np.asarray(kept) > -1e29).tolist())
    assert expected <= got <= allowed


def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest() -> None:
    p = np.array([0.5, 0.26, 0.24, 0.0])
    kept = cut(np.log(p + 1e-9)[None], jnp.int32([0]), jnp.float32([1.0]), jnp.float32([0.5]))[0]
    assert np.flatnonzero(np.asarray(kept) > -1e29).tolist() == [0, 1]


def test_the_penalty_falls_on_seen_tokens_alone_and_always_lowers_them() -> None:
    logits = jnp.array([[2.0, 2.0, -2.0, -2.0], [2.0, 2.0, -2.0, -2.0]])
    seen = jnp.int32([[0b0101], [0b0101]])
    out = penalise(logits, seen, jnp.float32([2.0, 1.0]))
    np.testing.assert_array_equal(out, [[1.0, 2.0, -4.0, -2.0], [2.0, 2.0, -2.0, -2.0]])


def test_log_probabilities_are_raw_and_as_drawn() -> None:
    logits = jnp.array([[1.0, 2.0, 0.5, -1.0]])
    bits = jnp.int32([[0b1011]])  # token 2 forbidden
    rules = {"seeds": jnp.int32([3]), "positions": jnp.int32([0])}
    token, raw, drawn = sample(logits, bits, temperature=jnp.float32([0.5]), **rules)
    t = int(token[0])
    assert t != 2
    np.testing.assert_allclose(raw[0], jax.nn.log_softmax(logits[0])[t], rtol=1e-6)
    masked = jnp.where(jnp.array([True, True, False, True]), logits[0] / 0.5, -jnp.inf)
    np.testing.assert_allclose(drawn[0], jax.nn.log_softmax(masked)[t], rtol=1e-5)
    assert int(sample(logits, bits, temperature=jnp.float32([0.0]), **rules)[0][0]) == 1


def test_mask_bits_are_little_endian_words() -> None:
    bits = np.zeros((1, 2), np.int32)
    bits[0, 1] = 0b101
    assert np.flatnonzero(unpack_mask(jnp.asarray(bits), 40)[0]).tolist() == [32, 34]
