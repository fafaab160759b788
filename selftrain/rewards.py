"""Rewards: how right a trajectory is, between 0 and 1 (the likelihood of the answer in TRICE's posterior)."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from ..agents.question import Question
from ..agents.scores import exact_match
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


def same_answer(said: str, golds: list[str]) -> bool:
    """Exact match as SQuAD has it, but "-5" is not "5", "1,000" is "1000.0", and the option "(A)" is no article."""
    options = [_LETTER.fullmatch(text.strip()) for text in (said, *golds)]
    if any(options[1:]):
        letters = [None if option is None else option[1] for option in options]
        others = [gold for gold, option in zip(golds, options[1:], strict=True) if option is None]
        return (letters[0] is not None and letters[0] in letters[1:]) or (bool(others) and same_answer(said, others))
    number = _number(said)
    wanted = [_number(gold) for gold in golds]
    if number is None or None in wanted:
        return exact_match(said, golds) > 0
    return number in wanted


def _number(text: str) -> Decimal | None:
    try:
        found = Decimal(_ASIDE.sub("", text))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
