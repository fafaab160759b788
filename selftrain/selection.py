"""Which trajectories to learn from: the best of each question, or as many drawn blindly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..agents.question import Question
from ..agents.run import Run
from ..agents.trajectory import Key, Trajectory
from ..models.errors import RestillError
from .feedback import VETO, Ranker
from .files import hash_json
from .mixture import is_good


@dataclass(frozen=True)
class Kept:
    """A trajectory that was chosen, by its key, and its score."""

    key: Key
    score: float


def select(
    ranker: Ranker,
    questions: Iterable[Question],
    run: Run | Iterable[Trajectory],
    *,
    keep_per_question: int = 1,
    keep_share: float = 1.0,
    fit: Callable[[Trajectory], bool] = lambda trajectory: True,
) -> list[Kept]:
    """Rank the trajectories of each question and keep the best: the reward filter.

    Two that say the same count once. Ties go to the lower sample index; the order is that of ``questions``. Of a run
    those of one question are in memory at a time.

    Args:
        fit: what else a trajectory must be.

    Raises:
        RestillError: two trajectories have one key.
    """
    found = _by_question(run)
    groups: list[list[Kept]] = []
    for question in questions:
        candidates = [t for t in found(question.key) if fit(t)]
        if not candidates:
            continue
        seen = question if ranker.needs_labels else question.without_labels()
        scores = ranker.rank(seen, candidates)
        kept: dict[tuple[Any, ...], Kept] = {}
        for score, t in sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0]):
            if score != VETO and _teaches(t):
                kept.setdefault(said(t), Kept(t.key, score))
        if kept:
            groups.append(list(kept.values())[:keep_per_question])
    best = sorted(range(len(groups)), key=lambda i: -groups[i][0].score)
    chosen = set(best[: max(1, round(keep_share * len(groups)))])
    return [kept for i, group in enumerate(groups) if i in chosen for kept in group]


def select_random(trajectories: Iterable[Trajectory], count: int, *, seed: int) -> list[Kept]:
    """``count`` trajectories drawn without looking at them: the control. Two that say the same count once."""
    first: dict[str, Key] = {}
    for t in trajectories:
        if _teaches(t):
            same = hash_json([t.question_key, said(t)])
            first[same] = min(first.get(same, t.key), t.key)
    pool = sorted(first.values())
    return [Kept(key, 0.0) for key in random.Random(f"control {seed}").sample(pool, min(count, len(pool)))]


def said(trajectory: Trajectory) -> tuple[Any, ...]:
    """All that the model read and wrote, as token ids; of a model without them the turns that it wrote."""
    return tuple(trajectory.token_ids()) or tuple(step.sample.text for step in trajectory.steps)


def _by_question(run: Run | Iterable[Trajectory]) -> Callable[[str], Iterator[Trajectory]]:
    """The trajectories of a question, by sample."""
    if isinstance(run, Run):
        known, get = run.keys(), run.get
    else:
        listed: dict[Key, Trajectory] = {}
        for t in run:
            if listed.setdefault(t.key, t) is not t:
                raise RestillError(f"two trajectories are {t.id}; select from one run at a time")
        known, get = set(listed), listed.get
    keys: dict[str, list[Key]] = {}
    for key in sorted(known, key=lambda key: (key.sample, key.agent)):
        keys.setdefault(key.question, []).append(key)
    return lambda question: filter(None, map(get, keys.get(question, [])))


def _teaches(trajectory: Trajectory) -> bool:
    return any(is_good(step) and (step.sample.tokens or trajectory.text_only) for step in trajectory.steps)
