"""How good a step's sample is, told from labels: the right entity asked for, the right links, the right answer.

It reads ReAct turns and a search agent's steps (search, select, terminate, finish, check, revise) alike.
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

_WRONG, _WANDERING, _GUESS, _NEEDLESS, _RIGHT, _READ = 0.0, 0.25, 0.5, 0.9, 1.0, 2.0


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
    picked = [set(_links(step.action)) for step in steps if step.kind == "summarise" and step.action]
    if any(step.kind for step in steps):
        shown = [p for p in shown if any(p.handle in handles for handles in picked)]
    return [hop for hop in hops(question) if not any(_is(hop, passage) for passage in shown)]


def quality(choice: Choice, place: int) -> float:
    """How good one sample is; :data:`GOOD` or more: right, below: not, minus 1: it cannot be read.

    - a search is right when it names what must be looked up next, and better when it asks for the right relation;
    - an answer is right when it is the gold answer; while more could be looked up, it is a guess;
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
    if step.kind == "summarise":
        return _selection(question, before, _links(action))
    if step.kind in ("relevance", "grounding"):
        return _check(question, before, action)
    if (said := _answer(action)) is not None:
        if not _states(said, question):
            return _WRONG
        late = step.kind == "answer"  # nothing can be looked up any more
        return _READ if not left else _RIGHT if late else _GUESS
    if (query := _query(action)) is not None:
        return _search(query, left, ordered=bool(question.metadata.get("plan")), before=before)
    return _RIGHT if not left else _WRONG  # it ends the search


def _check(question: Question, before: Sequence[Step], action: Action) -> float:
    drafts = (_answer(s.action) for s in reversed(before) if s.action is not None)
    was_right = _states(next((draft for draft in drafts if draft is not None), ""), question)
    revised = _answer(action)
    if revised is None:
        return _RIGHT if was_right else _WRONG
    return (_NEEDLESS if was_right else _RIGHT) if _states(revised, question) else _WRONG


def _search(query: str, left: list[Hop], *, ordered: bool, before: Sequence[Step]) -> float:
    said = f" {normalise(query)} "
    again = any(s.action and normalise(_query(s.action) or "") == said.strip() for s in before)
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


def _links(action: Action) -> list[int]:
    value = action.arguments.get("links")
    return value if isinstance(value, list) else []


def _answer(action: Action) -> str | None:
    value = action.arguments.get("answer")
    return value if isinstance(value, str) else None


def _query(action: Action) -> str | None:
    """Of a search: the argument ``query``, or the only one there is."""
    value = action.arguments.get("query", next(iter(action.arguments.values()), None))
    other = {"answer", "links"} & action.arguments.keys()
    return value if isinstance(value, str) and not other else None
