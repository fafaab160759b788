"""W8A8: exact integer products, rows that do not see each other, and a model that stays what it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.config import DecoderConfig
from restill.models.decoder import forward, init_params
from restill.models.engine.engine import Engine
from restill.models.engine.precision import resolve
from restill.models.engine.request import Request, Sampling
from restill.models.errors import RestillError
from restill.models.int8 import int8_matmul, rows_to_int8
from restill.models.quantise import _input_ranges, _migrate, quantise
from restill.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
)
TOKENS = np.arange(3, 83)


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    return init_params(CONFIG, jax.random.key(0), scale=0.3)


@given(rows=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_product_is_the_exact_integer_product_times_both_scales(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 40)).astype(np.float32)
    kernel, scale = rng.integers(-127, 128, (24, 40), dtype=np.int8), rng.uniform(0.1, 1, 24).astype(np.float32)
    integers, size = (np.asarray(part) for part in rows_to_int8(jnp.asarray(x)))
    exact = (integers.astype(np.int64) @ kernel.T.astype(np.int64)).astype(np.float32) * size * scale
    y = int8_matmul(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(scale))
    np.testing.assert_array_equal(np.asarray(y), exact)


def test_a_row_alone_gives_the_bits_it_gives_in_a_batch() -> None:
    x = jax.random.normal(jax.random.key(1), (7, 40))
    kernel, scale = jax.random.randint(jax.random.key(2), (24, 40), -127, 128, jnp.int8), jnp.ones(24)
    for two_terms in (False, True):
        batch = int8_matmul(x, kernel, scale, two_terms=two_terms)
        alone = [int8_matmul(row[None], kernel, scale, two_terms=two_terms)[0] for row in x]
        np.testing.assert_array_equal(batch, jnp.stack(alone))


def test_two_terms_keep_sixteen_bits_of_the_input() -> None:
    x = jax.random.normal(jax.random.key(1), (7, 40))
    kernel, scale = jax.random.randint(jax.random.key(2), (24, 40), -127, 128, jnp.int8), jnp.ones(24)
    exact = x @ kernel.T.astype(jnp.float32)
    one, two = (float(jnp.abs(int8_matmul(x, kernel, scale, two_terms=terms) - exact).max()) for terms in (False, True))
    assert two < one / 100


def test_migrating_ranges_into_the_weights_changes_no_logit(params: dict[str, jax.Array]) -> None:
    ranges = {name: np.asarray(r) for name, r in _input_ranges(CONFIG, params, jnp.asarray(TOKENS)).items()}
    assert len(ranges) == 7 * CONFIG.num_layers
    moved = _migrate(CONFIG, {name: np.asarray(leaf) for name, leaf in params.items()}, ranges)
    assert not np.allclose(moved["layers.1.q"], params["layers.1.q"])
    tokens = jnp.asarray(TOKENS)[None]
    np.testing.assert_allclose(forward(CONFIG, moved, tokens), forward(CONFIG, params, tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_quantised_logits_stay_close(tied: bool) -> None:
    config = DecoderConfig(**{**vars(CONFIG), "tie_embeddings": tied})
    params = init_params(config, jax.random.key(0), scale=0.3)
    tokens = jnp.asarray(TOKENS)[None]
    reference, quantised = forward(config, params, tokens), forward(config, quantise(config, params, TOKENS), tokens)
    error = jnp.linalg.norm(quantised - reference) / jnp.linalg.norm(reference)
    assert 0 < error < 0.1  # a wrong scale or a forgotten channel gives about 1


def test_the_engine_serves_every_precision(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> None:
    request = Request(prompt=tuple(b"Who built the bridge?"), sampling=Sampling(max_tokens=6))
    scores = {}
    for precision in ("f32", "w8a8", "bf16", "int8"):
        engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=2, max_context=128, precision=precision)
        alone, twin = engine.generate([request])[0], engine.generate([request, request])[1]
        assert alone.tokens == twin.tokens
        assert np.isfinite(alone.logprobs).all()
        scores[precision] = engine.score(request.prompt, tuple(b"Anna Berg, in 1920."))
        engine.close()
    for precision in ("w8a8", "bf16", "int8"):
        assert np.corrcoef(scores[precision], scores["f32"])[0, 1] > 0.98, precision
    off = {name: float(np.abs(np.subtract(found, scores["f32"])).max()) for name, found in scores.items()}
    assert 0 < off["bf16"] < off["int8"], "its activations are not rounded but where they enter a product"


def test_an_unknown_precision_is_refused_with_a_list() -> None:
    with pytest.raises(RestillError, match="'int4'.*'w8a8'"):
        resolve("int4")  # type: ignore[arg-type]
