"""The pilot: a first adapter from few guided trajectories, so that the loop has something to improve.

Guided means that the agent runs as always, tools and observations included, but either sees a hint that is
never stored, or the scripted expert writes its turns, or a stronger model does. What is kept must have the right
answer, and have read it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..agents.agent import Agent
from ..agents.question import Question
from ..agents.run import Run
from ..agents.scores import normalise
from ..agents.search.agent import SearchAgent
from ..agents.trajectory import Trajectory
from ..models.errors import RestillError
from ..retrieval.types import Document
from .expert import ExpertModel, Script, gold_script
from .feedback import CompletedRanker, GoldRanker
from .guide import hint as world_hint
from .plain import NEWER
from .retold import retold
from .search_expert import SearchExpertModel
from .selection import Kept, select
from .trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """How the pilot is made.

    Attributes:
        questions: how many of the training questions it may see.
        guide: ``"expert"``: the scripted expert writes the turns; else a function from a question to a hint
            (:func:`gold_hint`, :class:`GoldDocuments`) that the model sees and that is never stored.
        teacher: another chat model (any of LangChain's, such as a ``RemoteChatModel``) that makes the trajectories in
            the agent's place; what it did is told anew in the agent's tokens (``retold``). With a guide that is a
            function it sees the hints too. Where no question has answers, every completed trajectory is kept.
        samples: guided runs per question (an expert without noise needs one).
        noise: share of a search agent's expert's steps that are a plausible mistake; with it every completed
            trajectory is kept, right or wrong, else only right ones that have read the answer.
        temperature: of a teacher or a hinted model.
        script: what the expert writes, for an agent without its own; ``None``: :func:`.expert.gold_script`.
        most: the most trajectories to train on.
        train: how to train it; ``None``: as the method does.
    """

    questions: int = 100
    guide: str | Callable[[Question], str] = "expert"
    samples: int = 1
    noise: float = 0.0
    temperature: float = 0.7
    most: int = 500
    train: TrainConfig | None = None
    script: Script | None = field(default=None, metadata={NEWER: None})
    teacher: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.guide, str) and self.guide != "expert":
            raise RestillError(f"guide={self.guide!r} is unknown; use 'expert' or a function from question to hint")
        if self.questions < 1 or self.samples < 1 or self.most < 1:
            raise RestillError("a pilot needs at least one question, one sample and one trajectory")
        if self.script is not None and self.guide != "expert":
            raise RestillError("script= is what the expert writes, and guide= is a hint; give one of them")
        if self.teacher is not None and (self.script is not None or self.noise):
            raise RestillError("script= and noise= are the expert's, and teacher= takes its place; give one of them")
        if not 0 <= self.noise < 1:
            raise RestillError(f"noise={self.noise}: give a share from 0 to below 1")

    def check(self, agent: Agent) -> None:
        """Find a pilot that cannot guide ``agent``.

        Raises:
            RestillError: the scripted expert, which searches, for an agent without tools.
        """
        if self.teacher is None and isinstance(self.guide, str) and not agent.tools:
            raise RestillError(
                f"the scripted expert searches, and a {type(agent).__name__} has no tools; as a pilot's guide give a "
                "teacher or a function, or leave the pilot out (--pilot 0); as TRICE's guide 'answer' or None"
            )

    def choose(self, questions: Sequence[Question], seed: int) -> list[Question]:
        """The pilot's questions: drawn from those that can be guided, in an order that follows from ``seed``. A teacher
        needs no guiding: it gets those with answers, or if there are none, any.

        Raises:
            RestillError: no question can be guided.
        """
        fit = [q for q in questions if self.can_guide(q)]
        if not fit and self.teacher is not None and isinstance(self.guide, str):
            fit = list(questions)
        if not fit:
            raise RestillError(
                "the pilot can guide none of the questions: "
                "they need answers and gold_titles (or a World's plan); do without by --pilot 0 or pilot=None, best "
                "with a model that can search already, such as the adapter starter, or name a teacher"
            )
        return random.Random(f"pilot {seed}").sample(fit, min(self.questions, len(fit)))

    def guided(self, agent: Agent, questions: Sequence[Question]) -> Agent:
        """The agent that makes the pilot's trajectories."""
        if self.teacher is not None:
            hint = None if isinstance(self.guide, str) else self.guide
            return agent.replace(model=self.teacher, few_shot=None, temperature=self.temperature, hint=hint)
        if isinstance(self.guide, str):
            model: Any = self._expert(agent, questions)
            return agent.replace(model=model, few_shot=0, temperature=0.0, hint=None)
        return agent.replace(hint=self.guide, temperature=self.temperature)

    def _expert(self, agent: Agent, questions: Sequence[Question]) -> Any:
        if isinstance(agent, SearchAgent):
            if self.script is not None:
                raise RestillError("script= writes the turns of a ReActAgent; a search agent has its own expert")
            return SearchExpertModel(agent.model.tokenizer, questions, format=agent.format, noise=self.noise)
        if self.noise:
            raise RestillError(f"noise={self.noise}: only the search agent's expert makes mistakes; give 0")
        return ExpertModel(agent.model.tokenizer, questions, self.script)

    def keep(self, agent: Agent, run: Run | Iterable[Trajectory], questions: Sequence[Question]) -> list[Kept]:
        """Which of its trajectories the pilot is trained on."""
        labelled = any(q.answers for q in questions)
        ranker = GoldRanker() if labelled and not self.noise else CompletedRanker()

        def fit(trajectory: Trajectory) -> bool:
            return bool(self.noise) or not agent.plan.tools or grounded(trajectory)

        return select(ranker, questions, run, keep_per_question=self.samples, fit=fit)[: self.most]

    def told(self, agent: Agent, trajectory: Trajectory) -> Trajectory:
        """One of them in the tokens of ``agent``'s model."""
        return trajectory if self.teacher is None else retold(agent, trajectory)

    def can_guide(self, question: Question) -> bool:
        """Whether a question has what the guide needs."""
        if not question.answers:
            return False
        if self.teacher is not None and isinstance(self.guide, str):
            return True
        try:
            (self.script or gold_script)(question, {}) if isinstance(self.guide, str) else self.guide(question)
        except RestillError:
            return False
        return True


def grounded(trajectory: Trajectory) -> bool:
    """Whether the answer stands in what the agent read (yes and no stand nowhere, and pass).

    A guide knows the answer also where the search did not find it; imitating that would teach to invent.
    """
    answer = normalise(trajectory.answer or "")
    read = (step.observation.text for step in trajectory.steps if step.observation is not None)
    return answer in ("yes", "no") or any(f" {answer} " in f" {normalise(text)} " for text in read)


class GoldDocuments:
    """A guide that shows a labelled question's gold documents (by id, else by title), then what :func:`gold_hint` says.

    Raises when called:
        RestillError: a gold document is not among ``documents``, or the question has no labels.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        listed = list(documents)
        self._by_id, self._by_title = {d.id: d for d in listed}, {d.title: d for d in listed}

    def __call__(self, question: Question) -> str:
        known = (self._by_title | self._by_id) if question.gold else self._by_title
        names = question.gold or question.gold_titles
        if missing := [name for name in names if name not in known]:
            raise RestillError(f"question {question.id!r}: there is no document {missing[0]!r} to show")
        return f"{' '.join(f'{known[name].title}: {known[name].text}' for name in names)} {gold_hint(question)}"


def gold_hint(question: Question) -> str:
    """A hint for any labelled question: what to search, what the question names first, then the answer.

    ``Plan: search "Ed Wood"; search "Scott Derrickson"; answer "yes".``

    Raises:
        RestillError: the question has neither a World's plan nor gold titles with answers.
    """
    if question.metadata.get("plan"):
        return world_hint(question)
    turns = gold_script(question, {})
    searches = "; ".join(f'search "{arguments["query"]}"' for _, action, arguments in turns if action == "search")
    return f'Plan: {searches}; answer "{question.answers[0]}".'
