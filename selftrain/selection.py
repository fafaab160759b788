"""Which trajectories to learn from: the best of each question, or as many drawn blindly."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..agents.question import Question
from ..agents.trajectory import Trajectory
from .feedback import VETO, Ranker
from .mixture import is_good


@dataclass(frozen=True)
class Kept:
    """A trajectory that was chosen, and its score."""

    trajectory: Trajectory
    score: float


def select(
    ranker: Ranker,
    questions: Iterable[Question],
    trajectories: Iterable[Trajectory],
    *,
    keep_per_question: int = 1,
    keep_share: float = 1.0,
) -> list[Kept]:
    """Rank the trajectories of each question and keep the best: the reward filter.

    Two that say the same count once. Ties go to the lower sample index; the order is that of
    ``questions``.
    """
    by_question: dict[str, list[Trajectory]] = {}
    for t in sorted(trajectories, key=lambda t: t.sample):
        by_question.setdefault(t.question_key, []).append(t)
    groups: list[list[Kept]] = []
    for question in questions:
        candidates = by_question.get(question.key, [])
        if not candidates:
            continue
        seen = question if ranker.needs_labels else question.without_labels()
        scores = ranker.rank(seen, candidates)
        kept: dict[tuple[Any, ...], Kept] = {}
        for score, t in sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0]):
            if score != VETO and _teaches(t):
                kept.setdefault(said(t), Kept(t, score))
        if kept:
            groups.append(list(kept.values())[:keep_per_question])
    best = sorted(range(len(groups)), key=lambda i: -groups[i][0].score)
    chosen = set(best[: max(1, round(keep_share * len(groups)))])
    return [kept for i, group in enumerate(groups) if i in chosen for kept in group]


def select_random(trajectories: Iterable[Trajectory], count: int, *, seed: int) -> list[Kept]:
    """``count`` trajectories drawn without looking at them: the control. Two that say the same count once."""
    listed = sorted((t for t in trajectories if _teaches(t)), key=lambda t: t.key, reverse=True)
    pool = list({(t.question_key, said(t)): t for t in listed}.values())[::-1]
    return [Kept(t, 0.0) for t in random.Random(f"control {seed}").sample(pool, min(count, len(pool)))]


def said(trajectory: Trajectory) -> tuple[Any, ...]:
    """All that the model read and wrote, as token ids; of a model without them the turns that it wrote."""
    return tuple(trajectory.token_ids()) or tuple(step.sample.text for step in trajectory.steps)


def _teaches(trajectory: Trajectory) -> bool:
    return any(is_good(step) and (step.sample.tokens or trajectory.text_only) for step in trajectory.steps)
