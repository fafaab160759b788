"""What TRICE and its baselines have in common: how much to draw, how much to train on, what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ..agents.agent import Agent
from ..agents.question import Question
from ..models.errors import RestillError
from .latent import Latent
from .mixture import Mode
from .pilot import Pilot
from .plain import plain
from .rewards import Reward, right
from .trainer import TrainConfig

if TYPE_CHECKING:
    from .lab import Lab

Guide = Literal["answer", "expert"] | Callable[[Question], str]


@dataclass(frozen=True)
class Term:
    """One latent in a step's gradient: ``weight * grad log p(latent)``.

    Attributes:
        half: of the minibatch; the two halves' gradients differ by what the estimator varies.
    """

    latent: Latent
    weight: float
    half: int = 0


@dataclass(frozen=True)
class Terms:
    """What a step learns from.

    Attributes:
        terms: may be empty, which is a gradient of zero.
        facts: for the log.
        void: there is no estimate at all; the optimiser is left alone.
        reset: go back to the initial parameters and a fresh optimiser first.
        progress: where the schedule of the rate stands, 0 to 1; ``None``: where the job stands.
    """

    terms: list[Term]
    facts: dict[str, Any] = field(default_factory=dict)
    void: bool = False
    reset: bool = False
    progress: float | None = None


class Source(Protocol):
    """Where a method's terms come from, step by step."""

    def begin(self, lab: Lab) -> dict[str, Any]:
        """Everything before the first step; returns what the log should say."""
        ...

    def step(self, lab: Lab, step: int) -> Terms:
        """The terms of step number ``step``, from 0; the same ones again after a crash."""
        ...

    def state(self) -> Any:
        """Plain values that :meth:`restore` goes on from; saved in step with the parameters."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a saved state."""
        ...


@dataclass(frozen=True, kw_only=True)
class LatentMethod:
    """The knobs that all have.

    Attributes:
        steps: optimiser steps.
        minibatch: questions a step draws for.
        resampled: latents a step trains on, at most.
        reward: how right a trajectory is, at least 0; 0 and 1 unless the method takes grades.
        train: how to train; ``epochs``, ``accumulate`` and ``cache_gb`` have no meaning here. The rate follows its
            schedule over ``steps``.
        start: from the agent's own adapter (or the pilot's), or from the base model.
        pilot: how to begin; ``None``: with the agent as it is.
        slots, max_context: of the engine that draws.
        eval_every: also answer the held-out questions greedily every so many steps, for a learning curve; 0: never.
        sampled_tokens, trained_tokens: end when so many were drawn or trained on (0: no limit), to compare methods at
            equal cost.
    """

    arm: ClassVar[str] = ""  # what the report and the job's folder call it
    mode: ClassVar[Mode] = "trajectory"  # of the pilot's mixture
    online: ClassVar[bool] = True  # draws from the model at every step, so that a limit of drawn tokens ends it

    steps: int = 60
    minibatch: int = 32
    resampled: int = 16
    reward: Reward = right
    train: TrainConfig = field(default_factory=TrainConfig)  # rows as long as ``max_context``
    start: Literal["previous", "base"] = "previous"
    pilot: Pilot | None = None
    slots: int = 16
    max_context: int = 1024
    eval_every: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "minibatch": 1, "resampled": 1, "slots": 1, "max_context": 32}
        least |= {"eval_every": 0, "sampled_tokens": 0, "trained_tokens": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise RestillError(f"{name}={getattr(self, name)}: give at least {value}")
        if self.start not in ("previous", "base"):
            raise RestillError(f"start={self.start!r} is unknown; use 'previous' or 'base'")

    def check(self, agent: Agent, questions: Sequence[Question]) -> None:
        """Find what would fail, or teach nothing, later.

        Raises:
            RestillError: there is such a thing.
        """

    def source(self) -> Source:
        """A fresh source of this method's terms."""
        raise NotImplementedError

    def knobs(self) -> dict[str, Any]:
        """Every knob as plain values, for the manifest."""
        return {**plain(self), "arm": self.arm}
