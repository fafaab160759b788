"""TRICE: chain-of-thought and trajectories as latent variables, sampled by MCMC-EM (Phan et al. 2312.02179).

    grad log p(y|x) = E[ grad log p(z|x) ],  z from p(z|x,y)

Each question has a memory, one latent that is right. A step proposes a latent for each question of a minibatch from the
question alone, keeps it if it is right, and follows the gradient of the memories' log-probabilities, less that of the
proposals as a control variate. Which weights that means is in :mod:`restill.selftrain.trice_gradient`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..agents.agent import Agent
from ..agents.question import Question
from ..models.errors import RestillError
from .lab import Lab, can_guide
from .latent import Latent
from .latent_method import Guide, LatentMethod, Term, Terms
from .pilot import Pilot
from .trice_gradient import Estimator, check_estimator, estimator_weights, resample
from .trice_memory import Memory

_LOG = logging.getLogger("restill.trice")
_RESAMPLE, _ACCEPT = 1, 2  # what uniforms are for; a purpose of 0 would give those of the minibatches


@dataclass(frozen=True, kw_only=True)
class TRICE(LatentMethod):
    """The method and its knobs; ``improve(agent, questions, method=TRICE(), out=...)``.

    Attributes:
        minibatch: proposals a step, one a question.
        resampled: of up to twice as many terms so many are drawn in proportion to their weights, and trained on.
        estimator: "control" subtracts the proposals' terms (algorithm 3), "basic" does not (algorithm 2). The control
            variate pays where most proposals are right. It costs variance below half, unless ``resampled`` is twice
            the minibatch, and where some questions are easy and others hard. "per-question" (not in the paper) takes
            each question's own acceptance rate so far, with the others' of this step as one visit more.
        guide: what draws the first memories: the model with the "answer" as a hint, the scripted "expert" (agents with
            tools), a function from a question to a hint, or ``None`` to begin with empty memories.
        guide_samples: tries of the guide a question; the first right one counts. A question on which it never
            succeeds stays unsolved, without weight, until a proposal is right.
    """

    arm = "TRICE"

    estimator: Estimator = "control"
    guide: Guide | None = "answer"
    guide_samples: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_estimator(self.estimator)
        if isinstance(self.guide, str) and self.guide not in ("answer", "expert"):
            raise RestillError(f"guide={self.guide!r} is unknown; use 'answer', 'expert', a function or None")
        if self.guide_samples < 1:
            raise RestillError(f"guide_samples={self.guide_samples}: give at least 1")

    def check(self, agent: Agent, questions: Sequence[Question]) -> None:
        """Find a guide that can guide none of the questions.

        Raises:
            RestillError: it cannot.
        """
        if self.guide == "expert":
            Pilot().check(agent)
        if self.guide is not None and not any(can_guide(agent, self.guide, q) for q in questions):
            needed = " and gold_titles (or a World's plan)" if agent.tools else ""
            raise RestillError(
                f"the guide can guide none of the {len(questions)} questions: it needs answers{needed}; give them, or "
                "begin without (guide=None, --guide none), best with a model that is right now and then"
            )

    def source(self) -> TriceSource:
        """The chain of memories, not yet begun."""
        return TriceSource(self)


class TriceSource:
    """The E-step: memories, their transitions, and the weights of a step's terms."""

    def __init__(self, method: TRICE) -> None:
        self.method, self.memory = method, Memory()

    def begin(self, lab: Lab) -> dict[str, Any]:
        """Let the guide fill the memories."""
        method = self.method
        if method.guide is None:
            return {"solved": 0.0}
        scored = lab.guided(method.guide, list(lab.questions.values()), method.guide_samples)
        found = [(s.question.key, s.latent) for s in scored if s.latent is not None]
        self.memory = Memory.guided(found)
        unsolved = [q.id for key, q in lab.questions.items() if key not in self.memory.latents]
        if unsolved:
            broken = Counter(s.trajectory.error for s in scored if s.trajectory.status in ("budget", "error"))
            often = "".join(f"; {n} of its runs ended with: {error}" for error, n in broken.most_common(1))
            _LOG.warning(
                "the guide found no right answer to %d of %d questions, such as %r; they wait for a right proposal%s",
                len(unsolved), len(lab.questions), unsolved[0], often,
            )  # fmt: skip
        return {"solved": 1 - len(unsolved) / len(lab.questions), "unsolved": unsolved}

    def step(self, lab: Lab, step: int) -> Terms:
        """Propose, accept, weigh, resample."""
        method = self.method
        batch = lab.minibatch(step, method.minibatch)
        scored = lab.propose(batch, step)
        proposals = {s.question.key: s.latent for s in scored if s.latent is not None}
        past = self.memory.past(proposals)
        hits = self.memory.transition(proposals, lab.uniforms(step, _ACCEPT).random(len(proposals)))
        solved = np.array([self.memory.reward(key) > 0 for key in proposals], bool)
        facts: dict[str, Any] = {
            "accepted": float(hits.mean()) if len(hits) else 0.0,
            "right": float(np.mean([z.reward for z in proposals.values()])) if proposals else 0.0,
            "unscored": len(scored) - len(proposals),
            **self.memory.facts(len(lab.questions), step, max(1, len(lab.questions) // len(batch))),
        }
        if not solved.any():
            _LOG.warning("step %d: no memory of the minibatch is right; the parameters stay as they are", step)
            return Terms([], facts, void=True)
        weights = estimator_weights(method.estimator, solved, hits, past)
        uniform = float(lab.uniforms(step, _RESAMPLE).random())
        drawn = resample(weights, method.resampled, uniform)
        terms = self._terms(list(proposals), proposals, drawn)
        if not terms:
            _LOG.info("step %d: every proposal was accepted; the gradient is zero", step)
        return Terms(terms, {**facts, "weight": float(np.abs(weights).sum())})

    def _terms(self, keys: list[str], proposals: dict[str, Latent], drawn: np.ndarray) -> list[Term]:
        size = len(keys)
        latents = [self.memory.latents.get(key) for key in keys] + [proposals[key] for key in keys]
        return [
            Term(latent, float(weight), half=int(place % size >= size / 2))
            for place, (latent, weight) in enumerate(zip(latents, drawn, strict=True))
            if latent is not None and weight
        ]

    def state(self) -> Any:
        """The memories."""
        return self.memory.to_rows()

    def restore(self, state: Any) -> None:
        """Go back to saved memories."""
        self.memory = Memory.from_rows(state)
