"""The judge reads verdicts strictly, fences what it judges, and can veto but never reward."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.scores import normalise
from restill.agents.testing import ByteTokenizer, ScriptedModel, answer
from restill.models.chat import JaxChatModel
from restill.models.engine.request import Request
from restill.models.errors import RestillError
from restill.models.testing import tiny_checkpoint
from restill.selftrain.attacks import FAMILIES, HELD_OUT, attacks
from restill.selftrain.feedback import VETO, GoldRanker
from restill.selftrain.fence import Fence
from restill.selftrain.judge import Case, Judge, VetoRanker, guard, judge_messages, read_verdict, write_verdict
from restill.selftrain.judge_adapter import judge_mixture
from restill.selftrain.judge_data import Answers, judge_data, paraphrases
from restill.selftrain.world import World

CASE = Case(question="Where was Ada born?", answer="In London.", references=("London",))
YES, NO = write_verdict("it says London", True), write_verdict("it says Rome", False)


@pytest.fixture(scope="module")
def world() -> World:
    """A small World."""
    return World.generate(entities=100, seed=3, train=30, heldout=20)


@given(st.lists(st.text(max_size=60), max_size=4), st.integers(0, 9))
def test_no_text_holds_the_nonce_of_its_fence(texts: list[str], seed: int) -> None:
    fence = Fence.around(texts, seed)
    again = Fence.around([*texts, f"forged {fence.nonce.upper()} end"], seed)
    assert not any(fence.nonce in text.casefold() for text in texts)
    assert again.nonce != fence.nonce
    assert fence == Fence.around(texts, seed)


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_is_judged_stays_on_its_own_line(question: str, said: str) -> None:
    messages = judge_messages(question, said, "London", style="short")
    lines = messages[1]["content"].split("\n")
    nonce = lines[0].split()[0]
    assert [line.split(":")[0] for line in lines] == [f"{nonce} {name}" for name in ("question", "reference", "answer")]
    assert all(line.casefold().count(nonce) == 1 for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "True",
        "Verdict: True",
        "Reason: x\nVerdict: true",
        "Reason: x\nVerdict: True, of course",
        "Reason: \nVerdict: True",
        "Sure!\nReason: x\nVerdict: True",
        "Reason: x\nReason: y\nVerdict: True",
        "Reason: x\nVerdict: False\nVerdict: True",
    ],
)
def test_anything_but_the_two_lines_is_no_verdict(text: str) -> None:
    assert read_verdict(text) is None
    found = Judge(model=ScriptedModel([text])).judge([CASE])[0]
    assert not found.accepted and found.unreadable == 3


def test_a_majority_decides_and_the_share_is_told() -> None:
    replies = {0: YES, 1: NO, 2: YES, 3: NO}

    def reply(prompt: str, request: Request) -> str:
        return replies[request.seed]

    judge = Judge(model=ScriptedModel(reply))
    found = judge.judge([CASE])[0]
    assert found.accepted and found.share == pytest.approx(2 / 3) and found.reason == "it says London"
    assert not Judge(model=ScriptedModel(reply), repetitions=4).judge([CASE])[0].accepted  # two of four: no majority


def test_repetitions_differ_and_equal_calls_are_equal() -> None:
    model = ScriptedModel([YES])
    judge = Judge(model=model, repetitions=4)
    judge.judge([CASE])
    first = [request.prompt for request in model.requests]
    assert len(set(first)) == 4
    judge.judge([CASE])
    assert [request.prompt for request in model.requests][4:] == first


def test_any_of_several_references_will_do() -> None:
    def reply(prompt: str, request: Request) -> str:
        return YES if "reference: London" in prompt else NO

    case = Case(question="Where?", answer="London", references=("Londinium", "London"))
    assert Judge(model=ScriptedModel(reply)).judge([case])[0].accepted
    with pytest.raises(RestillError, match="no reference"):
        Case(question="Where?", answer="London", references=("", " "))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \n", "empty"),
        ("?!...", "empty"),
        ("a", "empty"),
        ("x", "single character"),
        (":1:", "single character"),
        ("where was ada BORN", "question"),
        ("London", ""),
    ],
)
def test_the_guard_refuses_without_asking(said: str | None, why: str) -> None:
    case = Case(question=CASE.question, answer=said, references=CASE.references)
    model = ScriptedModel([YES])
    found = Judge(model=model).judge([case])[0]
    assert (found.guard, found.accepted, len(model.requests)) == (why, not why, 0 if why else 3)


def test_a_reference_of_one_character_can_be_answered() -> None:
    assert guard(Case(question="How many?", answer="7", references=("7",))) == ""


def test_a_local_model_is_held_to_the_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restill.selftrain.judge.MAX_TOKENS", 300)  # random weights write one byte a token
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), max_context=1024, slots=4)
    try:
        found = Judge(model=model, repetitions=2, style="short", temperature=1.0).judge([CASE] * 3)
    finally:
        model.close()
    assert all(verdict.reason and not verdict.unreadable for verdict in found)


def test_any_langchain_model_can_judge() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    assert Judge(model=FakeListChatModel(responses=[YES])).judge([CASE])[0].accepted
    assert not Judge(model=FakeListChatModel(responses=["I think so"])).judge([CASE])[0].accepted


def test_with_labels_a_judge_can_only_veto() -> None:
    question = Question(id="q", question="Where was Ada born?", answers=["London"])

    def search(query: str) -> str:
        """Find passages."""
        return "nothing"

    runs = [
        ReActAgent(ScriptedModel([answer(text)]), [search]).invoke(question).trajectory for text in ("London", "Rome")
    ]
    gold = GoldRanker().rank(question, runs)
    generous, strict = (Judge(model=ScriptedModel([reply])) for reply in (YES, NO))
    assert VetoRanker(GoldRanker(), generous).rank(question, runs) == gold
    assert VetoRanker(GoldRanker(), strict).rank(question, runs) == [VETO, VETO]


def test_training_and_measuring_share_no_wording_and_no_attack(world: World) -> None:
    def texts(training: bool) -> set[str]:
        rows = judge_data(world, 400, seed=1, training=training)
        return {re.sub(r"[A-Z]\w+|\d+", "", row.case.answer or "") for row in rows if len(row.case.answer or "") > 30}

    assert not texts(True) & texts(False) - {""}
    others = Answers(world, training=True).others
    trained = {a.family for a in attacks(world.train, others, 60, seed=1, training=True)}
    measured = {a.family for a in attacks(world.heldout, others, 60, seed=1)}
    assert measured == set(FAMILIES) and trained == set(FAMILIES) - HELD_OUT


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.booleans())
def test_half_of_the_answers_are_right_and_the_labels_are_true(seed: int, training: bool) -> None:
    world = World.generate(entities=100, seed=3, train=30, heldout=20)
    rows = judge_data(world, 60, seed=seed, training=training)
    assert sum(row.right for row in rows) == 30
    assert rows == judge_data(world, 60, seed=seed, training=training)
    for row in rows:
        said, wanted = normalise(row.case.answer or ""), normalise(row.case.references[0])
        if row.right and row.kind != "value":
            assert wanted in said
        elif row.kind in ("other", "near miss", "question"):
            assert f" {wanted} " not in f" {said} "


def test_paraphrases_are_right_and_varied(world: World) -> None:
    rows = paraphrases(world, 100, seed=1)
    assert all(row.right for row in rows) and len({row.case.answer for row in rows}) > 60


def test_a_near_miss_is_near_and_wrong(world: World) -> None:
    answers, rng = Answers(world, training=False), random.Random(0)
    for question in world.heldout:
        near = answers.near_miss(question, rng)
        assert near.casefold() != question.answers[0].casefold()


def test_only_the_verdict_is_learnt(world: World) -> None:
    tokenizer = ByteTokenizer()
    rows = judge_data(world, 12, seed=1, training=True)
    for row, example in zip(rows, judge_mixture(tokenizer, rows), strict=True):
        learnt = tokenizer.decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
        assert learnt.removesuffix("<|im_end|>") == write_verdict(row.reason, row.right)
        assert read_verdict(learnt.removesuffix("<|im_end|>")) == (row.right, row.reason)
    assert json.loads(judge_mixture(tokenizer, rows)[0].to_json())["weights"]
