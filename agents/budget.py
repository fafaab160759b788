"""What a run may spend, and the meter of one run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..models.errors import RestillError

FINISH_SHARE = 0.15
"""Share of the seconds kept back for the one last, best-effort answer."""


@dataclass(frozen=True)
class Budget:
    """Limits of one run. Running out is a status with a best-effort answer, never an exception.

    Attributes:
        steps: model turns; one further call, under a grammar that only allows ``finish``, gives the
            best-effort answer.
        tokens: length of the whole transcript (prompt, generated tokens and observations), the last call
            included. ``None``: as much as the model's context holds.
        seconds: wall time; its last 15 % are kept for the best-effort answer. ``None``: no limit.
        per_tool: calls allowed per tool name; further calls are answered with an error and not carried out.
    """

    steps: int = 6
    tokens: int | None = None
    seconds: float | None = 60.0
    per_tool: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RestillError(f"Budget(steps={self.steps}): an agent needs at least 1 step")
        if self.tokens is not None and self.tokens < 1:
            raise RestillError(f"Budget(tokens={self.tokens}): give a positive number, or None for the model's context")
        if self.seconds is not None and not self.seconds > 0:
            raise RestillError(f"Budget(seconds={self.seconds}): give a positive number, or None for no limit")
        for name, calls in self.per_tool.items():
            if calls < 0:
                raise RestillError(f"Budget(per_tool={{{name!r}: {calls}}}): give 0 or more calls")
        object.__setattr__(self, "per_tool", dict(self.per_tool))

    def to_dict(self) -> dict[str, object]:
        """Plain values, for the agent hash and the run's manifest."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "per_tool": dict(self.per_tool),
        }


class Spent:
    """The meter of one run. All times are ``time.monotonic()``.

    Args:
        budget: the limits.
        context: positions the model has (``None``: unknown); tightens ``budget.tokens``.
        deadline: a hard end from outside, tightens ``budget.seconds``.
    """

    def __init__(self, budget: Budget, *, context: int | None = None, deadline: float | None = None) -> None:
        self.budget = budget
        self.started = time.monotonic()
        limits = [n for n in (budget.tokens, context) if n is not None]
        self.max_tokens: int | None = min(limits) if limits else None
        ends = [deadline] if deadline is not None else []
        if budget.seconds is not None:
            ends.append(self.started + budget.seconds)
        self.deadline: float | None = min(ends) if ends else None
        self.steps = 0
        self.calls: dict[str, int] = {}

    @property
    def soft_deadline(self) -> float | None:
        """When ordinary steps end, so that time is left for the last answer."""
        if self.deadline is None:
            return None
        return self.deadline - FINISH_SHARE * max(0.0, self.deadline - self.started)

    def steps_left(self) -> int:
        """Ordinary model turns left."""
        return self.budget.steps - self.steps

    def tokens_left(self, used: int) -> int | None:
        """Tokens left when the transcript is ``used`` tokens long; ``None``: no limit."""
        return None if self.max_tokens is None else self.max_tokens - used

    def seconds_left(self, *, soft: bool) -> float | None:
        """Seconds until the soft or the hard deadline (may be negative); ``None``: no limit."""
        end = self.soft_deadline if soft else self.deadline
        return None if end is None else end - time.monotonic()

    def take_call(self, tool: str) -> bool:
        """Reserve one call of ``tool``; ``False`` when none is left. Reserved before the call is sent."""
        used = self.calls.get(tool, 0)
        limit = self.budget.per_tool.get(tool)
        if limit is not None and used >= limit:
            return False
        self.calls[tool] = used + 1
        return True
