"""How good a step's sample is, told from labels: the right entity asked for, the right links, the right answer.

It goes by the names of an action's arguments, so it reads ReAct turns and a search agent's steps alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..agents.question import Question
from ..agents.scores import exact_match, normalise
from ..agents.trajectory import Action, Passage, Step
from ..models.errors import RestillError
from .choice import Choice
from .world_relations import RELATIONS

GOOD = 1.0
"""From here on a sample does what should be done at its step."""

_WRONG, _WANDERING, _GUESS, _RIGHT = 0.0, 0.25, 0.5, 1.0
_LINKS = ("selected_link_ids", "link_ids", "links", "selected")
_ANSWERS = ("answer", "revised_answer")


@dataclass(frozen=True)
class Hop:
    """What a question needs to be looked up: the entity's title, its document, what to ask for, if known."""

    entity: str
    document: str = ""
    wanted: str = ""
    query: str = ""


def hops(question: Question) -> list[Hop]:
    """What must be looked up, in order where a World's plan gives one.

    Raises:
        RestillError: the question has no answers, or neither a plan nor gold documents.
    """
    plan = question.metadata.get("plan") or []
    titles = [step["entity"] for step in plan] or question.gold_titles
    if not question.answers or not (titles or question.gold):
        raise RestillError(
            f"question {question.id!r} has no answers or no gold documents; a gold ranker needs both, "
            "another needs neither"
        )
    count = max(len(titles), len(question.gold))
    documents = [*question.gold, *[""] * count][:count]
    named = [*titles, *documents[len(titles) :]]
    queries = [step["query"] for step in plan] or [""] * count
    nouns = [RELATIONS[step["relation"]].noun for step in plan] or [""] * count
    return [
        Hop(entity, document, noun, query)
        for entity, document, noun, query in zip(named, documents, nouns, queries, strict=False)
    ]


def missing(question: Question, steps: Sequence[Step]) -> list[Hop]:
    """The hops whose document the steps have not shown (a search agent: not selected), in order."""
    shown = [p for step in steps if step.observation for p in step.observation.passages]
    picked = [set(_links(step.action) or ()) for step in steps if step.kind == "summarise" and step.action]
    if any(step.kind for step in steps):
        shown = [p for p in shown if any(p.handle in handles for handles in picked)]
    return [hop for hop in hops(question) if not any(_is(hop, passage) for passage in shown)]


def quality(choice: Choice, place: int) -> float:
    """How good one sample is; :data:`GOOD` or more: right, below: not, minus 1: it cannot be read.

    - a search is right when it names what must be looked up next, and better when it asks for the right relation;
    - an answer is right when it is the gold answer and everything has been read; before, it is a guess;
    - ending the search is right when nothing is left to look up;
    - links are right when they are the gold documents among those shown;
    - a check is right when it passes a right answer, or revises a wrong one into a right one.

    Raises:
        RestillError: the question has no labels.
    """
    question, step, action = choice.question, choice.step, choice.actions[place]
    before = choice.trajectory.steps[: choice.index]
    left = missing(question, before)
    if not choice.readable[place] or action is None:
        return -1.0
    arguments = action.arguments
    if (links := _links(action)) is not None:
        return _selection(question, before, links)
    if (said := next((arguments[n] for n in _ANSWERS if isinstance(arguments.get(n), str)), None)) is not None:
        right = _states(said, question)
        return (2 * _RIGHT if not left else _GUESS) if right else _WRONG
    if isinstance(arguments.get("passed"), bool):
        draft = next((s.action for s in reversed(before) if s.action and _answer(s.action) is not None), None)
        right = draft is not None and _states(_answer(draft) or "", question)
        return _RIGHT if arguments["passed"] == right else _WRONG
    if isinstance(query := arguments.get("query"), str):
        return _search(query, left, ordered=bool(question.metadata.get("plan")), before=before)
    return (_RIGHT if not left else _WRONG) if step.kind == "decide" else _WANDERING


def _search(query: str, left: list[Hop], *, ordered: bool, before: Sequence[Step]) -> float:
    said = f" {normalise(query)} "
    again = any(s.action and normalise(str(s.action.arguments.get("query", ""))) == said.strip() for s in before)
    if not left or again:
        return _WRONG
    for hop in left[:1] if ordered else left:
        if f" {normalise(hop.entity)} " in said:
            return _RIGHT + 0.5 * bool(hop.wanted and normalise(hop.wanted) in said)
    return _WANDERING


def _selection(question: Question, before: Sequence[Step], links: Sequence[int]) -> float:
    shown = next((s.observation.passages for s in reversed(before) if s.observation), [])
    wanted = {p.handle for p in shown if any(_is(hop, p) for hop in missing(question, before))}
    chosen = set(links)
    if chosen == wanted:
        return _RIGHT
    common = len(chosen & wanted)
    return 0.9 * 2 * common / (len(chosen) + len(wanted))


def _states(said: str, question: Question) -> bool:
    """Exact, or the gold answer within a long-form answer that is not a list of candidates."""
    if exact_match(said, question.answers):
        return True
    text = f" {normalise(said)} "
    hedged = any(word in f" {said.lower()} " for word in (" or ", " either ", " perhaps ", " maybe "))
    return not hedged and any(f" {normalise(answer)} " in text for answer in question.answers)


def _is(hop: Hop, passage: Passage) -> bool:
    if hop.document and passage.doc_id == hop.document:
        return True
    return bool(passage.title) and normalise(passage.title) == normalise(hop.entity)


def _links(action: Action) -> Sequence[int] | None:
    value = next((action.arguments[name] for name in _LINKS if name in action.arguments), None)
    return value if isinstance(value, list) else None


def _answer(action: Action) -> str | None:
    value = next((action.arguments[name] for name in _ANSWERS if name in action.arguments), None)
    return value if isinstance(value, str) else None
