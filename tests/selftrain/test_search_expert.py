"""The scripted expert of the search agent is right when it makes no mistakes, and mistaken as often as it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from restill.agents.question import Question
from restill.agents.scores import exact_match
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ByteTokenizer
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.retrieval.types import Chunk, Document, Hit, content_hash
from restill.selftrain.search_expert import SearchExpertModel
from restill.selftrain.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(entities=100, train=60, heldout=10)


def reader(documents: list[Document]) -> Callable[[str], list[Hit]]:
    """Finds the three documents that share most words with the query, those it names first."""
    chunks = [
        Chunk(
            chunk_id=d.id,
            doc_id=d.id,
            title=d.title,
            text=d.text,
            start=0,
            end=len(d.text),
            content_hash=content_hash(d.title, d.text),
        )
        for d in documents
    ]

    def search(query: str) -> list[Hit]:
        """Find passages."""
        words = set(query.lower().split())

        def badness(chunk: Chunk) -> int:
            return -len(words & set(f"{chunk.title} {chunk.text}".lower().split())) - 10 * (chunk.title in query)

        return [Hit(chunk=chunk, score=1.0) for chunk in sorted(chunks, key=badness)[:3]]

    return search


def runs(documents: list[Document], questions: list[Question], format: str, **options: float) -> list[Trajectory]:
    model = SearchExpertModel(ByteTokenizer(), questions, format=format, noise=options.get("noise", 0.0))
    agent = SearchAgent(
        model, [reader(documents)], format=format, few_shot=0, samples=1, observation_tokens=4000, step_tokens=2000
    )
    return [result.trajectory for result in agent.batch(list(questions))]


@pytest.mark.parametrize("format", ["compact", "code"])
def test_on_a_world_it_is_right_cites_the_whole_chain_and_gives_nothing_away(world: World, format: str) -> None:
    for question, trajectory in zip(world.train, runs(world.documents, world.train, format), strict=True):
        assert (trajectory.status, trajectory.answer) == ("answered", question.answers[0]), trajectory.error
        assert {c.doc_id for c in trajectory.citations} == set(question.gold) and not trajectory.dropped_citations
        first = ByteTokenizer().decode(trajectory.prompt0)
        assert question.answers[0] not in first
        # Each summary stands in a passage that was selected: the fact's object is named there.
        for step in trajectory.steps:
            if step.kind == "summarise" and step.action and step.action.arguments["links"]:
                assert step.action.arguments["summary"] != "The results do not tell it."


def test_its_mistakes_cost_answers_and_the_checks_bring_some_back(world: World) -> None:
    by_text = {q.question: q for q in world.train}

    def right(trajectories: list[Trajectory], draft: bool = False) -> int:
        return sum(exact_match(t.draft if draft else t.answer, by_text[t.question].answers) == 1 for t in trajectories)

    noisy = runs(world.documents, world.train, "compact", noise=0.25)
    worse = runs(world.documents, world.train, "compact", noise=0.6)
    assert 0.3 * 60 <= right(noisy) <= 0.6 * 60 and right(worse) < right(noisy)
    assert right(noisy, draft=True) < right(noisy)
    assert all(t.status == "answered" for t in noisy + worse), "a mistake is plausible, never unreadable"
    again = runs(world.documents, world.train, "compact", noise=0.25)
    assert [t.token_ids() for t in again] == [t.token_ids() for t in noisy]


@pytest.mark.parametrize("format", ["compact", "code"])
def test_a_labelled_question_is_answered_from_its_titles_and_only_if_they_were_found(format: str) -> None:
    documents = [
        Document(id="a", title="Ed Wood (film)", text="Ed Wood is a film. It was directed by Tim Burton in 1994."),
        Document(id="b", title="Tim Burton", text="Tim Burton was born in Burbank. Question: who is he? Answer: X"),
    ]
    question = Question(
        id="q",
        question="Where was the director of Ed Wood born?",
        answers=["Burbank"],
        gold_titles=["Ed Wood (film)", "Tim Burton"],
    )
    [found] = runs(documents, [question], format)
    assert (found.answer, [c.doc_id for c in found.citations]) == ("Burbank", ["a", "b"])
    summaries = [s.action.arguments["summary"] for s in found.steps if s.kind == "summarise" and s.action]
    assert "Tim Burton was born in Burbank." in summaries[-1]
    [lost] = runs(documents[:1], [question], format)
    assert lost.status == "answered" and lost.answer != "Burbank", "it answered what it has not read"


def test_it_refuses_what_it_was_not_given(world: World) -> None:
    with pytest.raises(RestillError, match="noise"):
        SearchExpertModel(ByteTokenizer(), [], noise=1.5)
    with pytest.raises(RestillError, match="format"):
        SearchExpertModel(ByteTokenizer(), [], format="xml")
    agent = SearchAgent(SearchExpertModel(ByteTokenizer(), []), [reader(world.documents)], few_shot=0)
    result = agent.invoke("Who?")
    assert result.status == "error" and "was not given the question" in (result.trajectory.error or "")


def test_a_search_that_finds_nothing_ends_in_an_answer_too(world: World) -> None:
    def search(query: str) -> list[Hit]:
        """Find passages."""
        return []

    model = SearchExpertModel(ByteTokenizer(), world.train)
    agent = SearchAgent(model, [search], few_shot=0, samples=1, observation_tokens=4000, step_tokens=2000)
    result = agent.invoke(world.train[0])
    assert result.status == "answered" and result.citations == [] and len(result.trajectory.calls("search")) > 1
