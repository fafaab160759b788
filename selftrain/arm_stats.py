"""What an arm's trajectories say beyond its scores: what could not be read, and what the self-checks changed."""

from __future__ import annotations

from dataclasses import dataclass

from ..agents.scores import exact_match, match
from ..agents.trajectory import Trajectory
from ..retrieval.intervals import bootstrap_interval, paired_interval
from .job_folder import ScoredArm
from .mixture import is_readable

Interval = tuple[float, float]


@dataclass(frozen=True)
class SelfChecks:
    """Draft and final answer of the same runs: the self-checks off and on.

    A run that drafted nothing (its answer was forced, say) counts with its answer on both sides.

    Attributes:
        drafted: trajectories that checked a draft; ``changed``: whose answer then says something else;
            ``mended``: from wrong to right; ``broken``: from right to wrong.
        draft_em: exact match of the drafts, a share; ``final_em``: of the answers.
        gain: ``final_em - draft_em``, with its paired 95 % interval over questions.
    """

    drafted: int
    changed: int
    mended: int
    broken: int
    draft_em: float
    draft_interval: Interval
    final_em: float
    final_interval: Interval
    gain: float
    gain_interval: Interval


@dataclass(frozen=True)
class ArmStats:
    """Counts over an arm's scored trajectories.

    Attributes:
        searches, searches_interval: tool calls per question and their 95 % interval.
        steps, unread_steps: turns, and those that could not be read as an action.
        samples, unread_samples: turns drawn in a search agent's steps, and those that it could not read.
        cached: prompt tokens per trajectory whose keys and values were reused.
        checks: ``None`` when no trajectory holds a draft.
    """

    trajectories: int
    searches: float
    searches_interval: Interval
    steps: int
    unread_steps: int
    samples: int
    unread_samples: int
    cached: float
    checks: SelfChecks | None

    @classmethod
    def of(cls, arm: ScoredArm) -> ArmStats:
        """Read the arm's trajectories once, one question at a time."""
        trajectories = steps = unread_steps = samples = unread_samples = cached = 0
        drafts = _Drafts()
        for row in arm.scored.rows:
            found = arm.trajectories(row)
            drafts.add(found, row.golds, arm.scored.samples)
            for t in found:
                trajectories += 1
                steps += len(t.steps)
                unread_steps += sum(not is_readable(step) for step in t.steps)
                drawn = [sample for step in t.steps if step.kind for sample in step.samples]
                samples += len(drawn)
                unread_samples += sum(sample.error is not None for sample in drawn)
                cached += t.usage.cached
        calls = [row.searches for row in arm.scored.rows if row.answers]
        return cls(
            trajectories=trajectories,
            searches=sum(calls) / max(1, len(calls)),
            searches_interval=bootstrap_interval(calls),
            steps=steps,
            unread_steps=unread_steps,
            samples=samples,
            unread_samples=unread_samples,
            cached=cached / max(1, trajectories),
            checks=drafts.checks(),
        )


class _Drafts:
    """Exact match of draft and answer, a question at a time."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.drafted = self.changed = self.mended = self.broken = 0

    def add(self, trajectories: list[Trajectory], golds: list[str], samples: int) -> None:
        """One question; a trajectory that is missing is wrong on both sides."""
        before = after = 0.0
        for t in trajectories:
            final = match(t, golds)
            draft = final if t.draft is None else exact_match(t.draft, golds)
            before, after = before + draft, after + final
            self.drafted += t.draft is not None
            self.changed += t.draft is not None and t.draft != t.answer
            self.mended += draft < final
            self.broken += draft > final
        self.before.append(before / samples)
        self.after.append(after / samples)

    def checks(self) -> SelfChecks | None:
        if not self.drafted:
            return None
        draft, final = (sum(side) / len(side) for side in (self.before, self.after))
        return SelfChecks(
            drafted=self.drafted,
            changed=self.changed,
            mended=self.mended,
            broken=self.broken,
            draft_em=draft,
            draft_interval=bootstrap_interval(self.before),
            final_em=final,
            final_interval=bootstrap_interval(self.after),
            gain=final - draft,
            gain_interval=paired_interval(self.after, self.before),
        )
