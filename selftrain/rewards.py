"""Rewards: how right a trajectory is, between 0 and 1 (the likelihood of the answer in TRICE's posterior)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..agents.question import Question
from ..agents.scores import normalise
from ..agents.trajectory import Trajectory

Reward = Callable[[Question, Trajectory], float]
"""From a question with its answers and a trajectory to a number of at least 0."""

_LETTER = re.compile(r"\(?([A-Z])\)?")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?\$?|\$[-+])\s?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)\s?%?"
)


def right(question: Question, trajectory: Trajectory) -> float:
    """1 for an answer given by the agent's own decision that is one of the question's (numbers compare as numbers)."""
    if trajectory.status != "answered" or trajectory.forced or trajectory.answer is None:
        return 0.0
    return float(same_answer(trajectory.answer, question.answers))


def same_answer(said: str, golds: Sequence[str]) -> bool:
    """Exact match as SQuAD has it, but "-5" is not "5", "1,000" is "1000.0", "1, 2" is not "12", the option "(A)" is no
    article, and marks are compared where there is nothing else."""
    return canonical(said) in {canonical(gold) for gold in golds}


def canonical(text: str) -> str:
    """One spelling for answers that are the same: of a number, an option's letter, or words."""
    text = text.strip()
    if (option := _LETTER.fullmatch(text)) is not None:
        return option[1]
    if (number := _NUMBER.fullmatch(text)) is not None:
        whole, _, part = number["digits"].replace(",", "").partition(".")
        value = f"{whole.lstrip('0') or '0'}.{part.rstrip('0')}".rstrip(".")
        return f"#-{value}" if "-" in number["sign"] and value != "0" else f"#{value}"  # words hold no "#"
    return normalise(text) or text
