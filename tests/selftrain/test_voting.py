"""Self-consistency: the majority's answer, and scores with their intervals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.agents.evaluate import evaluate
from restill.agents.question import Question
from restill.agents.reason import ReasoningAgent
from restill.agents.scores import canonical, same_answer
from restill.agents.testing import ScriptedModel
from restill.models.errors import RestillError
from restill.selftrain.voting import Marks, majority, marks, voted


@pytest.mark.parametrize(
    ("answers", "most"),
    [
        (["5", "6", "5.0", "6", "5"], "5"),
        (["(B)", "A", "B"], "(B)"),
        (["Rome", "the rome", "Oslo"], "Rome"),
        ([None, None, "7"], "7"),
        (["6", "5"], "6"),
        ([None], None),
        ([], None),
    ],
)
def test_the_majority_counts_spellings_of_one_answer_together(answers: list, most: str | None) -> None:
    assert majority(answers) == most


@given(st.sampled_from(["5", "5.0", "-5", "1,000", "1000", "(A)", "A", "the", "", "Rome", "rome."]), st.data())
def test_answers_with_one_spelling_are_the_same_answer(a: str, data: st.DataObject) -> None:
    b = data.draw(st.sampled_from(["5", "5.0", "-5", "1,000", "1000", "(A)", "A", "the", "", "Rome", "rome."]))
    assert (canonical(a) == canonical(b)) == same_answer(a, [b])


def test_votes_are_right_more_often_than_their_samples(tmp_path: Path) -> None:
    def reply(prompt: str, request: object) -> str:
        return "The answer is 4." if getattr(request, "seed", 0) % 3 else "The answer is 9."

    asked = [Question(id=str(i), question=f"2 + 2 = {'?' * (i + 1)}", answers=["4"]) for i in range(12)]
    agent = ReasoningAgent(ScriptedModel(reply), temperature=0.7)
    report = evaluate(agent, asked, out=tmp_path, samples=15)
    single, most = marks(report), voted(report)
    assert 0.5 < single.mean < 0.8 < most.mean
    gain, (low, high) = most.over(single)
    assert gain == pytest.approx(most.mean - single.mean) and low <= gain <= high and low > 0
    assert single.interval[0] <= single.mean <= single.interval[1]
    with pytest.raises(RestillError, match="share no question"):
        single.over(Marks({"x": 1.0}))
