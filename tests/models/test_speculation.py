"""Speculation: guesses change how many steps are taken, never what comes out."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.config import DecoderConfig
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling
from restill.models.engine.speculation import Lookup
from restill.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engines(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[tuple[Engine, Engine]]:
    both = [
        Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=512, speculate=speculate)
        for speculate in (False, True)
    ]
    both[1]._worker._pace.pays = lambda rows, jobs, guesses: any(guesses.values())  # type: ignore[method-assign]
    yield both[0], both[1]
    for engine in both:
        engine.close()


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(97, 101), min_size=1, max_size=60).map(tuple),  # few letters: n-grams come again
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.3, 1.0]),
        top_p=st.sampled_from([0.5, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
        max_tokens=st.integers(1, 40),
    ),
    seed=st.integers(0, 5),
    grammar=st.sampled_from([None, None, 'start: /[ab]{3,30}/ "the end of it all" /[ab]{2}/']),
    stop=st.sampled_from([(), ("ab",), ("e",)]),
)


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=6))
def test_guessing_changes_no_token(engines: tuple[Engine, Engine], asked: list[Request]) -> None:
    plain, guessing = (engine.generate(asked) for engine in engines)
    for one, other in zip(plain, guessing, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        assert other.sampled_logprobs == pytest.approx(one.sampled_logprobs, abs=1e-4)


def test_forced_text_takes_an_eighth_of_the_steps(engines: tuple[Engine, Engine]) -> None:
    forced = "it was a dark and stormy night, and nobody had seen the cat"
    request = Request(prompt=(99,), sampling=Sampling(temperature=1.0), grammar=f'start: "{forced}"')
    steps = []
    for engine in engines:
        before = engine._worker.steps
        assert engine.generate([request])[0].text == forced
        steps.append(engine._worker.steps - before)
    assert steps[1] <= steps[0] / 8 + 2


def test_a_repeated_text_is_guessed_from_its_first_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 9, 9, 1, 2, 3, 4])
    assert lookup.guess(3) == [5, 6, 7]
    lookup.extend([8, 1, 2, 3, 4])
    assert lookup.guess(7) == [8, 1, 2, 3, 4]
    assert Lookup([1, 2, 3]).guess(5) == [] == Lookup([]).guess(5)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_guess_is_what_followed_the_same_tokens(tokens: list[int]) -> None:
    guess = Lookup(tokens).guess(4)
    pair = tokens[-2:]
    follows = [tokens[i + 2 : i + 6] for i in range(len(tokens) - 2) if tokens[i : i + 2] == pair]
    assert guess in follows if follows else guess == []


def test_expected_guesses_follow_what_came_true() -> None:
    lookup = Lookup([])
    for _ in range(200):
        lookup.learn(kept=1, guessed=7)  # one kept, one missed: half
    assert lookup.expected(7) == pytest.approx(sum(0.5**i for i in range(1, 8)))
