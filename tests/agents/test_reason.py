"""The reasoning agent: one turn, an answer at its end, and nothing of a hint in what is stored."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from restill.agents.question import Question
from restill.agents.reason import ReasoningAgent, answer_hint, read_answer
from restill.agents.testing import ScriptedModel
from restill.models.errors import RestillError

SHOWN = (("What is 1 + 1?", "1 + 1 = 2. The answer is 2."),)
ASKED = Question(id="a", question="What is 2 + 3?\nOptions: 5, 6", answers=["5"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5. The answer is 5.", "5"),
        ("So the answer is: (B)", "(B)"),
        ("The answer is 4. No, the answer is 5.\n", "5"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is 5.\nOr is it?", None),
        ("It is 5.", None),
        ("The answer is .", None),
        ("", None),
    ],
)
def test_the_answer_stands_at_the_end(text: str, answer: str | None) -> None:
    assert read_answer(text) == answer


def test_a_rationale_is_one_turn_with_its_answer() -> None:
    model = ScriptedModel(["2 + 3 = 5. The answer is 5."])
    trajectory = ReasoningAgent(model).invoke(ASKED).trajectory
    assert (trajectory.answer, trajectory.status, trajectory.protocol) == ("5", "answered", "reason-1")
    [step] = trajectory.steps
    assert model.tokenizer.decode(step.sample.tokens, skip_special=True) == "2 + 3 = 5. The answer is 5."
    assert "\nOptions: 5, 6" in model.tokenizer.decode(trajectory.prompt0)
    assert tuple(trajectory.prompt0) == model.requests[0].prompt


def test_demonstrations_and_hint_are_seen_and_not_stored() -> None:
    model = ScriptedModel(["2 + 3 = 5. The answer is 5."])
    bare = ReasoningAgent(model).invoke(ASKED).trajectory
    guided = ReasoningAgent(model, SHOWN, hint=answer_hint).invoke(ASKED).trajectory
    seen = model.tokenizer.decode(model.requests[1].prompt)
    assert "Hint: The answer is 2." in seen and "1 + 1 = 2" in seen and "Hint: The answer is 5." in seen
    assert guided.prompt0 == bare.prompt0 and guided.guide and guided.few_shot == 1


@pytest.mark.parametrize("reply", ["I do not know.", "x" * 300], ids=["no answer", "cut off"])
def test_a_rationale_without_an_answer_is_invalid(reply: str) -> None:
    trajectory = ReasoningAgent(ScriptedModel([reply]), step_tokens=64).invoke(ASKED).trajectory
    assert trajectory.status == "invalid" and trajectory.answer is None
    assert "The answer is" in str(trajectory.error) or "cut off after 64 tokens" in str(trajectory.error)


@pytest.mark.parametrize(("reason", "status"), [("length", "invalid"), ("max_tokens", "invalid"), ("stop", "answered")])
def test_a_remote_reply_that_its_server_cut_off_is_no_answer(reason: str, status: str) -> None:
    asked: list[dict[str, Any]] = []

    def reply(messages: Any, **options: Any) -> AIMessage:
        asked.append(options)
        return AIMessage("100 + 25 = 125. The answer is 1", response_metadata={"finish_reason": reason})

    trajectory = ReasoningAgent(RunnableLambda(reply)).invoke(ASKED).trajectory
    assert trajectory.status == status and trajectory.steps[0].sample.text.endswith("is 1")
    assert [options["temperature"] for options in asked] == [0.0]  # told, since a server's default may be another


def test_a_prompt_that_fills_the_context_ends_by_budget() -> None:
    trajectory = ReasoningAgent(ScriptedModel(["x"], max_context=80)).invoke(ASKED).trajectory
    assert trajectory.status == "budget" and "limit" in str(trajectory.error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demonstrations": [("What?", "No idea.")]}, "does not end with"),
        ({"demonstrations": SHOWN * 9}, "9 demonstrations"),
        ({"step_tokens": 8}, "step_tokens=8"),
        ({"demonstrations": SHOWN, "few_shot": 2}, "few_shot=2: there are 1 demonstrations"),
        ({"seconds": -1.0}, "seconds=-1"),
    ],
)
def test_bad_options_are_named(options: Any, message: str) -> None:
    with pytest.raises(RestillError, match=message):
        ReasoningAgent(ScriptedModel(["x"]), **options)


def test_other_demonstrations_make_another_agent() -> None:
    model = ScriptedModel(["x"])
    names = {ReasoningAgent(model, SHOWN, few_shot=n).fingerprint for n in (0, 1)}
    names |= {ReasoningAgent(model, instruction="Think hard.").fingerprint, ReasoningAgent(model).fingerprint}
    assert len(names) == 3  # without any, all pools are alike
