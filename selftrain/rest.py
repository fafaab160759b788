"""ReST meets ReAct (Aksitov et al. 2312.10003), reward-filtered as in ReST (Gulcehre et al. 2308.08998).

Each generation grows (several trajectories per question), ranks them, keeps the best, and trains on what
was kept. This file says what to keep; :mod:`restill.selftrain.improve` carries it out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from ..agents.question import Question
from ..agents.trajectory import Trajectory
from ..models.errors import RestillError
from .feedback import VETO, GoldRanker, Ranker
from .mixture import is_good
from .pilot import Pilot
from .trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ReST:
    """The method and its knobs.

    Attributes:
        samples, temperature: trajectories per question in a generation, and how they are drawn.
        ranker: orders the trajectories of one question; may veto.
        keep_per_question: the most to keep of one question.
        keep_share: of all questions with something to keep, the share whose best trajectory scores highest
            (for rankers without labels, whose scores compare across questions).
        start: every generation trains the previous adapter on, or a fresh one from the base model.
        replay: add the pilot's mixture to that of each generation.
        train: how to train.
        pilot: how to begin; ``None``: generation 1 is grown by the agent as it is.
    """

    generations: int = 1
    samples: int = 2
    temperature: float = 0.7
    ranker: Ranker = field(default_factory=GoldRanker)
    keep_per_question: int = 1
    keep_share: float = 1.0
    start: Literal["previous", "base"] = "previous"
    replay: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)
    pilot: Pilot | None = field(default_factory=Pilot)

    def __post_init__(self) -> None:
        if self.generations < 0 or self.samples < 1 or self.keep_per_question < 1:
            raise RestillError(
                f"generations={self.generations}, samples={self.samples}, "
                f"keep_per_question={self.keep_per_question}: "
                "give at least 0, 1 and 1"
            )
        if not 0 < self.keep_share <= 1:
            raise RestillError(f"keep_share={self.keep_share}: give a share above 0, at most 1")
        if self.start not in ("previous", "base"):
            raise RestillError(f"start={self.start!r} is unknown; use 'previous' or 'base'")

    def knobs(self) -> dict[str, Any]:
        """Every knob as plain values, for the manifest."""
        return _plain(self)


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

    Two with the same tokens count once. Ties go to the lower sample index; the order is that of
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
        kept: dict[tuple[int, ...], Kept] = {}
        for score, t in sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0]):
            if score != VETO and _teaches(t):
                kept.setdefault(tuple(t.token_ids()), Kept(t, score))
        if kept:
            groups.append(list(kept.values())[:keep_per_question])
    best = sorted(range(len(groups)), key=lambda i: -groups[i][0].score)
    chosen = set(best[: max(1, round(keep_share * len(groups)))])
    return [kept for i, group in enumerate(groups) if i in chosen for kept in group]


def select_random(trajectories: Iterable[Trajectory], count: int, *, seed: int) -> list[Kept]:
    """``count`` trajectories drawn without looking at them: the control."""
    pool = sorted((t for t in trajectories if _teaches(t)), key=lambda t: t.key)
    return [Kept(t, 0.0) for t in random.Random(f"control {seed}").sample(pool, min(count, len(pool)))]


def _teaches(trajectory: Trajectory) -> bool:
    return any(is_good(step) and (step.sample.tokens or trajectory.text_only) for step in trajectory.steps)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.repr}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Callable):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return {"kind": type(value).__name__, **{k: _plain(v) for k, v in sorted(vars(value).items())}}
