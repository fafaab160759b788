"""Rankers: which of several trajectories over one question to learn from.

Higher is better, ``VETO`` is never kept.

``GoldRanker`` knows the answers. ``LikelihoodRanker`` is AI feedback without labels, from the model's own
scores. ``RandomRanker`` knows nothing: what it keeps is the control.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..agents.model import ChatTokenizer
from ..agents.question import Question
from ..agents.scores import match, normalise
from ..agents.trajectory import Sample, Trajectory
from ..models.errors import RestillError
from .mixture import is_good

VETO = -math.inf
_KEY = re.compile(rb'"answer"\s*:')


@runtime_checkable
class Ranker(Protocol):
    """Scores the candidates of one question.

    Attributes:
        needs_labels: whether the question must come with its answers; if not, it is handed over without them.
    """

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the gold answers of questions."""
        ...

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """One score a candidate, higher is better; ``VETO`` (minus infinity) keeps it out of any mixture."""
        ...


def is_complete(trajectory: Trajectory) -> bool:
    """Whether a trajectory ended by its own decision with an answer, and every turn of it could be read."""
    return trajectory.status == "answered" and bool(trajectory.answer) and all(map(is_good, trajectory.steps))


@dataclass(frozen=True)
class GoldRanker:
    """Right answers, the better the shorter and the better sourced; wrong and forced ones are vetoed.

    Labels only veto: among right answers, fewer steps win, then citations of documents that hold the answer.
    """

    needs_labels: bool = field(default=True, init=False)

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """1 for a right answer, minus 0.1 a tool call, plus 0.05 for a citation (of gold, if that is known).

        Raises:
            RestillError: the question has no answers.
        """
        if not question.answers:
            raise RestillError(f"question {question.id!r} has no answers; use LikelihoodRanker() or add them")
        return [self._score(question, t) for t in candidates]

    @staticmethod
    def _score(question: Question, trajectory: Trajectory) -> float:
        if not is_complete(trajectory) or not match(trajectory, question.answers):
            return VETO
        cited = {c.doc_id for c in trajectory.citations}
        sourced = bool(cited & set(question.gold)) if question.gold else bool(cited)
        return 1.0 - 0.1 * len(trajectory.calls()) + 0.05 * sourced


@dataclass(frozen=True)
class CompletedRanker:
    """Every completed trajectory alike, right or wrong: the mixture of ReST meets ReAct (Aksitov et al. 2312.10003,
    section 3.3), which filters nothing."""

    needs_labels: bool = field(default=False, init=False)

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """1 for a trajectory that ended by its own decision with an answer."""
        return [1.0 if is_complete(t) else VETO for t in candidates]


