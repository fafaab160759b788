"""Speculation: guesses change how many steps are taken, never what comes out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from restill.models.checkpoint.load import Checkpoint
from restill.models.config import DecoderConfig
from restill.models.decoder import forward, init_params
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling
from restill.models.engine.shapes import MOST_ROWS, WIDTHS
from restill.models.engine.speculation import MODEL, Drafter, Guess, Lookup, cut
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("short_segments")


def guess_all(engine: Engine) -> None:
    """Not what pays but whatever there is: the widest step that has a guess for every place."""

    def plan(rows: int, guesses: dict[int, Guess], most: int, ahead: dict[int, int]) -> tuple[int, dict[int, Guess]]:
        if ahead:
            guesses = {row: Guess([-1] * ahead[row], MODEL) for row in guesses}
        fitting = (w for w in (1, *WIDTHS) if w <= most and any(len(g.tokens) >= w - 1 for g in guesses.values()))
        return max(fitting, default=1), dict(guesses)

    engine._worker.guesser.drafter.plan = plan  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="module")
def engines(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[tuple[Engine, Engine]]:
    both = [
        Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=512, speculate=speculate)
        for speculate in (False, True)
    ]
    guess_all(both[1])
    yield both[0], both[1]
    assert both[1].stats().kept > 100  # or nothing was tested
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


@pytest.fixture(scope="module", params=["like", "unlike"])
def drafted(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer, request: Any
) -> Iterator[Engine]:
    """An engine whose draft model is its own model, or one of another shape altogether."""
    config, small = tiny_config, tiny_params
    if request.param == "unlike":
        config = replace(tiny_config, num_layers=1)
        small = init_params(config, jax.random.key(9), scale=0.3)
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=512, draft=(config, small))
    guess_all(engine)
    yield engine
    assert engine.stats().guessed > 100
    engine.close()


@settings(max_examples=25, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=6))
def test_a_draft_model_changes_no_token(engines: tuple[Engine, Engine], drafted: Engine, asked: list[Request]) -> None:
    for one, other in zip(engines[0].generate(asked), drafted.generate(asked), strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)


def test_the_model_itself_guesses_right_and_an_unlike_one_seldom(drafted: Engine) -> None:
    before = drafted.stats()
    rng = random.Random(0)
    for seed in range(20):
        prompt = tuple(rng.randrange(97, 120) for _ in range(30))
        drafted.generate([Request(prompt=prompt, sampling=Sampling(temperature=1.0, max_tokens=30), seed=seed)])
    found = drafted.stats() - before
    assert found.guessed > 100
    if drafted._worker.guesser.model._model.config.num_layers == 2:  # type: ignore[union-attr]
        assert found.kept > 0.97 * found.guessed
    else:
        assert found.kept < 0.5 * found.guessed


def test_a_draft_model_with_another_vocabulary_is_refused(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> None:
    small = replace(tiny_config, vocab_size=100)
    with pytest.raises(RestillError, match="100 tokens"):
        Engine(tiny_config, tiny_params, tiny_tokenizer, draft=(small, init_params(small, jax.random.key(0))))


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

    def best(*guesses: Guess, rows: int = 1, **rest: Any) -> int:
        return drafter.plan(rows, dict(enumerate(guesses)), **rest)[0]

    for width, seconds in ((1, 0.010), (4, 0.014), (8, 0.020)):
        drafter.note(1, width, False, seconds)
    drafter.note(MOST_ROWS, 1, False, 0.01)
    for width in WIDTHS:
        drafter.note(MOST_ROWS, width, False, 0.1)  # where checking costs ten steps it never pays
    for _ in range(900):
        drafter.learn(guess, kept=7)
    assert best(guess) == 8 and best(guess, most=7) == 4
    assert best(Guess([1] * 2, ("own", 4))) == 4
    assert best(Guess()) == 1
    assert best(*[guess] * MOST_ROWS, rows=MOST_ROWS) == 1 == best(guess, rows=MOST_ROWS + 1)
    for _ in range(900):
        drafter.learn(guess, kept=0)
    assert best(guess) == 1


def test_a_draft_model_is_asked_where_it_yields_more_a_second() -> None:
    drafter, good, poor = Drafter(), Guess([1] * 7, ("own", 4)), Guess([1] * 7, ("own", 1))
    drafter.note(1, 1, False, 0.010)
    for width in WIDTHS:
        drafter.note(1, width, False, 0.015)
        drafter.note(1, width, True, 0.020)
    for _ in range(900):
        drafter.learn(good, kept=7)
        drafter.learn(poor, kept=0)
        drafter.learn(Guess([1] * 7, MODEL), kept=6)
    asked = {0: 7}
    assert drafter.plan(1, {0: good}, ahead=asked) == (8, {0: good})
    assert drafter.plan(1, {0: poor}, ahead=asked)[1][0].source == MODEL
    for width in WIDTHS:
        for _ in range(200):
            drafter.note(1, width, True, 0.2)  # a draft model too slow to pay
    assert drafter.plan(1, {0: poor}, ahead=asked) == (1, {0: poor})


def test_a_step_that_checks_nothing_teaches_nothing() -> None:
    guesses = {0: Guess([1, 2, 3], ("own", 4)), 1: Guess()}
    assert cut(guesses, 1) == {}
    assert cut(guesses, 4) == {0: guesses[0]}


def test_yield_of_a_step_is_the_geometric_sum_of_what_came_true() -> None:
    drafter, guess = Drafter(), Guess([1] * 7, ("own", 4))
    for _ in range(900):
        drafter.learn(guess, kept=1)  # one kept, one missed: half
    assert drafter.expected(guess, 8) == pytest.approx(sum(0.5**i for i in range(8)))


@pytest.mark.slow
def test_guessed_draws_of_a_real_model_have_its_distribution(smollm2: Checkpoint) -> None:
    """Chi-square over the first two tokens of 800 seeds, drafted by its own first layers, against the full pass."""
    layers, seeds = 10, 800
    config = replace(smollm2.config, num_layers=layers)
    draft = {
        name: leaf
        for name, leaf in smollm2.params.items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }
    engine = Engine(smollm2.config, smollm2.params, smollm2.tokenizer, slots=4, max_context=256, draft=(config, draft))
    guess_all(engine)
    prompt = tuple(smollm2.tokenizer.encode("The capital of France is the city of"))
    sampling = Sampling(temperature=1.0, max_tokens=5, ignore_eos=True)
    done = engine.generate([Request(prompt=prompt, sampling=sampling, seed=seed) for seed in range(seeds)])
    found = engine.stats()
    engine.close()
    assert 0 < found.kept < found.guessed

    def following(*tokens: int) -> np.ndarray:
        sequence = jnp.asarray([[*prompt, *tokens]])
        return np.asarray(jax.nn.softmax(forward(smollm2.config, smollm2.params, sequence)[0, -1])).astype(float)

    first = following()
    joint = {(a, b): first[a] * p for a in np.argsort(-first)[:40].tolist() for b, p in enumerate(following(a))}
    bins = [pair for pair, p in joint.items() if p * seeds >= 5]
    counts = [sum(completion.tokens[:2] == pair for completion in done) for pair in bins]
    expected = [joint[pair] * seeds for pair in bins]
    assert len(bins) > 4, bins
    assert chisquare([*counts, seeds - sum(counts)], [*expected, seeds - sum(expected)]).pvalue > 1e-3
