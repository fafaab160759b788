"""Learning from what somebody wrote, in the frame of TRICE and its baselines: rationales, or the answers alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..agents.agent import Agent
from ..agents.question import Question
from ..agents.reason import ReasoningAgent, answer_hint
from ..models.errors import RestillError
from .baselines import FixedSource
from .lab import Lab
from .latent import Latent
from .latent_method import LatentMethod
from .mixture import Example

_LOG = logging.getLogger("restill.trice")


@dataclass(frozen=True, kw_only=True)
class ReferenceSFT(LatentMethod):
    """Train on the rationales that the questions bring along (``metadata["rationale"]``)."""

    arm = "reference SFT"
    online = False

    def check(self, agent: Agent, questions: Sequence[Question]) -> None:
        """Find questions without a rationale.

        Raises:
            RestillError: none has one, or one is no text; or the agent does not only reason.
        """
        only_reasons(self, agent)
        told = [q.metadata.get("rationale") for q in questions]
        for question, rationale in zip(questions, told, strict=True):
            if rationale is not None and not isinstance(rationale, str):
                raise RestillError(f"the rationale of question {question.id!r} is {rationale!r:.40}; give a text")
        missing = [q for q, rationale in zip(questions, told, strict=True) if rationale is None]
        if len(missing) == len(questions):
            raise RestillError(
                f"question {missing[0].id!r}, like all {len(missing)}, has no `rationale`; {self.arm} learns from those"
            )
        if missing:
            _LOG.warning("%d of %d questions have no rationale and are left out", len(missing), len(questions))

    def source(self) -> FixedSource:
        """Draws nothing."""
        return FixedSource(self, lambda lab: (written(lab, self._rationale), {}))

    @staticmethod
    def _rationale(question: Question) -> str | None:
        return question.metadata.get("rationale")


@dataclass(frozen=True, kw_only=True)
class DirectAnswer(LatentMethod):
    """Train on the answer alone, without a rationale."""

    arm = "direct answer"
    online = False

    def check(self, agent: Agent, questions: Sequence[Question]) -> None:
        """Refuse an agent that does not only reason."""
        only_reasons(self, agent)

    def source(self) -> FixedSource:
        """Draws nothing."""
        return FixedSource(self, lambda lab: (written(lab, answer_hint), {}))


def only_reasons(method: LatentMethod, agent: Agent) -> ReasoningAgent:
    """The agent, if it only reasons: nobody writes down what tools will return.

    Raises:
        RestillError: another.
    """
    if not isinstance(agent, ReasoningAgent):
        raise RestillError(f"{method.arm} is for a ReasoningAgent (--agent reason), not for a {type(agent).__name__}")
    return agent


def written(lab: Lab, text: Callable[[Question], str | None]) -> list[Latent]:
    """Rationales that somebody wrote, as latents; questions without one are left out."""
    agent, tokenizer = only_reasons(lab.method, lab.agent), lab.policy.tokenizer
    latents = []
    for question in lab.questions.values():
        if (rationale := text(question)) is None:
            continue
        prompt = tokenizer.chat(agent.messages(question))
        own = (*tokenizer.encode(rationale), tokenizer.eos_ids[0])
        weights = (*[0.0] * len(prompt), *[1.0] * len(own))
        source = {"protocol": agent.plan.protocol, "question_key": question.key}
        sequence = Example(tokens=(*prompt, *own), weights=weights, provenance=source)
        latents.append(Latent(sequences=(sequence,), answer=question.answers[0] if question.answers else None))
    return latents
