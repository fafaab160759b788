"""What TRICE is compared with, in the same frame: the same agent, checker, trainer, and tokens drawn and trained on.

Each is a method for ``improve``, as :class:`~restill.selftrain.trice.TRICE` is; so are those that draw nothing
(:mod:`restill.selftrain.written`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.errors import RestillError
from .lab import Lab
from .latent import Latent, check_lengths
from .latent_method import LatentMethod, Term, Terms
from .loss_log import LossLog
from .trice_gradient import resample

_ORDER, _RESAMPLE = 2, 3  # what random numbers are for
GROWTH = 1.2
"""Each round of STaR trains so many times longer than the one before (Zelikman et al. 2203.14465)."""


@dataclass(frozen=True, kw_only=True)
class RejectionSampling(LatentMethod):
    """``samples`` proposals a question and step; the right ones together stand for the posterior, and a question
    without one is left out (the rejection-sampling baseline of Phan et al. 2312.02179, there with 4).

    With ``minibatch`` m it draws as much as TRICE with a minibatch of ``m * samples``.
    """

    arm = "rejection sampling"

    samples: int = 4

    def source(self) -> RejectionSource:
        """Draws at every step."""
        return RejectionSource(self)


class RejectionSource:
    """Right proposals of the step, each question's with equal weights that add up to its share."""

    def __init__(self, method: RejectionSampling) -> None:
        self.method = method

    def begin(self, lab: Lab) -> dict[str, Any]:
        """Nothing to do."""
        return {}

    def step(self, lab: Lab, step: int) -> Terms:
        """Draw, keep what is right, resample."""
        method = self.method
        batch = lab.minibatch(step, method.minibatch)
        found = [s for s in lab.propose(batch, step, samples=method.samples) if s.latent is not None]
        right: dict[str, list[Latent]] = {}
        for scored in found:
            if (z := scored.right) is not None:
                right.setdefault(scored.question.key, []).append(z)
        facts = {"right": float(np.mean([s.right is not None for s in found] or [0.0]))}
        facts["answered"] = len(right) / len(batch)
        if not right:
            return Terms([], facts, void=True)
        half = {q.key: int(place >= len(batch) / 2) for place, q in enumerate(batch)}
        listed = [(key, z, 1 / (len(own) * len(right))) for key, own in right.items() for z in own]
        uniform = float(lab.uniforms(step, _RESAMPLE).random())
        drawn = resample([weight for _, _, weight in listed], method.resampled, uniform)
        terms = [Term(z, float(w), half[key]) for (key, z, _), w in zip(listed, drawn, strict=True) if w]
        return Terms(terms, facts)

    def state(self) -> Any:
        """Nothing: what is drawn follows from the parameters."""
        return None

    def restore(self, state: Any) -> None:
        """Nothing."""


class FixedSource:
    """Latents that are there before training begins, in epochs, ``resampled`` a step with equal weights.

    Args:
        gather: makes them, and says what the log should say.
    """

    def __init__(self, method: LatentMethod, gather: Callable[[Lab], tuple[list[Latent], dict[str, Any]]]) -> None:
        self.method, self.gather = method, gather
        self.latents: list[Latent] = []

    def begin(self, lab: Lab) -> dict[str, Any]:
        """Gather what there is to learn.

        Raises:
            RestillError: nothing is.
        """
        self.latents, facts = self.gather(lab)
        check_lengths(self.latents, self.method.train.row_length)
        if not self.latents:
            raise RestillError(f"{self.method.arm}: there is nothing to learn; raise samples, or begin with a pilot")
        return facts | {"latents": len(self.latents)}

    def step(self, lab: Lab, step: int) -> Terms:
        """The next ones of this epoch."""
        return Terms(epoch_terms(self.latents, lab, step, self.method.resampled))

    def state(self) -> Any:
        """The latents."""
        return [z.to_row() for z in self.latents]

    def restore(self, state: Any) -> None:
        """Take saved latents."""
        self.latents = [Latent.from_row(row) for row in state]


