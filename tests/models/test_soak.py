"""Many requests of every kind: nothing is lost, nothing leaks, nothing is compiled twice, and bits can be kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.checkpoint.load import Checkpoint
from restill.models.config import DecoderConfig
from restill.models.decoder import init_params
from restill.models.engine.engine import Engine
from restill.models.engine.job import Job
from restill.models.engine.request import Completion, Request
from restill.models.errors import RestillError
from restill.models.lora import init_lora
from restill.models.tokenizer import Tokenizer

Make = Callable[..., Request]
ADAPTERS = ["one", "two"]


def random_adapter(config: DecoderConfig, seed: int) -> dict[str, jax.Array]:
    leaves = init_lora(config, rank=4, key=jax.random.key(seed))
    return {
        name: leaf + 0.05 * np.random.default_rng(seed).standard_normal(leaf.shape) for name, leaf in leaves.items()
    }


def with_adapters(engine: Engine) -> Engine:
    for seed, name in enumerate(ADAPTERS):
        engine.load_adapter(name, random_adapter(engine.config, seed), 8.0)
    return engine


@pytest.fixture(scope="module", params=[300, pytest.param(700, marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tiny_config: DecoderConfig, tiny_tokenizer: Tokenizer) -> Iterator[Engine]:
    """One segment of context, or three, for which twice as many programs are compiled."""
    config = replace(tiny_config, num_layers=1)
    params = init_params(config, jax.random.key(0), scale=0.3)
    engine = with_adapters(Engine(config, params, tiny_tokenizer, slots=4, max_context=request.param))
    yield engine
    engine.close()


def flood(engine: Engine, requests: list[Request], rng: random.Random) -> None:
    """Ask all, some beside each other, and see every one of them end as it must."""
    open_jobs: list[tuple[Request, Job, bool]] = []
    for request in requests:
        job = engine.submit(request)
        leave = rng.random() < 0.1 and job.future.cancel()
        open_jobs.append((request, job, leave))
        if rng.random() < 0.05:
            scores = engine.score(request.prompt[:20], request.prompt[:5], request.adapter)
            assert scores.shape == (min(5, len(request.prompt)),)
        while len(open_jobs) > 40:
            check(*open_jobs.pop(0))
    for each in open_jobs:
        check(*each)


def check(request: Request, job: Job, left: bool) -> None:
    if left:
        assert job.future.cancelled()
        return
    done: Completion = job.future.result(timeout=120)
    allowed = {"stop", "length"} | ({"deadline"} if request.deadline else set())
    assert done.finish_reason in allowed
    assert len(done.tokens) == len(done.logprobs) <= request.sampling.max_tokens
    assert done.finish_reason != "length" or len(done.tokens) == request.sampling.max_tokens


def drained(engine: Engine) -> None:
    """Nobody holds a slot once everybody has left."""
    engine.score([1], [2])  # its turn comes after those of the cancelled
    assert engine.running == 0
    assert not any(slot.busy for slot in engine._worker.scheduler.table.slots)


def test_after_warmup_nothing_is_compiled_by_500_random_requests(engine: Engine, random_request: Make) -> None:
    engine.warmup()
    before, rng = engine.compilations, random.Random(0)
    engine.generate([Request(prompt=(1,))])  # nothing is in the cache yet
    longest = engine.max_context - 100
    flood(engine, [random_request(rng, longest, ADAPTERS) for _ in range(500)], rng)
    assert engine.compilations == before
    drained(engine)


def test_5000_mixed_requests_leave_no_slot_taken_and_memory_flat(engine: Engine, random_request: Make) -> None:
    rng, memory = random.Random(1), []
    for _ in range(5):
        flood(engine, [random_request(rng, 120, ADAPTERS) for _ in range(1000)], rng)
        drained(engine)
        memory.append(psutil.Process().memory_info().rss / 2**20)
    assert memory[-1] - memory[1] < 40, f"MiB after each thousand: {memory}"


@pytest.mark.slow
def test_200_mixed_requests_on_a_real_model(smollm2: Checkpoint, random_request: Make) -> None:
    rng = random.Random(2)
    engine = with_adapters(Engine(smollm2.config, smollm2.params, smollm2.tokenizer, slots=8, max_context=1024))
    flood(engine, [random_request(rng, 600, ADAPTERS, 49_000) for _ in range(100)], rng)
    drained(engine)
    before = psutil.Process().memory_info().rss / 2**20
    flood(engine, [random_request(rng, 600, ADAPTERS, 49_000) for _ in range(100)], rng)
    drained(engine)
    assert psutil.Process().memory_info().rss / 2**20 - before < 200
    engine.close()


@pytest.fixture(scope="module")
def steady(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[Engine]:
    engine = with_adapters(
        Engine(tiny_config, tiny_params, tiny_tokenizer, slots=5, max_context=700, deterministic=True)
    )
    yield engine
    engine.close()


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**32))
def test_a_deterministic_engine_gives_a_request_the_same_bits_in_any_company(
    steady: Engine, random_request: Make, seed: int
) -> None:
    rng = random.Random(seed)
    same_bits(steady, [replace(random_request(rng, 400, ADAPTERS), deadline=None) for _ in range(12)], rng)


@pytest.mark.slow
def test_so_does_a_real_model(smollm2: Checkpoint, random_request: Make) -> None:
    rng = random.Random(3)
    engine = Engine(smollm2.config, smollm2.params, smollm2.tokenizer, slots=8, max_context=700, deterministic=True)
    for _ in range(3):
        same_bits(engine, [replace(random_request(rng, 400, [], 49_000), deadline=None) for _ in range(12)], rng)
    engine.close()


def same_bits(engine: Engine, requests: list[Request], rng: random.Random) -> None:
    """Some of the requests alone give what they gave together."""
    together = engine.generate(requests)
    scores = engine.score_many([(r.prompt, c.tokens) for r, c in zip(requests, together, strict=True)])
    for i in rng.sample(range(len(requests)), 4):
        engine.forget()
        alone = engine.generate([requests[i]])[0]
        assert (alone.tokens, alone.logprobs, alone.sampled_logprobs) == (
            together[i].tokens, together[i].logprobs, together[i].sampled_logprobs
        )  # fmt: skip
        engine.forget()
        np.testing.assert_array_equal(engine.score(requests[i].prompt, alone.tokens), scores[i])


def test_a_deterministic_engine_never_guesses(steady: Engine) -> None:
    steady.speculate = True
    assert not steady.speculate
    with pytest.raises(RestillError, match="guesses nothing"):
        Engine(steady.config, steady.params, steady.tokenizer, deterministic=True, draft=(steady.config, steady.params))
