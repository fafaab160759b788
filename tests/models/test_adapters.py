"""Adapters side by side: each request gets what its merged model would give it, and nothing of its neighbour's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from restill.models.config import DecoderConfig
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling
from restill.models.errors import RestillError
from restill.models.lora import init_lora, merge
from restill.models.tokenizer import Tokenizer

Leaves = dict[str, jax.Array]


@pytest.fixture(scope="module")
def adapters(tiny_config: DecoderConfig) -> dict[str, tuple[Leaves, float]]:
    """Two random adapters of different rank; the second leaves out some matmuls and a layer."""

    def random(rank: int, seed: int, **where: object) -> Leaves:
        leaves = init_lora(tiny_config, rank=rank, key=jax.random.key(seed), **where)  # type: ignore[arg-type]
        keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
        return {k: 0.3 * jax.random.normal(key, v.shape) for key, (k, v) in zip(keys, leaves.items(), strict=True)}

    return {"one": (random(4, 1), 8.0), "two": (random(11, 2, targets=("q", "v", "up"), layers=[1]), 16.0)}


@pytest.fixture
def engine(
    tiny_config: DecoderConfig,
    tiny_params: Leaves,
    tiny_tokenizer: Tokenizer,
    adapters: dict[str, tuple[Leaves, float]],
) -> Iterator[Engine]:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=256)
    for name, (leaves, alpha) in adapters.items():
        engine.load_adapter(name, leaves, alpha)
    yield engine
    engine.close()


def asked(adapter: str | None, seed: int = 0) -> Request:
    prompt = tuple(np.random.default_rng(seed).integers(97, 120, 40).tolist())
    return Request(prompt=prompt, sampling=Sampling(max_tokens=12), adapter=adapter)


def test_a_mixed_batch_equals_the_merged_models(
    engine: Engine, tiny_config: DecoderConfig, tiny_params: Leaves, adapters: dict[str, tuple[Leaves, float]],
    full_pass: Callable[..., np.ndarray],
) -> None:  # fmt: skip
    requests = [asked(name, seed) for seed in range(3) for name in (None, "one", "two")]
    merged = {name: merge(tiny_params, leaves, alpha=alpha) for name, (leaves, alpha) in adapters.items()}
    for request, done in zip(requests, engine.generate(requests), strict=True):
        params = merged.get(request.adapter or "", tiny_params)
        logits = full_pass(tiny_config, params, (*request.prompt, *done.tokens))
        logprobs = log_softmax(logits, axis=-1)[np.arange(39, 39 + len(done.tokens)), list(done.tokens)]
        np.testing.assert_allclose(done.logprobs, logprobs, atol=1e-3)
        np.testing.assert_allclose(engine.score(request.prompt, done.tokens, request.adapter), logprobs, atol=1e-3)


def test_one_prompt_under_two_adapters_shares_no_cache(engine: Engine) -> None:
    first = [engine.generate([asked(name)])[0] for name in (None, "one", "two")]
    assert [done.cached for done in first] == [0, 0, 0]
    again = [engine.generate([asked(name)])[0] for name in (None, "one", "two")]
    assert [done.tokens for done in again] == [done.tokens for done in first]
    assert all(done.cached for done in again)


def test_a_name_loaded_anew_answers_with_the_new_weights(
    engine: Engine, adapters: dict[str, tuple[Leaves, float]]
) -> None:
    old, two = engine.generate([asked("one")])[0], engine.generate([asked("two")])[0]
    engine.unload_adapter("one")
    with pytest.raises(RestillError, match="unknown adapter 'one'; loaded: two"):
        engine.generate([asked("one")])
    engine.load_adapter("one", *adapters["two"])
    new = engine.generate([asked("one")])[0]
    assert new.tokens == two.tokens != old.tokens and new.cached == 0


def test_what_does_not_fit_or_is_in_use_is_refused(engine: Engine, adapters: dict[str, tuple[Leaves, float]]) -> None:
    with pytest.raises(RestillError, match="loaded already"):
        engine.load_adapter("one", *adapters["one"])
    with pytest.raises(RestillError, match=r"layers\.7\.q\.a"):
        engine.load_adapter("deep", {"layers.7.q.a": np.zeros((32, 4)), "layers.7.q.b": np.zeros((4, 32))}, 1.0)
    with pytest.raises(RestillError, match="not finite"):
        engine.load_adapter("damaged", {"layers.0.q.a": np.full((32, 4), np.nan)}, 1.0)
    with pytest.raises(RestillError, match=r"has layers\.0\.q\.a but no layers\.0\.q\.b"):
        engine.load_adapter("half", {"layers.0.q.a": np.zeros((32, 4))}, 1.0)
    with pytest.raises(RestillError, match=r"ranks \[2, 4\]"):
        engine.load_adapter("odd", {"layers.0.q.a": np.zeros((32, 4)), "layers.0.q.b": np.zeros((2, 32))}, 1.0)
    with pytest.raises(RestillError, match="unknown adapter 'odd'"):
        engine.submit(asked("odd"))
    job = engine.submit(Request(prompt=(97,) * 9, sampling=Sampling(max_tokens=200, ignore_eos=True), adapter="one"))
    with pytest.raises(RestillError, match="in use by 1 request"):
        engine.unload_adapter("one")
    job.future.cancel()
