"""Rankers order candidates, veto what must not be learnt, and see labels only when they say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from restill.agents.budget import Budget
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.reason import ReasoningAgent
from restill.agents.run import Run
from restill.agents.testing import ByteTokenizer, ScriptedModel, answer, call
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.selftrain.feedback import VETO, GoldRanker, LikelihoodRanker, RandomRanker, Ranker, answer_span
from restill.selftrain.rest import ReST
from restill.selftrain.selection import select, select_random

QUESTION = Question(id="q", question="Where was Ada born?", answers=["London"])
SEARCH = call("search", query="Ada")


def search(query: str) -> str:
    """Find passages."""
    return f"about {query}"


def run(*turns: str, sample: int = 0, logprob: float = -0.1, question: Question = QUESTION) -> Trajectory:
    """A scripted trajectory whose tokens all have one log-probability."""
    agent = ReActAgent(ScriptedModel(list(turns)), [search], budget=Budget(steps=4))
    made = agent.invoke(question, sample=sample).trajectory
    for step in made.steps:
        step.sample.logprobs = [logprob] * len(step.sample.tokens)
    return made


def test_gold_keeps_right_answers_and_prefers_the_short_way() -> None:
    right, longer = run(SEARCH, answer("London")), run(SEARCH, SEARCH, answer("the london"))
    wrong, forced = run(SEARCH, answer("Rome")), run(*[SEARCH] * 4, answer("London"))
    stumbling = run("what?", answer("London"))
    scores = GoldRanker().rank(QUESTION, [right, longer, wrong, forced, stumbling])
    assert scores[0] > scores[1] > VETO
    assert scores[2:] == [VETO] * 3


def test_gold_tells_a_sign_of_an_agent_that_only_thinks() -> None:
    asked = Question(id="q", question="What is 3 - 15?", answers=["-12"])
    models = [ScriptedModel([f"The answer is {said}."]) for said in ("12", "-12.0")]
    wrong, right = (ReasoningAgent(model).invoke(asked).trajectory for model in models)
    assert GoldRanker().rank(asked, [wrong, right]) == [VETO, 1.0]


def test_gold_needs_answers() -> None:
    with pytest.raises(RestillError, match="has no answers"):
        GoldRanker().rank(QUESTION.without_labels(), [run(answer("London"))])


def test_likelihood_follows_confidence_and_agreement() -> None:
    model = SimpleNamespace(tokenizer=ByteTokenizer())
    sure, unsure = run(SEARCH, answer("Rome"), logprob=-0.1), run(SEARCH, answer("London"), logprob=-2.0)
    scores = LikelihoodRanker(agreement=0.0).bind(model).rank(QUESTION, [sure, unsure])
    assert scores[0] > scores[1]
    crowd = [run(SEARCH, answer("Oslo")), *(run(SEARCH, answer("Bern", thought=t)) for t in ("a", "b"))]
    scores = LikelihoodRanker().bind(model).rank(QUESTION, crowd)
    assert min(scores[1:]) > scores[0]


def test_likelihood_prefers_an_answer_that_came_from_the_evidence() -> None:
    def score(prompt: list[int], continuation: list[int]) -> np.ndarray:
        known = b"Rome" in bytes(t for t in continuation if t < 256)
        return np.full(len(continuation), -0.1 if known else -3.0)

    model = SimpleNamespace(tokenizer=ByteTokenizer(), engine=SimpleNamespace(score=score))
    guess, found = run(SEARCH, answer("Rome")), run(SEARCH, answer("Bern"))
    scores = LikelihoodRanker(evidence=1.0).bind(model).rank(QUESTION, [guess, found])
    assert scores[1] > scores[0]


def test_likelihood_vetoes_what_has_no_answer_of_its_own() -> None:
    model = SimpleNamespace(tokenizer=ByteTokenizer())
    scores = LikelihoodRanker().bind(model).rank(QUESTION, [run(*[SEARCH] * 4, answer("x")), run(answer(""))])
    assert scores == [VETO, VETO]
    with pytest.raises(RestillError, match="bind"):
        LikelihoodRanker().rank(QUESTION, [])


@pytest.mark.parametrize("text", ["London", 'a "quoted" \\ name', "Łódź", "answer"])
def test_the_answer_is_found_among_the_tokens(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = [*tokenizer.encode(answer(text, 1)), tokenizer.eos_id]
    start, end = answer_span(tokenizer, tokens, text)
    assert tokenizer.decode(tokens[start:end]) in (
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
    )


def test_a_search_agent_s_answer_is_found_as_it_stands_last() -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("Thought: Oslo or not.\nAnswer: Oslo [1][3]")
    start, end = answer_span(tokenizer, tokens, "Oslo")
    assert tokenizer.decode(tokens[start:end]) == "Oslo" and start > 20


def test_random_is_repeatable_and_blind() -> None:
    runs = [run(SEARCH, answer("Rome"), sample=i) for i in range(3)]
    assert RandomRanker().rank(QUESTION, runs) == RandomRanker().rank(QUESTION, runs)
    assert len(set(RandomRanker().rank(QUESTION, runs))) == 3
    assert all(isinstance(r, Ranker) for r in (RandomRanker(), GoldRanker(), LikelihoodRanker()))


def test_selection_keeps_the_best_of_each_question_and_no_duplicates(tmp_path: Path) -> None:
    other = Question(id="r", question="Where did Ada die?", answers=["Rome"])
    runs = [
        run(SEARCH, SEARCH, answer("London"), sample=0),
        run(SEARCH, answer("London"), sample=1),
        run(SEARCH, answer("London"), sample=2),
        run(SEARCH, answer("London"), sample=0, question=other),
    ]
    kept = select(GoldRanker(), [QUESTION, other], runs, keep_per_question=3)
    assert [k.key.sample for k in kept] == [1, 0]
    assert len(select(GoldRanker(), [QUESTION, other], runs)) == 1
    with Run.create(tmp_path / "run") as folder:
        for t in reversed(runs):
            folder.append(t)
        assert select(GoldRanker(), [QUESTION, other], folder, keep_per_question=3) == kept


def test_two_trajectories_of_one_key_are_refused() -> None:
    with pytest.raises(RestillError, match="one run at a time"):
        select(GoldRanker(), [QUESTION], [run(answer("London")), run(answer("Rome"))])


def test_a_ranker_without_labels_gets_none() -> None:
    class Spy:
        needs_labels = False

        def rank(self, question: Question, candidates: list[Trajectory]) -> list[float]:
            assert question == QUESTION.without_labels()
            return [0.0 for _ in candidates]

    assert len(select(Spy(), [QUESTION], [run(answer("London"))])) == 1


def test_a_share_of_the_questions_is_kept_by_score() -> None:
    asked = [Question(id=str(i), question=f"Question {i}?", answers=["x"]) for i in range(4)]

    class ById:
        needs_labels = False

        def rank(self, question: Question, candidates: list[Trajectory]) -> list[float]:
            return [float(question.id) for _ in candidates]

    runs = [run(answer("x"), question=q) for q in asked]
    kept = select(ById(), asked, runs, keep_share=0.5)
    assert [k.key.question for k in kept] == [q.key for q in asked[2:]]


def test_the_control_is_drawn_blindly_and_repeatably() -> None:
    runs = [run(SEARCH, answer(t), sample=i) for i, t in enumerate(["London", "Rome", "Bern", "Oslo"])]
    first, again = (select_random(runs, 2, seed=1) for _ in range(2))
    assert [k.key for k in first] == [k.key for k in again]
    assert len(select_random([*runs, run(SEARCH, answer("Rome"), sample=7)], 9, seed=1)) == 4


@pytest.mark.parametrize("knobs", [{"samples": 0}, {"keep_share": 0.0}, {"start": "middle"}])
def test_bad_knobs_are_named(knobs: dict) -> None:
    with pytest.raises(RestillError, match=next(iter(knobs))):
        ReST(**knobs)


def test_knobs_are_plain_values() -> None:
    knobs = ReST(ranker=LikelihoodRanker(evidence=0.5)).knobs()
    assert json.loads(json.dumps(knobs)) == knobs
    assert knobs["ranker"]["kind"] == "LikelihoodRanker" and knobs["ranker"]["evidence"] == 0.5
    assert math.isfinite(knobs["train"]["lr"])
