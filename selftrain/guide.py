"""The World's teacher: the plan of a question as a hint, and the steps an expert would take."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from ..agents.question import Question
from ..models.errors import RestillError
from .world_relations import RELATIONS

_FIRST = ("I need the {noun} of {x}.", "First I need the {noun} of {x}.", "I look for the {noun} of {x}.")
_NEXT = ("I need the {noun} of {x}.", "Now I need the {noun} of {x}.", "Next is the {noun} of {x}.")
_LAST = ("", "That is the answer.", "So the answer is {answer}.")

MOST_WORDS = 15  # of a thought


def hint(question: Question) -> str:
    """One line that tells the plan: ``Plan: search "founder of Kestrel Works"; …; answer "Oslo Bay".``

    Raises:
        RestillError: the question has no plan in its metadata (it is not from a World).
    """
    plan = _plan(question)
    searches = "; ".join(f'search "{step["query"]}"' for step in plan)
    return f'Plan: {searches}; answer "{plan[-1]["yields"]}".'


def expert(question: Question, handles: Mapping[str, int] | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """The steps of one who knows the plan: (thought, action name, arguments); the last action is ``finish``.

    Every thought says what the last search told and what is missing, in at most 15 words; the wording varies
    with the question and is the same on every call.

    Args:
        question: a question of a World.
        handles: document id -> number under which an observation showed it; the gold ones are cited.

    Raises:
        RestillError: the question has no plan in its metadata.
    """
    plan = _plan(question)
    rng = random.Random(f"restill-expert {question.id} {question.question}")
    steps: list[tuple[str, str, dict[str, Any]]] = []
    known = [""]  # ways to say what the last search told
    for number, step in enumerate(plan):
        relation = RELATIONS[step["relation"]]
        wanted = rng.choice(_NEXT if number else _FIRST).format(noun=relation.noun, x=step["spoken"])
        steps.append((_thought(known, wanted, rng), "search", {"query": step["query"]}))
        told = relation.statement.format(x=step["spoken"], o=step["spoken_yields"])
        known = [told[0].upper() + told[1:], f"The {relation.noun} is {step['spoken_yields']}."]
    answer = plan[-1]["yields"]
    citations = [handles[doc] for doc in question.gold if handles and doc in handles]
    ending = rng.choice(_LAST).format(answer=answer)
    steps.append((_thought(known, ending, rng), "finish", {"answer": answer, "citations": citations}))
    return steps


def _thought(known: list[str], then: str, rng: random.Random) -> str:
    ways = [f"{way} {then}".strip() for way in known]
    return rng.choice([way for way in ways if len(way.split()) <= MOST_WORDS] or ways[-1:])


def _plan(question: Question) -> list[dict[str, str]]:
    plan = question.metadata.get("plan")
    if not plan:
        raise RestillError(f"question {question.id!r} has no plan in its metadata; take questions from World.generate")
    return plan
