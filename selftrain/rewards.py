"""Rewards: how right a trajectory is, between 0 and 1 (the likelihood of the answer in TRICE's posterior)."""

from __future__ import annotations

from collections.abc import Callable

from ..agents.question import Question
from ..agents.scores import same_answer
from ..agents.trajectory import Trajectory

Reward = Callable[[Question, Trajectory], float]
"""From a question with its answers and a trajectory to a number of at least 0."""


def right(question: Question, trajectory: Trajectory) -> float:
    """1 for an answer given by the agent's own decision that is one of the question's (numbers compare as numbers)."""
    if trajectory.status != "answered" or trajectory.forced or trajectory.answer is None:
        return 0.0
    return float(same_answer(trajectory.answer, question.answers))
