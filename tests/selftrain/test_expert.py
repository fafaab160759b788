"""The scripted expert goes through the real loop and ends with the right answer, citing what it read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.rollout import rollout
from restill.agents.testing import ByteTokenizer
from restill.models.engine.request import Request
from restill.models.errors import RestillError
from restill.retrieval.types import Chunk, Hit
from restill.selftrain.expert import ExpertModel, gold_script, search_then_follow, search_then_reread
from restill.selftrain.pilot import Pilot, grounded
from restill.selftrain.plain import plain
from restill.selftrain.world import World


def reader(world: World):  # type: ignore[no-untyped-def]
    """A search tool that finds the documents whose titles the query names."""

    chunks = [
        Chunk(chunk_id=d.id, doc_id=d.id, title=d.title, text=d.text, start=0, end=len(d.text), content_hash=d.id)
        for d in world.documents
    ]

    def search(query: str) -> list[Hit]:
        """Find passages."""
        return [Hit(chunk=chunk, score=1.0) for chunk in chunks if chunk.title in query]

    return search


def test_on_a_world_the_expert_is_right_and_cites_every_document_of_the_chain(tmp_path: Path) -> None:
    world = World.generate(entities=100, train=30, heldout=10)
    agent = ReActAgent(ExpertModel(ByteTokenizer(), world.train), [reader(world)], few_shot=0, observation_tokens=4000)
    by_key = {q.key: q for q in world.train}
    for trajectory in rollout(agent, world.train, out=tmp_path / "run"):
        question = by_key[trajectory.question_key]
        assert trajectory.answer == question.answers[0]
        assert [c.doc_id for c in trajectory.citations] == question.gold
        prompt = ByteTokenizer().decode(trajectory.token_ids()).split("<|im_start|>assistant")[0]
        assert question.answers[0] not in prompt and "Plan:" not in prompt
        assert grounded(trajectory)


def test_a_passage_that_asks_something_is_not_taken_for_the_question() -> None:
    question = Question(id="q", question="Who built the Brisa?", answers=["Rui"], gold_titles=["Brisa"])

    def search(query: str) -> list[Hit]:
        """Find passages."""
        text = "FAQ.\nQuestion: who built it? Rui did.\n\nQuestion: when?"
        chunk = Chunk(chunk_id="b", doc_id="b", title="Brisa", text=text, start=0, end=len(text), content_hash="b")
        return [Hit(chunk=chunk, score=1.0)]

    found = ReActAgent(ExpertModel(ByteTokenizer(), [question]), [search], few_shot=0).invoke(question)
    assert (found.status, found.answer) == ("answered", "Rui"), found.trajectory.error


def test_an_answer_that_no_search_found_is_not_grounded(tmp_path: Path) -> None:
    world = World.generate(entities=100, train=30, heldout=10)

    def search(query: str) -> str:
        """Find passages."""
        return "Nothing of the kind is known."

    agent = ReActAgent(ExpertModel(ByteTokenizer(), world.train), [search], few_shot=0)
    assert not any(grounded(t) for t in rollout(agent, world.train, out=tmp_path / "run"))


def test_a_labelled_question_is_looked_up_by_its_titles_the_named_one_first() -> None:
    question = Question(
        id="q", question="Who directed Ed Wood?", answers=["Tim Burton"], gold_titles=["Tim Burton", "Ed Wood (film)"]
    )
    turns = gold_script(question, {"Tim Burton": 3, "Ed Wood (film)": 1})
    assert [t[2] for t in turns[:2]] == [{"query": "Ed Wood (film)"}, {"query": "Tim Burton"}]
    assert turns[-1][1:] == ("finish", {"answer": "Tim Burton", "citations": [1, 3]})


def test_a_title_that_nobody_could_guess_is_found_through_the_question() -> None:
    question = Question(id="q", question="How many sacks were there?", answers=["11"], gold_titles=["Super Bowl 50"])
    assert gold_script(question, {"Super Bowl 50": 1})[0][2] == {"query": "How many sacks were there?"}


def test_the_other_script_asks_the_question_and_then_for_what_was_not_shown() -> None:
    question = Question(
        id="q", question="Who directed Ed Wood?", answers=["Tim Burton"], gold_titles=["Tim Burton", "Ed Wood (film)"]
    )
    asked = {"query": question.question}
    assert [t[2] for t in search_then_follow(question, {})[:-1]] == [
        asked,
        {"query": "Ed Wood"},
        {"query": "Tim Burton"},
    ]
    assert [t[2] for t in search_then_follow(question, {"Ed Wood (film)": 2})[:-1]] == [asked, {"query": "Tim Burton"}]
    found = search_then_follow(question, {"Ed Wood (film)": 2, "Tim Burton": 1})
    assert [t[1] for t in found] == ["search", "finish"] and found[-1][2]["citations"] == [2, 1]


def test_the_rereading_expert_says_the_question_on_one_line_before_it_answers() -> None:
    question = Question(id="q", question="Who directed\nEd Wood?", answers=["Tim Burton"], gold_titles=["Ed Wood"])
    *before, (thought, *rest) = search_then_reread(question, {"Ed Wood": 1})
    *plainly, (without, *same) = search_then_follow(question, {"Ed Wood": 1})
    assert (before, rest) == (plainly, same)
    assert thought == f"Who directed Ed Wood? {without}"


def test_a_pilots_expert_follows_the_script_that_it_is_given(tmp_path: Path) -> None:
    world = World.generate(entities=100, train=30, heldout=10)
    titles = [d.title for d in world.documents[:3]]
    asked = [Question(id="q", question="Who?", answers=["a"], gold_titles=titles)]
    pilot = Pilot(script=search_then_follow)
    agent = ReActAgent(ExpertModel(ByteTokenizer(), asked), [reader(world)], few_shot=0, observation_tokens=4000)
    made = pilot.guided(agent, pilot.choose(asked, 0)).invoke(asked[0]).trajectory
    assert [step.action.arguments["query"] for step in made.calls() if step.action] == ["Who?", *titles]
    assert [c.doc_id for c in made.citations] == [d.id for d in world.documents[:3]]
    assert "script" not in plain(Pilot()) and plain(pilot)["script"].endswith("search_then_follow")
    with pytest.raises(RestillError, match="script="):
        Pilot(script=search_then_follow, guide=str)


def test_a_longer_title_is_not_taken_for_the_one_that_it_begins_with() -> None:
    asked = [Question(id="q", question="Who?", answers=["a"], gold_titles=["Ed Wood", "Boston"])]
    model = ExpertModel(ByteTokenizer(), asked, search_then_follow)
    seen = "Question: Who?\nObservation: [1] Ed Wood (film): It is. [2] Boston University is old. [3] Boston is a city."

    def say(shown: str) -> str:
        request = Request(prompt=tuple(ByteTokenizer().encode(shown)))
        return asyncio.run(model.agenerate_tokens(request)).text

    first = say("Question: Who?")
    second = say(f"{first}{seen}\n{first}")
    assert '"Who?"' in first and '"Ed Wood"' in second
    assert '"citations": [3]' in say(f"{seen}\n{first}\n{second}")


def test_without_titles_or_answers_there_is_no_expert() -> None:
    with pytest.raises(RestillError, match="gold_titles"):
        gold_script(Question(id="q", question="Why?", answers=["so"]), {})