def epoch_terms(latents: Sequence[Latent], lab: Lab, step: int, size: int) -> list[Term]:
    """The ``size`` latents of a step, in epochs that are permutations, each with the weight of a mean."""
    size = min(size, len(latents))
    epoch, index = divmod(step, len(latents) // size)
    order = lab.uniforms(epoch, _ORDER).permutation(len(latents))[index * size : (index + 1) * size]
    return [Term(latents[i], 1 / size, half=int(n >= size / 2)) for n, i in enumerate(order)]


DRAWS = "draws.jsonl"
"""What ``FilteredSFT`` drew, a line a draw of all questions."""


@dataclass(frozen=True, kw_only=True)
class FilteredSFT(LatentMethod):
    """Draw ``samples`` times from the initial model (or until ``sampled_tokens``), keep what is right, train on it."""

    arm = "filtered SFT"
    online = False

    samples: int = 8

    def source(self) -> FixedSource:
        """Draws once."""
        return FixedSource(self, self._gather)

    def _gather(self, lab: Lab) -> tuple[list[Latent], dict[str, Any]]:
        draws = LossLog(lab.folder / DRAWS)
        done = draws.rows()  # of a job that was killed meanwhile: each is made once
        draws.cut(len(done) - 1)
        if done:
            lab.sampled = done[-1]["sampled"]
            lab.seconds |= done[-1]["seconds"]
        for draw in range(len(done), self.samples):
            if self.sampled_tokens and lab.sampled >= self.sampled_tokens:
                break
            found = lab.propose(list(lab.questions.values()), -1 - draw)
            right = [[s.question.key, z.to_row()] for s in found if (z := s.right) is not None]
            done.append({"step": draw, "sampled": lab.sampled, "seconds": dict(lab.seconds), "right": right})
            draws.append(done[-1])
        kept: dict[tuple[str, tuple[tuple[int, ...], ...]], Latent] = {}
        for key, row in (pair for made in done for pair in made["right"]):
            z = Latent.from_row(row)
            kept.setdefault((key, tuple(e.tokens for e in z.sequences)), z)
        return list(kept.values()), {"answered": len({key for key, _ in kept}) / len(lab.questions)}


@dataclass(frozen=True, kw_only=True)
class STaR(LatentMethod):
    """STaR with rationalisation (Zelikman et al. 2203.14465): ``rounds`` times, answer all questions greedily, try
    those that failed with the answer as a hint, and train the initial model anew on all that is right."""

    arm = "STaR"
    online = False

    rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rounds <= self.steps:
            raise RestillError(f"rounds={self.rounds}: give at least 1, and at most as many as steps={self.steps}")

    def source(self) -> StarSource:
        """Draws once a round."""
        return StarSource(self)

    def starts(self) -> list[int]:
        """The first step of each round, and the end; each round is ``GROWTH`` times as long as the one before."""
        ends = np.cumsum(GROWTH ** np.arange(self.rounds))
        return [0, *(round(self.steps * end / ends[-1]) for end in ends)]


class StarSource:
    """What is right of the newest round."""

    def __init__(self, method: STaR) -> None:
        self.method = method
        self.latents: list[Latent] = []
        self.facts: dict[str, Any] = {}

    def begin(self, lab: Lab) -> dict[str, Any]:
        """Nothing to do."""
        return {}

    def step(self, lab: Lab, step: int) -> Terms:
        """A batch of this round's latents, drawn first where a round begins."""
        method, starts = self.method, self.method.starts()
        first = max(s for s in starts[:-1] if s <= step)
        end = min(s for s in starts if s > step)
        if step == first and not (first and method.sampled_tokens and lab.sampled >= method.sampled_tokens):
            self._draw(lab, step)
        if not self.latents:
            return Terms([], self.facts, void=True, reset=step == first)
        terms = epoch_terms(self.latents, lab, step, method.resampled)
        return Terms(terms, self.facts, reset=step == first, progress=(step - first) / (end - first))

    def _draw(self, lab: Lab, step: int) -> None:
        found = lab.propose(list(lab.questions.values()), step, temperature=0.0)
        right = [z for s in found if (z := s.right) is not None]
        failed = [s.question for s in found if s.right is None]
        hinted = lab.hinted(failed, step) if failed else []
        rationalised = [z for s in hinted if (z := s.right) is not None]
        self.latents = right + rationalised
        check_lengths(self.latents, self.method.train.row_length)
        self.facts = {"right": len(right) / len(found), "rationalised": len(rationalised) / len(found)}

    def state(self) -> Any:
        """The round's latents."""
        return {"latents": [z.to_row() for z in self.latents], "facts": self.facts}

    def restore(self, state: Any) -> None:
        """Take a saved round."""
        self.latents, self.facts = [Latent.from_row(row) for row in state["latents"]], state["facts"]