@dataclass(frozen=True)
class LikelihoodRanker:
    """AI feedback without labels, from log-probabilities (temperature 1, untruncated, no grammar).

    A score is the sum of

    - ``answer`` x mean log p of the tokens of the answer itself, given the transcript with its evidence: a
      model that has found the answer copies it without hesitation;
    - ``path`` x mean log p of all its other tokens;
    - ``agreement`` x log of the share of the candidates (weighed by their likelihood) that give the same
      answer;
    - ``evidence`` x how much the transcript raised the mean log p of the answer over the bare question
      (needs :meth:`bind`; bounded to 5 nats): an answer that was there before any search is a guess.

    Unfinished, forced and unreadable trajectories are vetoed.
    """

    answer: float = 1.0
    path: float = 0.5
    agreement: float = 1.0
    evidence: float = 0.0
    model: Any = field(default=None, repr=False, compare=False)
    needs_labels: bool = field(default=False, init=False)

    def bind(self, model: Any) -> LikelihoodRanker:
        """The same ranker with a model to score with (``engine.score``) and to decode with."""
        return LikelihoodRanker(self.answer, self.path, self.agreement, self.evidence, model)

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """One score a candidate.

        Raises:
            RestillError: a candidate has no token log-probabilities, or no model is bound.
        """
        if self.model is None:
            raise RestillError("LikelihoodRanker has no model; call bind(model), or let improve() do it")
        parts = [self._parts(t) if is_complete(t) else None for t in candidates]
        weight = [0.0 if p is None else math.exp(p.path) for p in parts]
        scores = []
        for trajectory, part in zip(candidates, parts, strict=True):
            if part is None:
                scores.append(VETO)
                continue
            said = normalise(trajectory.answer or "")
            same = sum(w for w, t in zip(weight, candidates, strict=True) if w and normalise(t.answer or "") == said)
            score = self.answer * part.answer + self.path * part.path
            score += self.agreement * math.log(max(same / (sum(weight) or 1.0), 1e-6))
            if self.evidence:
                score += self.evidence * self._gain(trajectory, part)
            scores.append(score)
        return scores

    def _parts(self, trajectory: Trajectory) -> _Parts:
        last = _answering(trajectory)
        if trajectory.text_only or len(last.logprobs) != len(last.tokens) or not last.tokens:
            raise RestillError(f"trajectory {trajectory.id} has no log-probabilities; roll out with a JaxChatModel")
        start, end = answer_span(self.model.tokenizer, last.tokens, trajectory.answer or "")
        own = [p for step in trajectory.steps if step.sample is not last for p in step.sample.logprobs]
        own += last.logprobs[:start] + last.logprobs[end:]
        return _Parts(answer=_mean(last.logprobs[start:end]), path=_mean(own), start=start, end=end)

    def _gain(self, trajectory: Trajectory, part: _Parts) -> float:
        turn = _answering(trajectory).tokens[: part.end]
        bare = self.model.engine.score(trajectory.prompt0, turn)[part.start :]
        return max(-5.0, min(5.0, part.answer - _mean([float(p) for p in bare])))


@dataclass(frozen=True)
class RandomRanker:
    """A score that has nothing to do with the trajectory, the same on every call; vetoes nothing."""

    seed: int = 0
    needs_labels: bool = field(default=False, init=False)

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """Uniform in [0, 1), from the seed and the trajectory's key."""
        return [self._score(t) for t in candidates]

    def _score(self, trajectory: Trajectory) -> float:
        text = json.dumps([self.seed, *trajectory.key])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


@dataclass(frozen=True)
class _Parts:
    answer: float
    path: float
    start: int
    end: int


def _answering(trajectory: Trajectory) -> Sample:
    """The turn that wrote the answer: the last one, but for a search agent's checks that passed it."""
    writing = [s for s in trajectory.steps if s.action is not None and s.action.tool in ("finish", "revise")]
    return (writing or trajectory.steps)[-1].sample


def answer_span(tokenizer: ChatTokenizer, tokens: Sequence[int], answer: str) -> tuple[int, int]:
    """Which tokens of a turn write the answer: [start, end), every token that touches it.

    That is the value of ``"answer"`` in a ReAct turn, else where the answer last stands in the turn. The whole turn
    when the value cannot be found.
    """
    ends, text = [], b""
    for token in tokens:
        text += (
            tokenizer.decode([token]).encode() if not hasattr(tokenizer, "token_bytes") else _bytes(tokenizer, token)
        )
        ends.append(len(text))
    at = max((match.end() for match in _KEY.finditer(text)), default=-1)
    for ascii_only in (True, False):
        value = json.dumps(answer, ensure_ascii=ascii_only)[1:-1].encode()
        first = -1 if not value else text.find(value, at) if at >= 0 else text.rfind(value)
        if first >= 0:
            last = first + len(value)
            inside = [i for i, end in enumerate(ends) if end > first and (ends[i - 1] if i else 0) < last]
            return inside[0], inside[-1] + 1
    return 0, len(tokens)


def _bytes(tokenizer: Any, token: int) -> bytes:
    return b"" if token in tokenizer.special_ids else tokenizer.token_bytes(token)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
