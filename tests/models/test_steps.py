"""Several steps in one dispatch: they give what the same steps give one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from restill.models.config import DecoderConfig
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling
from restill.models.engine.shapes import STEPS
from restill.models.engine.step import steps_at_once
from restill.models.tokenizer import Tokenizer

GRAMMAR = 'start: "Action: " /[a-z]{1,8}/'
pytestmark = pytest.mark.usefixtures("short_segments")


@pytest.fixture(scope="module", params=[False, True], ids=["", "guessing"])
def engines(
    tiny_config: DecoderConfig,
    tiny_params: dict[str, jax.Array],
    tiny_tokenizer: Tokenizer,
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Engine, Engine]]:
    """One that takes a step at a time, and one that takes several."""
    options: dict[str, Any] = {"slots": 4, "max_context": 40, "speculate": request.param}
    single, several = (Engine(tiny_config, tiny_params, tiny_tokenizer, **options) for _ in range(2))
    single._worker._model.light, taken, run_steps = False, list[int](), several._worker._run_steps

    def counted(jobs: Any, rows: int, count: int) -> Any:
        taken.append(count)
        return run_steps(jobs, rows, count)

    several._worker._run_steps = counted  # type: ignore[method-assign]
    yield single, several
    assert set(taken) == {STEPS}, "or nothing was tested"
    for engine in (single, several):
        engine.close()


kinds = st.sampled_from([{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"repetition_penalty": 1.3}])
requests = st.builds(
    lambda kind, most, **rest: Request(sampling=Sampling(max_tokens=most, **kind), **rest),
    kinds,
    st.sampled_from([1, 7, 8, 9, 30]),
    prompt=st.lists(st.integers(97, 101), min_size=1, max_size=30).map(tuple),
    seed=st.integers(0, 9),
    stop=st.sampled_from([(), (), ("a",), ("ab",)]),
    grammar=st.sampled_from([None, None, None, None, GRAMMAR]),
)


@settings(max_examples=15, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=6))
def test_they_give_the_same_tokens(
    engines: tuple[Engine, Engine], tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array],
    full_pass: Callable[..., np.ndarray], asked: list[Request],
) -> None:  # fmt: skip
    for request, one, other in zip(asked, *(engine.generate(asked) for engine in engines), strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        if request.sampling.top_p == 1 or request.grammar:
            assert other.sampled_logprobs == pytest.approx(one.sampled_logprobs, abs=1e-4)
        else:  # a token at the edge of the nucleus may be in for one and out for the other
            logits = full_pass(tiny_config, tiny_params, (*request.prompt, *one.tokens))
            either = nuclei(logits, request, one.tokens)
            for done in (one, other):
                assert np.abs(either - np.array(done.sampled_logprobs)).min(axis=0) == pytest.approx(0, abs=1e-4)


def nuclei(logits: np.ndarray, request: Request, drawn: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities ``[2, drawn]``: without what lies within 1e-5 of the nucleus's edge, and with it."""
    p = softmax(logits[len(request.prompt) - 1 : -1].astype(np.float64) / request.sampling.temperature, axis=-1)
    ordered = -np.sort(-p)
    before, own = np.cumsum(ordered, axis=-1) - ordered, p[np.arange(len(drawn)), list(drawn)]
    edges = (request.sampling.top_p - 1e-5, request.sampling.top_p + 1e-5)
    return np.array([np.log(own) - np.log((ordered * (before < edge)).sum(-1)) for edge in edges])


def test_who_needs_the_host_or_is_nearly_done_gets_one(engines: tuple[Engine, Engine]) -> None:
    def steps(*sampling: Sampling, grammar: str | None = None) -> int:
        jobs = [engines[0].submit(Request(prompt=(5,), sampling=each, grammar=grammar)) for each in sampling]
        for job in jobs:
            job.future.cancel()
        return steps_at_once(dict(enumerate(jobs)))

    assert steps(Sampling(max_tokens=STEPS)) == STEPS and steps(Sampling(max_tokens=STEPS - 1)) == 1
    assert steps(Sampling(max_tokens=1), Sampling(max_tokens=STEPS)) == STEPS
    assert steps(Sampling(), Sampling(repetition_penalty=1.3)) == 1 and steps(Sampling(), grammar=GRAMMAR) == 1


def test_a_deterministic_engine_takes_one_at_a_time(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> None:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=1, max_context=40, deterministic=True)
    engine._worker._run_steps = lambda *_: pytest.fail("several steps")  # type: ignore[method-assign]
    assert (
        len(engine.generate([Request(prompt=(5,), sampling=Sampling(max_tokens=20, ignore_eos=True))])[0].tokens) == 20
    )
    engine.close()
