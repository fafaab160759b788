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
from restill.models.engine.speculation import MOST_ROWS, WIDTHS, Drafter, Guess, Lookup, cut
from restill.models.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("short_segments")


@pytest.fixture(scope="module")
def engines(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[tuple[Engine, Engine]]:
    both = [
        Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=512, speculate=speculate)
        for speculate in (False, True)
    ]
    # Not what pays but whatever there is: the widest step that has a guess for every place.
    both[1]._worker._drafter.best_width = lambda rows, guesses, most: max(  # type: ignore[method-assign]
        (w for w in (1, *WIDTHS) if w <= most and any(len(g.tokens) >= w - 1 for g in guesses)), default=1
    )
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


def follows(lookup: Lookup, most: int = 4) -> list[int]:
    return list(Drafter().guess(lookup, most).tokens)


def test_a_repeated_text_is_guessed_from_its_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 9, 9, 1, 2, 3, 4])
    assert follows(lookup, 3) == [5, 6, 7]
    lookup.extend([8, 1, 2, 3, 4])
    assert follows(lookup, 7) == [8, 1, 2, 3, 4]
    assert follows(Lookup([1, 2, 3])) == [] == follows(Lookup())


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_guess_is_what_followed_the_same_tokens(tokens: list[int]) -> None:
    def after(n: int) -> list[list[int]]:
        return [tokens[i + n : i + n + 4] for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]]

    guess = follows(Lookup(tokens))
    assert guess == next((found[-1] for n in (4, 2, 1) if len(tokens) >= n and (found := after(n))), [])


def test_what_was_written_before_is_guessed_and_forgotten_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restill.models.engine.speculation._MEMORY", 30)
    drafter = Drafter()
    drafter.remember([1, 2], [10, 11, 12, 13])
    assert list(drafter.guess(Lookup([7, 1, 2]), 3).tokens) == [10, 11, 12]
    drafter.remember([3, 4], range(20, 40))
    assert drafter.guess(Lookup([7, 1, 2]), 3).tokens == ()


def test_wide_steps_are_taken_while_they_yield_more_a_second() -> None:
    drafter, guess = Drafter(), Guess([1] * 7, ("own", 4))
    for width, seconds in ((1, 0.010), (4, 0.014), (8, 0.020)):
        drafter.note(1, width, seconds)
    drafter.note(MOST_ROWS, 1, 0.01)
    for width in WIDTHS:
        drafter.note(MOST_ROWS, width, 0.1)  # where checking costs ten steps it never pays
    for _ in range(900):
        drafter.learn(guess, kept=7)
    assert drafter.best_width(1, [guess]) == 8
    assert drafter.best_width(1, [Guess([1] * 2, ("own", 4))]) == 4
    assert drafter.best_width(1, [Guess()]) == 1
    assert drafter.best_width(MOST_ROWS, [guess] * MOST_ROWS) == 1 == drafter.best_width(MOST_ROWS + 1, [guess])
    for _ in range(900):
        drafter.learn(guess, kept=0)
    assert drafter.best_width(1, [guess]) == 1


def test_a_step_that_checks_nothing_teaches_nothing() -> None:
    guesses = {0: Guess([1, 2, 3], ("own", 4)), 1: Guess()}
    assert cut(guesses, 1) == {}
    assert cut(guesses, 4) == {0: guesses[0]}


def test_yield_of_a_step_is_the_geometric_sum_of_what_came_true() -> None:
    drafter, guess = Drafter(), Guess([1] * 7, ("own", 4))
    for _ in range(900):
        drafter.learn(guess, kept=1)  # one kept, one missed: half
    assert drafter.expected(guess, 8) == pytest.approx(sum(0.5**i for i in range(8)))
