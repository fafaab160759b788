"""Rewards: how right a trajectory is, between 0 and 1 (the likelihood of the answer in TRICE's posterior)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from ..agents.question import Question
from ..agents.scores import normalise
from ..agents.trajectory import Trajectory

Reward = Callable[[Question, Trajectory], float]
"""From a question with its answers and a trajectory to a number of at least 0."""

_LETTER = re.compile(r"\(?([A-Z])\)?")
_ASIDE = re.compile(r"[\s,$%]")


def right(question: Question, trajectory: Trajectory) -> float:
    """1 for an answer given by the agent's own decision that is one of the question's (numbers compare as numbers)."""
    if trajectory.status != "answered" or trajectory.forced or trajectory.answer is None:
        return 0.0
    return float(same_answer(trajectory.answer, question.answers))


def same_answer(said: str, golds: Sequence[str]) -> bool:
    """Exact match as SQuAD has it, but "-5" is not "5", "1,000" is "1000.0", and the option "(A)" is no article."""
    return canonical(said) in {canonical(gold) for gold in golds}


def canonical(text: str) -> str:
    """One spelling for answers that are the same: of a number, an option's letter, or words."""
    if (option := _LETTER.fullmatch(text.strip())) is not None:
        return option[1]
    number = _number(text)
    return normalise(text) if number is None else str(number.normalize() + 0)


def _number(text: str) -> Decimal | None:
    try:
        found = Decimal(_ASIDE.sub("", text))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
