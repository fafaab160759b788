"""Latents: what of a trajectory is the model's own, and what is right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.agents.budget import Budget
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.scores import same_answer
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ScriptedModel, answer, call
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.selftrain.latent import Latent, check_lengths
from restill.selftrain.rewards import right


def search(query: str) -> str:
    """Find passages."""
    return f"about {query}"


def run(*replies: Any, steps: int = 3) -> Trajectory:
    return ReActAgent(ScriptedModel(replies), [search], budget=Budget(steps=steps)).invoke("Who?").trajectory


def test_every_token_of_the_model_counts_also_of_turns_that_cannot_be_read() -> None:
    trajectory = run("gibberish", call("search", query="x"), answer("Rome"))
    [sequence] = Latent.of(trajectory).sequences
    assert list(sequence.tokens) == trajectory.token_ids()
    assert [bool(w) for w in sequence.weights] == trajectory.loss_mask()


def test_a_turn_under_the_finishing_grammar_does_not_count_and_is_not_right() -> None:
    trajectory = run(call("search", query="x"), answer("Rome"), steps=1)
    assert trajectory.forced and trajectory.answer == "Rome"
    latent = Latent.of(trajectory)
    assert latent.tokens == len(trajectory.steps[0].sample.tokens)
    assert right(Question(id="a", question="Who?", answers=["Rome"]), trajectory) == 0


@pytest.mark.parametrize("samples", [1, 2])
def test_all_samples_of_a_step_count_not_only_the_one_that_went_on(samples: int) -> None:
    agent = SearchAgent(ScriptedModel(["cannot be read"]), [search], samples=samples, temperature=0.5, checks=False)
    trajectory = agent.invoke("Who?").trajectory
    free = [step for step in trajectory.steps if not step.forced]
    drawn = [sample for step in free for sample in step.samples]
    assert len(drawn) > len(free) > 0
    latent = Latent.of(trajectory)
    assert latent.tokens == sum(len(sample.tokens) for sample in drawn)


def test_a_latent_outlives_json_with_its_weights_scaled_or_not() -> None:
    latent = Latent.of(run(answer("Rome"))).rewarded(0.5, 7)
    assert Latent.from_row(latent.to_row()) == latent
    [pushed] = latent.weighted(-0.25)
    assert {w for w in pushed.weights if w} == {-0.25} and pushed.targets == latent.tokens


def test_a_row_that_cannot_hold_a_latent_is_refused() -> None:
    latent = Latent.of(run(answer("Rome")))
    check_lengths([latent], latent.longest)
    with pytest.raises(RestillError, match=f"at least {latent.longest}"):
        check_lengths([latent], latent.longest - 1)


@pytest.mark.parametrize(
    ("said", "golds", "same"),
    [
        ("1,000", ["1000"], True),
        ("$18.00", ["18"], True),
        ("-5", ["5"], False),
        ("5", ["-5"], False),
        ("The Rome", ["rome"], True),
        ("(B)", ["B"], True),
        ("18", ["180"], False),
        ("nan", ["nan"], True),
        ("1, 2", ["12"], False),
        ("1,2", ["12"], False),
        ("5 6", ["56"], False),
        ("] }", [">"], False),
        ("] )", ["] )"], True),
        ("1e9999999", ["0"], False),
        ("-$5", ["-5.00"], True),
        (" 007. ", ["7"], True),
        ("-0.0", ["0"], True),
        (".5", ["0.50 %"], True),
    ],
)
def test_numbers_compare_as_numbers_and_words_as_words(said: str, golds: list[str], same: bool) -> None:
    assert same_answer(said, golds) is same


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_itself_however_it_is_written(number: int) -> None:
    assert same_answer(f"{number:,}", [str(number)]) and same_answer(f"{number}.0", [str(number)])
    assert not same_answer(str(number), [str(number + 1)])
