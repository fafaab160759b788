"""Where latents are drawn and scored: the agent on the policy, the guide, the checker, the clock and the meter."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.agent import Agent
from ..agents.plan import derive_seed
from ..agents.question import Question
from ..agents.reason import ReasoningAgent, answer_hint
from ..agents.rollout import rollout
from ..agents.trajectory import Key, Trajectory
from ..models.errors import RestillError
from .latent import Latent
from .latent_method import Guide, LatentMethod
from .loss_log import LossLog
from .pilot import Pilot, gold_hint
from .policy import Draw, Policy, draw

_LOG = logging.getLogger("restill.trice")
PARTS = ("sampling", "scoring", "gradient", "push")


@dataclass(frozen=True)
class Scored:
    """A drawn trajectory, as a latent with its reward.

    Attributes:
        latent: ``None`` where it cannot be learnt from: its checker raised, its run failed, or a row cannot hold it.
    """

    question: Question
    trajectory: Trajectory
    latent: Latent | None

    @property
    def right(self) -> Latent | None:
        """The latent if it has any reward."""
        return self.latent if self.latent is not None and self.latent.reward > 0 else None


class Lab:
    """What a method works with.

    Args:
        agent: as the user gave it; on the policy it draws, and with a hint it guides.
        folder: for runs that are kept, and the errors of checkers.
        held_out: asked for the learning curve.

    Attributes:
        seconds: wall time by what it went to: sampling, scoring, gradient, push.
        sampled: tokens drawn so far, greedy and guided ones included, evaluation not.
    """

    def __init__(
        self,
        agent: Agent,
        policy: Policy,
        questions: Sequence[Question],
        method: LatentMethod,
        *,
        seed: int,
        folder: Path,
        held_out: Sequence[Question] = (),
    ) -> None:
        self.agent, self.policy, self.method, self.seed, self.folder = agent, policy, method, seed, folder
        self.questions = {q.key: q for q in questions}
        self.held_out = list(held_out)
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.sampled = 0
        self.at = -1
        self._errors = LossLog(folder / "checker_errors.jsonl")

    # -- drawing

    def minibatch(self, step: int, size: int) -> list[Question]:
        """The questions of a step: each epoch is a permutation, cut into batches that hold no question twice."""
        keys = list(self.questions)
        size = min(size, len(keys))
        epoch, index = divmod(step, len(keys) // size)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(keys))
        return [self.questions[keys[i]] for i in order[index * size : (index + 1) * size]]

    def uniforms(self, step: int, purpose: int) -> np.random.Generator:
        """Random numbers of one step and purpose, whatever was drawn before."""
        return np.random.default_rng([self.seed, step, purpose])

    def propose(self, questions: Sequence[Question], step: int, *, samples: int = 1, **changes: Any) -> list[Scored]:
        """Draw from p_theta, ``samples`` for each question (beside each other), and score.

        Args:
            changes: options of the agent that differ from the free one, such as ``temperature=0.0`` or a ``hint``.

        Raises:
            RestillError: every run failed.
        """
        asked = [
            Draw(question=q, seed=derive_seed(self.seed, "draw", step, q.key, n), sample=n)
            for q in questions
            for n in range(samples)
        ]
        with self.timed("sampling"):
            drawn = draw(self.policy.drives(self.agent, **changes), asked)
        if drawn and all(t.status == "error" for t in drawn):
            raise RestillError(f"all {len(drawn)} runs of step {step} failed, the first with: {drawn[0].error}")
        return self.score([a.question for a in asked], drawn, step)

    def guided(self, guide: Guide, questions: Sequence[Question], samples: int) -> list[Scored]:
        """Runs that see the answer, kept in ``guide/`` and made once, whatever kills the job. What one of them has got
        right is not tried again.

        Args:
            guide: what to show: "answer" (a plan to search, for agents with tools), "expert" (the scripted one writes
                the turns), or a function from a question to a hint.
            samples: the most tries of a question.
        """
        fit = [q for q in questions if can_guide(self.agent, guide, q)]
        if guide == "expert":
            agent = Pilot(questions=max(1, len(fit))).guided(self.agent, fit)
            samples = 1  # it would write the same again
        else:
            hint = answer_guide(self.agent) if guide == "answer" else guide
            agent = self.policy.drives(self.agent, **self._shown(hint))
        scored: list[Scored] = []
        for sample in range(samples):
            solved = {s.question.key for s in scored if s.right is not None and self._fits(s)}
            if not (left := [q for q in fit if q.key not in solved]):
                break
            with self.timed("sampling"):
                run = rollout(agent, left, out=self.folder / "guide", samples=sample + 1, seed=self.seed, deadline=None)
            made = {q.key: t for q in left if (t := run.get(Key(q.key, sample, agent.fingerprint))) is not None}
            scored += self._rewarded([q for q in left if q.key in made], list(made.values()), -1)
        return self._fitting(scored)

    def hinted(self, questions: Sequence[Question], step: int) -> list[Scored]:
        """Greedy runs that see the answer as a hint, with the newest parameters."""
        fit = [q for q in questions if can_guide(self.agent, "answer", q)]
        shown = self._shown(answer_guide(self.agent))
        return self.propose(fit, step, temperature=0.0, **shown) if fit else []

    def _shown(self, hint: Callable[[Question], str]) -> dict[str, Any]:
        """A guide sees the hint and the user's examples (an agent that only thinks all of them, though its adapter may
        know the form), and may be held to the grammar: it is any distribution."""
        agent = self.agent
        few_shot = agent.examples
        if isinstance(agent, ReasoningAgent) and agent.few_shot is None:
            few_shot = len(agent.demonstrations)
        return {"hint": hint, "few_shot": few_shot, "constrained": agent.constrained}

    def score(self, questions: Sequence[Question], drawn: Sequence[Trajectory], step: int) -> list[Scored]:
        """Ask the checker about each trajectory; one that raises is logged and leaves its trajectory out."""
        return self._fitting(self._rewarded(questions, drawn, step))

    def _rewarded(self, questions: Sequence[Question], drawn: Sequence[Trajectory], step: int) -> list[Scored]:
        scored = []
        with self.timed("scoring"):
            for question, trajectory in zip(questions, drawn, strict=True):
                self.sampled += sum(len(each.tokens) for s in trajectory.steps for each in s.samples)
                reward = None if trajectory.status == "error" else self._reward(question, trajectory)
                latent = None if reward is None else Latent.of(trajectory).rewarded(reward, step)
                scored.append(Scored(question, trajectory, latent))
        return scored

    def _fits(self, scored: Scored) -> bool:
        return scored.latent is None or scored.latent.longest <= self.method.train.row_length

    def _fitting(self, scored: list[Scored]) -> list[Scored]:
        """Leave out what is longer than a row: cut, its log p would not be that of what was drawn."""
        long = {id(s): s.latent.longest for s in scored if s.latent is not None and not self._fits(s)}
        if not long:
            return scored
        length = self.method.train.row_length
        told = f"{len(long)} of {len(scored)} latents have, with their prompts, more tokens than row_length={length}"
        if len(long) == len(scored):
            most = max(long.values())
            raise RestillError(f"{told} (at most {most}); raise row_length, or lower step_tokens or the budget")
        _LOG.warning("%s; they are left out", told)
        return [replace(s, latent=None) if id(s) in long else s for s in scored]

    @property
    def checker_errors(self) -> int:
        """How often the checker raised."""
        return len(self._errors.rows())

    def begin_at(self, step: int) -> None:
        """Go on with this step of the training, as if none after it had been begun; -1: what comes before the first."""
        self.at = step
        if self._errors.path.is_file():
            self._errors.cut(step - 1)

    def _reward(self, question: Question, trajectory: Trajectory) -> float | None:
        try:
            reward = float(self.method.reward(question, trajectory))
            if not (math.isfinite(reward) and reward >= 0):
                raise ValueError(f"a reward of {reward}; give a finite number of at least 0")
        except Exception as error:  # of the user's checker: one question must not end the job
            self.folder.mkdir(parents=True, exist_ok=True)
            self._errors.append({"step": self.at, "question": question.id, "error": f"{type(error).__name__}: {error}"})
            return None
        return reward

    # -- measuring

    def accuracy(self, step: int) -> dict[str, Any]:
        """Greedy accuracy on the held-out questions with the newest parameters."""
        agent = self.policy.drives(self.agent, temperature=0.0)
        drawn = draw(agent, [Draw(question=q, seed=derive_seed(self.seed, "eval", q.key)) for q in self.held_out])
        marks = [self._reward(q, t) or 0.0 for q, t in zip(self.held_out, drawn, strict=True)]
        return {"step": step, "accuracy": float(np.mean(marks)), "questions": len(marks), "sampled": self.sampled}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds inside as ``what``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - began

    def shares(self) -> dict[str, float]:
        """Share of each part in the time of all of them."""
        whole = sum(self.seconds.values()) or 1.0
        return {name: round(value / whole, 4) for name, value in self.seconds.items()}


def answer_guide(agent: Agent) -> Callable[[Question], str]:
    """What shows an agent the answer: as it is, or to one with tools as a plan to search."""
    return gold_hint if agent.tools else answer_hint


def can_guide(agent: Agent, guide: Guide, question: Question) -> bool:
    """Whether a question has what a guide of ``agent`` needs."""
    if guide == "expert":
        return Pilot().can_guide(question)
    try:
        (answer_guide(agent) if guide == "answer" else guide)(question)
    except RestillError:
        return False
    return True
