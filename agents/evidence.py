"""What a trajectory has read of the evidence, and where its question was lost if its answer is wrong."""

from __future__ import annotations

from typing import Literal

from ..retrieval.write import folded
from .question import Question
from .scores import exact_match
from .trajectory import Trajectory

Loss = Literal["format", "retrieval", "hop", "reading"]
LOSSES: tuple[Loss, ...] = ("format", "retrieval", "hop", "reading")


def evidence_recall(question: Question, trajectory: Trajectory) -> float | None:
    """Share of the question's gold documents among those retrieved, by id, or by title where it gives no ids.

    ``None``: the question names neither.
    """
    if question.gold:
        wanted, found = set(question.gold), set(trajectory.doc_ids())
    elif question.gold_titles:
        wanted = {folded(title) for title in question.gold_titles}
        found = {folded(passage.title) for passage in trajectory.passages()}
    else:
        return None
    return len(wanted & found) / len(wanted)


def lost_to(question: Question, trajectory: Trajectory) -> Loss | None:
    """Where a wrong answer went wrong; ``None`` for a right one, or where the question names no gold documents.

    "format": the run ended without an answer of its own; else "retrieval": none of the gold documents was retrieved;
    "hop": some but not all were; "reading": all were.
    """
    recall = evidence_recall(question, trajectory)
    if recall is None or exact_match(trajectory.answer, question.answers):
        return None
    if trajectory.status != "answered" or trajectory.forced:
        return "format"
    return "retrieval" if recall == 0 else "hop" if recall < 1 else "reading"
