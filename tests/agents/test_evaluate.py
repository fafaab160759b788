"""Scores and reports."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from restill.agents.budget import Budget
from restill.agents.evaluate import (
    evaluate,
    exact_match,
    f1,
    normalise,
    score_run,
)
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.reason import ReasoningAgent
from restill.agents.run import Run
from restill.agents.testing import ScriptedModel, answer, call
from restill.models.errors import RestillError


@pytest.mark.parametrize(
    ("said", "golds", "em", "overlap"),
    [
        ("The  Eiffel-Tower!", ["eiffeltower"], 1, 1),
        ("the cat", ["a cat"], 1, 1),
        ("Ada Lovelace", ["Ada", "Lovelace Ada King"], 0, 0.8),
        ("yes it is", ["yes"], 0, 0),
        ("yes", ["Yes."], 1, 1),
        ("", ["a"], 1, 1),
        ("", ["b"], 0, 0),
        (None, ["b"], 0, 0),
        ("b", [], 0, 0),
    ],
)
def test_scores_are_squads_and_hotpotqas(said: str | None, golds: list[str], em: float, overlap: float) -> None:
    assert exact_match(said, golds) == em
    assert f1(said, golds) == pytest.approx(overlap)


@given(st.text(), st.text())
def test_f1_is_a_share_and_exact_matches_have_all_of_it(a: str, b: str) -> None:
    assert 0 <= f1(a, [b]) <= 1
    assert f1(a, [b]) == pytest.approx(f1(b, [a]))
    assert exact_match(a, [b]) <= f1(a, [b])
    assert normalise(normalise(a)) == normalise(a) or "  " not in normalise(a)


def test_a_report_counts_forced_answers_apart(tmp_path: Path, search) -> None:
    def reply(prompt: str, request) -> str:
        stubborn = "What is b?" in prompt
        last = "search" not in request.grammar
        return call("search", query="x") if stubborn and not last else answer("yes", 1)

    agent = ReActAgent(ScriptedModel(reply), [search], budget=Budget(steps=2))
    questions = [Question(id=name, question=f"What is {name}?", answers=["yes"], gold=["d1", "d9"]) for name in "abcd"]
    report = evaluate(agent, questions, out=tmp_path)
    assert (report.em, report.em_unforced, report.answered, report.forced) == (1, 0.75, 0.75, 0.25)
    assert report.statuses == {"answered": 3, "budget": 1}
    assert report.tool_calls == 0.5 and report.recall == pytest.approx(0.125)
    assert [row.id for row in report.rows] == list("abcd") and report.rows[1].searches == 2
    assert report.config["few_shot"] == 2 and report.missing == 0
    assert type(report).model_validate_json(report.model_dump_json()) == report

    other = report.model_copy(update={"rows": [row.model_copy(update={"em": 0.0}) for row in report.rows[:2]]})
    assert report.difference(other) == (1.0, (1.0, 1.0))


def test_numbers_of_an_agent_that_only_thinks_are_compared_as_numbers(tmp_path: Path) -> None:
    """SQuAD's exact match, which strips every mark, takes 12 for -12."""
    replies = {"3 - 15": "12", "0.5 + 1": "15", "2000 / 2": "1,000", "a mark": ")", "1 - 6": "-5"}
    golds = dict(zip(replies, ("-12", "1.5", "1000", "}", "-5.0"), strict=True))
    model = RunnableLambda(
        lambda seen, **_: AIMessage(f"The answer is {replies[seen[-1].content.rpartition(': ')[2]]}.")
    )
    asked = [Question(id=q, question=q, answers=[gold]) for q, gold in golds.items()]
    report = evaluate(ReasoningAgent(model), asked, out=tmp_path / "run", concurrency=1)
    assert [row.em for row in report.rows] == [row.f1 for row in report.rows] == [0.0, 0.0, 1.0, 0.0, 1.0]


def test_missing_trajectories_count_as_wrong(tmp_path: Path, search) -> None:
    agent = ReActAgent(ScriptedModel([answer("yes")]), [search])
    questions = [Question(id=name, question=f"What is {name}?", answers=["yes"]) for name in "abcd"]
    evaluate(agent, questions[:3], out=tmp_path)
    report = score_run(Run.open(tmp_path), questions, agent=agent.fingerprint)
    assert (report.em, report.missing) == (0.75, 1)


def test_a_table_can_be_printed(tmp_path: Path, search) -> None:
    from rich.console import Console

    agent = ReActAgent(ScriptedModel([answer("yes")]), [search])
    report = evaluate(agent, [Question(question="a?", answers=["yes"])], out=tmp_path)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(report.table())
    assert "exact match" in console.export_text()


def test_questions_without_answers_are_refused(tmp_path: Path, search) -> None:
    agent = ReActAgent(ScriptedModel([answer("yes")]), [search])
    for questions in ([], [Question(question="a?")]):
        with pytest.raises(RestillError):
            evaluate(agent, questions, out=tmp_path)
