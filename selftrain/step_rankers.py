"""Rankers of the samples of one step, off-policy: what was rolled out stays, only what is learnt from it changes.

"It is a ranker, not a scorer" (Aksitov et al. 2312.10003): each returns an order, best first. Beside the AI ranker
(:mod:`.ranker_prompt`) and the ranker adapter (:mod:`.ranker_adapter`): likelihood under a model, and the controls
gold, random and inverted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .choice import Choice, full_order
from .gold_steps import quality


@dataclass(frozen=True)
class Order:
    """What a ranker said of one choice.

    Attributes:
        order: all samples, best first.
        read: whether the ranker could tell; if not, ``order`` is the one without a ranker.
        note: why, in a line.
    """

    order: list[int]
    read: bool = True
    note: str = ""

    @classmethod
    def unread(cls, choice: Choice, note: str) -> Order:
        """The order without a ranker."""
        return cls(choice.base, False, note)


@runtime_checkable
class StepRanker(Protocol):
    """Orders the samples of steps.

    Attributes:
        needs_labels: whether questions must come with answers; if not, they are handed over without.
    """

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the gold answers of questions."""
        ...

    def rank(self, choices: Sequence[Choice]) -> list[Order]:
        """One order a choice. Only ``choice.candidates`` are compared; see :func:`.choice.full_order`."""
        ...


def by_score(choice: Choice, scores: Sequence[float], note: str = "") -> Order:
    """The order of ``choice.candidates`` by score, higher first; ties keep the base order."""
    ranked = [place for _, place in sorted(zip(scores, choice.candidates, strict=True), key=lambda pair: -pair[0])]
    return Order(full_order(choice, ranked), note=note)


@dataclass(frozen=True)
class LikelihoodStepRanker:
    """By mean log-probability per token under a model; without one, under the model that wrote the samples.

    Without a model it is the paper's rule for going on (lowest perplexity), so it changes nothing.

    Attributes:
        model: scores with its ``engine``; it must have the vocabulary that the samples were written in.
    """

    model: Any = field(default=None, repr=False, compare=False)
    needs_labels: bool = field(default=False, init=False)

    def rank(self, choices: Sequence[Choice]) -> list[Order]:
        """Orders; a choice without token ids, or too long for the model, stays as it is."""
        if self.model is None:
            return [by_score(c, [-c.samples[i].perplexity for i in c.candidates]) for c in choices]
        room = self.model.engine.max_context
        fits = [
            bool(c.prompt)
            and all(0 < len(c.samples[i].tokens) and len(c.prompt) + len(c.samples[i].tokens) <= room for i in places)
            for c in choices
            for places in [c.candidates]
        ]
        pairs = [
            (c.prompt, c.samples[i].tokens) for c, fit in zip(choices, fits, strict=True) if fit for i in c.candidates
        ]
        means = iter([float(np.mean(scores)) for scores in self.model.engine.score_many(pairs)])
        return [
            by_score(c, [next(means) for _ in c.candidates]) if fit else Order.unread(c, "no token ids, or too long")
            for c, fit in zip(choices, fits, strict=True)
        ]


@dataclass(frozen=True)
class GoldStepRanker:
    """By what the labels say of each sample (:func:`.gold_steps.quality`): the control that knows everything."""

    needs_labels: bool = field(default=True, init=False)

    def rank(self, choices: Sequence[Choice]) -> list[Order]:
        """Orders; raises RestillError for a question without labels."""
        return [by_score(c, [quality(c, i) for i in c.candidates]) for c in choices]


@dataclass(frozen=True)
class RandomStepRanker:
    """An order that has nothing to do with the samples, the same on every call."""

    seed: int = 0
    needs_labels: bool = field(default=False, init=False)

    def rank(self, choices: Sequence[Choice]) -> list[Order]:
        """Orders that follow from the seed, the trajectory's key and the step."""
        return [by_score(c, [self._score(c, place) for place in c.candidates]) for c in choices]

    def _score(self, choice: Choice, place: int) -> float:
        text = json.dumps([self.seed, *choice.trajectory.key, choice.index, place])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


@dataclass(frozen=True)
class InvertedStepRanker:
    """Another ranker's candidates in reverse: the control that must do worse than none."""

    ranker: StepRanker

    @property
    def needs_labels(self) -> bool:
        """As the ranker that is inverted."""
        return self.ranker.needs_labels

    def rank(self, choices: Sequence[Choice]) -> list[Order]:
        """The worst candidate first; what cannot be read stays last."""
        return [self._turned(c, order) for c, order in zip(choices, self.ranker.rank(choices), strict=True)]

    @staticmethod
    def _turned(choice: Choice, order: Order) -> Order:
        if not order.read:
            return order
        candidates = set(choice.candidates)
        return Order(full_order(choice, [place for place in reversed(order.order) if place in candidates]))
