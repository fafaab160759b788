"""What was read of the evidence, and where a wrong answer went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from restill.agents.budget import Budget
from restill.agents.evaluate import evaluate
from restill.agents.evidence import evidence_recall, lost_to
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.testing import ScriptedModel, answer, call, make_hit


def search(query: str) -> list:
    """Find passages."""
    return [make_hit(name, name.title(), f"{name} is a ship.") for name in query.split()]


@pytest.mark.parametrize(
    ("query", "said", "recall", "loss"),
    [
        ("ada bo", "Oslo", 1.0, None),
        ("cy", "Oslo", 0.0, None),
        ("cy", "Rome", 0.0, "retrieval"),
        ("ada cy", "Rome", 0.5, "hop"),
        ("ada bo cy", "Rome", 1.0, "reading"),
        ("ada bo", None, 1.0, "format"),
    ],
)
@pytest.mark.parametrize("named", [{"gold": ["ada", "bo"]}, {"gold_titles": ["ADA", "Bo"]}])
def test_a_wrong_answer_is_lost_at_the_first_thing_that_is_missing(query, said, recall, loss, named) -> None:
    question = Question(id="q", question="Where?", answers=["Oslo"], **named)
    turns = [call("search", query=query), "no action" if said is None else answer(said)]
    trajectory = ReActAgent(ScriptedModel(turns), [search], budget=Budget(steps=2)).invoke(question).trajectory
    assert (evidence_recall(question, trajectory), lost_to(question, trajectory)) == (recall, loss)


@pytest.mark.parametrize(
    ("gold", "title", "found"),
    [("Ed_Wood_(film)", "Ed Wood (film)", 1.0), ("AT&amp;T", "AT&T", 1.0), ("The Thing", "Thing", 0.0), ("A", "", 0.0)],
)
def test_titles_are_compared_as_an_index_resolves_them(gold: str, title: str, found: float) -> None:
    def look(query: str) -> list:
        """Find one."""
        return [make_hit("d", title, "It is.")]

    question = Question(id="q", question="Where?", answers=["Oslo"], gold_titles=[gold])
    turns = [call("look", query="x"), answer("Rome")]
    assert evidence_recall(question, ReActAgent(ScriptedModel(turns), [look]).invoke(question).trajectory) == found


def test_a_report_tells_the_shares(tmp_path: Path) -> None:
    agent = ReActAgent(ScriptedModel(lambda prompt, _: answer("Oslo")), [search])
    asked = [Question(id=str(i), question=f"Where {i}?", answers=["Oslo" if i else "Rome"], gold=["a"]) for i in (0, 1)]
    asked.append(Question(id="2", question="Who?", answers=["Ada"]))
    report = evaluate(agent, asked, out=tmp_path)
    assert report.lost == {"format": 0.0, "retrieval": 0.5, "hop": 0.0, "reading": 0.0}
    assert report.recall == 0.0
