"""Two invented runs, from which each format makes its few-shot examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...retrieval.types import Chunk, Hit, content_hash
from ..observation import Characters
from ..tool_results import ToolResult
from ..trajectory import StepKind
from .state import Answer, CheckAnswer, PastAction, Search, SearchState, Terminate

if TYPE_CHECKING:
    from .format import PromptFormat

SEARCHES = 10


@dataclass(frozen=True)
class Hop:
    """A search of an example: the thought, the query, the results (title, text), and which of them matter."""

    thought: str
    query: str
    results: tuple[tuple[str, str], ...]
    selected: tuple[int, ...]
    summary: str
    why: str


@dataclass(frozen=True)
class Example:
    """An example run."""

    question: str
    hops: tuple[Hop, ...]
    known: str
    answer: str
    cited: tuple[int, ...]


EXAMPLES: tuple[Example, ...] = (
    Example(
        question="What is the Ombrelline bridge made of?",
        hops=(
            Hop(
                thought="I need the material of the Ombrelline bridge.",
                query="Ombrelline bridge material",
                results=(
                    ("Ombrelline bridge", "The Ombrelline bridge is a footbridge of larch wood across the Tesk."),
                    ("Tesk", "The Tesk is a cold river."),
                ),
                selected=(1,),
                summary="The Ombrelline bridge is made of larch wood.",
                why="Link 1 names the material, link 2 is about the river.",
            ),
        ),
        known="The material is larch wood.",
        answer="larch wood",
        cited=(1,),
    ),
    Example(
        question="In which town was the composer of the opera Zinnabeth born?",
        hops=(
            Hop(
                thought="First I need the composer of Zinnabeth.",
                query="composer of the opera Zinnabeth",
                results=(
                    ("Zinnabeth", "Zinnabeth is an opera in two acts by Pellam Urquist."),
                    ("Opera in Gorrow", "Gorrow has one opera house."),
                ),
                selected=(1,),
                summary="The opera Zinnabeth is by Pellam Urquist.",
                why="Link 1 names the composer, link 2 is about a house.",
            ),
            Hop(
                thought="The composer is Pellam Urquist. Now I need his town of birth.",
                query="Pellam Urquist born",
                results=(
                    ("Wexmoor", "Wexmoor is a market town."),
                    ("Pellam Urquist", "Pellam Urquist was born in Wexmoor and studied in Gorrow."),
                ),
                selected=(4,),
                summary="Pellam Urquist was born in Wexmoor.",
                why="Link 4 tells where he was born, link 3 does not speak of him.",
            ),
        ),
        known="Pellam Urquist was born in Wexmoor.",
        answer="Wexmoor",
        cited=(1, 4),
    ),
)


def example_steps(number: int, format: PromptFormat) -> Iterator[tuple[StepKind, SearchState, PastAction]]:
    """The steps of an example: what is asked for, the state in which it is, and what is done."""
    example = EXAMPLES[number]
    state = SearchState(question=example.question, searches_left=SEARCHES)
    first = 1
    for hop in example.hops:
        yield from _step("decide", state, Search(query=hop.query, thoughts=hop.thought))
        state.searches_left -= 1
        text, items = format.show(_result(hop.results), first, Characters(), 1000)
        state.found(items, text)
        first += len(items)
        yield from _step("summarise", state, state.select(hop.selected, hop.summary, hop.why))
    yield from _step("decide", state, Terminate(thoughts=example.known))
    yield from _step("answer", state, Answer(answer=format.cite(example.answer, example.cited), thoughts=example.known))
    yield from _step("relevance", state, CheckAnswer(thoughts="The answer is what the question asks for."))
    yield from _step("grounding", state, CheckAnswer(thoughts="The selected links show the answer."))


def _step(kind: StepKind, state: SearchState, action: PastAction) -> Iterator[tuple[StepKind, SearchState, PastAction]]:
    yield kind, state, action
    state.apply(action)


def _result(texts: Sequence[tuple[str, str]]) -> ToolResult:
    hits = [
        Hit(
            chunk=Chunk(
                chunk_id=title,
                doc_id=title,
                title=title,
                text=text,
                start=0,
                end=len(text),
                content_hash=content_hash(title, text),
            ),
            score=1.0,
        )
        for title, text in texts
    ]
    return ToolResult(status="ok", hits=hits)
