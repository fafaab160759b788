"""What the expert quotes before it answers: words of the passages, the last of them the answer, within a thought."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.agents.grammar import MAX_THOUGHT
from restill.agents.protocol import parse
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.rollout import rollout
from restill.agents.testing import ByteTokenizer
from restill.models.errors import RestillError
from restill.retrieval.types import Chunk, Hit
from restill.selftrain.expert import ExpertModel, search_then_follow
from restill.selftrain.pilot import Pilot
from restill.selftrain.plain import plain
from restill.selftrain.quotes import quoting_thought

KESTREL = ("Kestrel", "The Kestrel is an engine. Like the Heron, it was built by Hallow Works in Essen.")
HALLOW = ("Hallow Works", "Hallow Works was founded by Ada Brann, who was born in 1851. Ada Brann kept bees.")
NAMES = ["Kestrel", "Hallow Works"]


def thought(question: str, answer: str, *passages: tuple[str, str]) -> str:
    return quoting_thought(Question(id="q", question=question, answers=[answer]), NAMES, passages)


def test_the_first_quote_leads_to_the_second_which_ends_with_the_answer() -> None:
    assert thought("Who founded the maker of the Kestrel?", "Ada Brann", KESTREL, HALLOW) == (
        '"Like the Heron, it was built by Hallow Works" "Hallow Works was founded by Ada Brann" '
        "So the answer is Ada Brann."
    )


def test_of_many_places_that_hold_the_answer_the_one_most_like_the_question_is_quoted() -> None:
    assert '"Ada Brann" So' in thought("Which woman kept bees?", "Ada Brann", HALLOW)
    assert '"Hallow Works was founded by Ada Brann" So' in thought("Who founded Hallow Works?", "ada Brann", HALLOW)


@pytest.mark.parametrize(
    ("question", "answer"), [("Are both old?", "yes"), ("Which is it, Kestrel or Heron?", "Kestrel")]
)
def test_where_no_words_are_the_answer_the_beginnings_of_two_are_quoted(question: str, answer: str) -> None:
    quotes = re.findall(r'"([^"]+)"', thought(question, answer, KESTREL, HALLOW))
    assert [text.startswith(quote) for quote, (_, text) in zip(quotes, (KESTREL, HALLOW), strict=True)] == [True, True]


WORDS = st.lists(st.sampled_from("the Kestrel Hallow Works founded. by Ada Brann in Essen 1851 it, was".split()))


@given(first=WORDS, second=WORDS, answer=st.sampled_from(["Ada Brann", "1851", "Essen", "no", "in Essen 1851 " * 20]))
def test_a_thought_holds_words_of_the_passages_only_and_fits(first: list[str], second: list[str], answer: str) -> None:
    answer, passages = answer.strip(), [("Kestrel", " ".join(first)), ("Hallow Works", " ".join(second))]
    said = thought("Where was it founded?", answer, *passages)
    assert len(said) <= MAX_THOUGHT and f"So the answer is {answer}."[: MAX_THOUGHT - 4] in said
    *quotes, _ = said.split("So the answer is ")[0].split('" ')
    assert len(quotes) <= 2
    for quote in quotes:
        assert any(quote.removeprefix('"') in text for _, text in passages)
    held = [text for _, text in passages if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)]
    if held and len(answer) < 20:
        assert quotes[-1].endswith(answer)


def test_an_agents_expert_quotes_what_it_was_shown(tmp_path: Path) -> None:
    def search(query: str) -> list[Hit]:
        """Find passages."""
        chunks = [
            Chunk(chunk_id=title, doc_id=title, title=title, text=text, start=0, end=len(text), content_hash=title)
            for title, text in (("Heron", "The Heron is by Ada Brann."), KESTREL, HALLOW)
        ]
        return [Hit(chunk=chunk, score=1.0) for chunk in chunks]

    asked = Question(id="q", question="Who founded the maker of the Kestrel?", answers=["Ada Brann"], gold_titles=NAMES)
    pilot = Pilot(script=search_then_follow, quotes=True)
    agent = ReActAgent(ExpertModel(ByteTokenizer(), []), [search], few_shot=0, observation_tokens=4000)
    [trajectory] = rollout(pilot.guided(agent, [asked]), [asked], out=tmp_path / "run")
    last = parse(trajectory.steps[-1].samples[0].text)
    assert last.thought == thought(asked.question, "Ada Brann", KESTREL, HALLOW)
    assert (
        pilot.guided(agent, [asked]).fingerprint != Pilot(script=search_then_follow).guided(agent, [asked]).fingerprint
    )


def test_jobs_without_quotes_go_on_and_what_cannot_quote_is_refused() -> None:
    assert "quotes" not in plain(Pilot()) and plain(Pilot(quotes=True))["quotes"]
    with pytest.raises(RestillError, match="quotes="):
        Pilot(quotes=True, guide=str)
