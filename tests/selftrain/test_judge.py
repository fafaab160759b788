"""The judge reads verdicts strictly, fences what it judges, and can veto but never reward."""

from __future__ import annotations

import json
import random
from pathlib import Path

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
from restill.models.lora import AdapterInfo
from restill.models.testing import tiny_checkpoint
from restill.selftrain.feedback import VETO, GoldRanker
from restill.selftrain.fence import Fence
from restill.selftrain.guard import Case
from restill.selftrain.judge import FLOOR, JUDGE_FORMAT, Judge, VetoRanker, judge_messages, read_verdict, write_verdict
from restill.selftrain.judge_adapter import best_floor, judge_mixture
from restill.selftrain.judge_data import Answers, judge_data, paraphrases
from restill.selftrain.world import World

from .tiny import small_world

_SCORES = st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=1, max_size=8)
CASE = Case(question="Where was Ada born?", answer="In London.", references=("London",))
YES, NO = write_verdict("it says London", True), write_verdict("it says Rome", False)


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


def test_a_true_counts_only_when_the_model_is_as_sure_as_its_floor() -> None:
    model = ScriptedModel([YES])
    sure = Judge(model=model, repetitions=1).judge([CASE])[0].sure
    assert 0 < sure < 1
    for floor, accepted in ((sure * 0.99, True), (min(1.0, sure * 1.01), False)):
        found = Judge(model=ScriptedModel([YES]), repetitions=1, floor=floor).judge([CASE])[0]
        assert (found.accepted, found.share) == (accepted, float(accepted))
        adapter = AdapterInfo(name="judge", path=Path(), hash="h", manifest={"format": JUDGE_FORMAT, FLOOR: floor})
        model = ScriptedModel([YES])
        model.adapter = adapter
        assert Judge(model=model, repetitions=1).judge([CASE])[0].accepted == accepted
    assert Judge(model=ScriptedModel([NO])).judge([CASE])[0].sure == 0
    with pytest.raises(RestillError, match="floor=2"):
        Judge(model=model, floor=2)


@pytest.mark.parametrize(
    ("right", "wrong", "floor"),
    [([0.9, 0.8], [0.2, 0.0], 0.5), ([0.9], [0.0], 0.45), ([0.9, 0.1], [0.5, 0.0, 0.0], 0.05), ([0.4], [0.4], 0.7)],
)
def test_a_floor_lies_in_the_middle_of_the_best_gap(right: list[float], wrong: list[float], floor: float) -> None:
    assert best_floor(right, wrong) == pytest.approx(floor)


@given(_SCORES, _SCORES)
def test_no_floor_is_better_than_the_best(right: list[float], wrong: list[float]) -> None:
    def worth(floor: float) -> float:
        return sum(s >= floor for s in right) / len(right) - sum(s >= floor for s in wrong) / len(wrong)

    floor = best_floor(right, wrong)
    assert 0 < floor <= 1 and worth(floor) == max(worth(f) for f in (*right, *wrong, 1.0) if f > 0)


def test_a_local_model_is_held_to_the_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restill.selftrain.judge.MAX_TOKENS", 300)  # random weights write one byte a token
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(layers=1), max_context=512, slots=2, deterministic=True)
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


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.booleans())
def test_half_of_the_answers_are_right_and_the_labels_are_true(seed: int, training: bool) -> None:
    world = small_world()
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
