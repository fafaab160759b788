"""TRICE's memory: for each question one latent, the state of its Markov chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .latent import Latent
from .trice_gradient import Past, accept


class Memory:
    """One latent a question, by question key. A question without one is unsolved: its reward is 0.

    Attributes:
        visits: of each question how many proposals there were, and how many of them were accepted.
    """

    def __init__(
        self, latents: Mapping[str, Latent] | None = None, visits: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        self.latents, self.visits = dict(latents or {}), dict(visits or {})

    @classmethod
    def guided(cls, found: Iterable[tuple[str, Latent]]) -> Memory:
        """What a guide found: for each question its first latent of reward above 0."""
        memory = cls()
        for key, latent in found:
            if latent.reward > 0:
                memory.latents.setdefault(key, latent)
        return memory

    def reward(self, key: str) -> float:
        """r of the question's latent."""
        latent = self.latents.get(key)
        return 0.0 if latent is None else latent.reward

    def transition(self, proposals: Mapping[str, Latent], uniforms: NDArray[np.float64]) -> NDArray[np.bool_]:
        """One step of the independence sampler for each question; proposals come from p_theta.

        Args:
            uniforms: one for each of ``proposals``, in their order.

        Returns:
            Which were accepted, in the same order; those are the memory now.
        """
        keys = list(proposals)
        hits = accept([self.reward(k) for k in keys], [proposals[k].reward for k in keys], uniforms)
        for key, hit in zip(keys, hits.tolist(), strict=True):
            asked, before = self.visits.get(key, (0, 0))
            self.visits[key] = asked + 1, before + hit
            if hit:
                self.latents[key] = proposals[key]
        return hits

    def past(self, keys: Iterable[str]) -> Past:
        """How often each was asked so far, and how many proposals were accepted."""
        counts = [self.visits.get(key, (0, 0)) for key in keys]
        return [asked for asked, _ in counts], [hits for _, hits in counts]

    def facts(self, questions: int, step: int, epoch: int) -> dict[str, float]:
        """For the log: the share of questions solved, the mean age of their latents in steps, and the share of them
        that is no older than an epoch of so many steps."""
        ages = [step - z.born for z in self.latents.values() if z.reward > 0]
        return {
            "solved": len(ages) / questions,
            "age": float(np.mean(ages)) if ages else 0.0,
            "turnover": float(np.mean([age < epoch for age in ages])) if ages else 0.0,
        }

    def to_rows(self) -> dict[str, Any]:
        """Plain values for JSON."""
        latents = {key: latent.to_row() for key, latent in self.latents.items()}
        return {"latents": latents, "visits": {key: list(counts) for key, counts in self.visits.items()}}

    @classmethod
    def from_rows(cls, rows: Mapping[str, Any]) -> Memory:
        """Read what :meth:`to_rows` gave, in earlier versions the latents alone."""
        if "visits" not in rows:
            rows = {"latents": rows, "visits": {}}
        latents = {key: Latent.from_row(row) for key, row in rows["latents"].items()}
        return cls(latents, {key: (asked, hits) for key, (asked, hits) in rows["visits"].items()})
