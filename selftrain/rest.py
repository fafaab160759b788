"""ReST meets ReAct (Aksitov et al. 2312.10003), reward-filtered as in ReST (Gulcehre et al. 2308.08998).

Each generation grows (several trajectories per question), ranks them, keeps the best, and trains on what
was kept. :mod:`restill.selftrain.improve` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..models.errors import RestillError
from .feedback import GoldRanker, Ranker
from .mixture import Mode, check_mode
from .pilot import Pilot
from .plain import plain
from .step_rankers import StepRanker
from .trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ReST:
    """The method and its knobs.

    Attributes:
        samples, temperature: trajectories per question in a generation, and how they are drawn.
        ranker: orders the trajectories of one question; may veto. The paper's own mixture, every completed
            trajectory, is ``CompletedRanker()`` with ``keep_per_question=samples``.
        step_ranker: orders the samples of each step of what is kept; its first choice becomes the target of
            that step, and nothing else changes (off-policy, one pass). Worth it for agents that draw several samples.
        mode: a kept trajectory is one example, or each of its steps is (see ``Mixture.from_trajectories``).
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
    step_ranker: StepRanker | None = None
    mode: Mode = "trajectory"
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
        check_mode(self.mode)
        if self.start not in ("previous", "base"):
            raise RestillError(f"start={self.start!r} is unknown; use 'previous' or 'base'")

    def knobs(self) -> dict[str, Any]:
        """Every knob as plain values, for the manifest."""
        return plain(self)
