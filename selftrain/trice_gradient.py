"""TRICE's two gradient estimators (Phan et al. 2312.02179, algorithms 2 and 3) as weights of log-probabilities.

The gradient of log p(y|x) is the posterior mean of grad log p(z|x). A minibatch of M questions has M memories z' (after
this step's transition) and M proposals z~; an estimator is a weight for each of the 2M terms:

    g = sum_m weights[m] grad log p(z'_m) + sum_m weights[M + m] grad log p(z~_m)

These functions are all there is of it: training and the tests that enumerate every state run the same ones. They are
NumPy in float64, since they see M numbers a step.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..models.errors import RestillError

Floats = NDArray[np.float64]
Estimator = Literal["basic", "control", "per-question"]
Past = tuple[ArrayLike, ArrayLike]
"""Of each question how often it was asked before, and how many of its proposals were accepted, ``[M]`` each."""


def accept(memory: ArrayLike, proposal: ArrayLike, uniforms: ArrayLike) -> NDArray[np.bool_]:
    """Whether each proposal replaces its memory, with probability ``min(1, r~ / r)``.

    The Metropolis-Hastings rule for proposals from p(z|x) and the target p(z|x) r(z): p cancels. For rewards of 0 and 1
    it accepts exactly the right proposals (algorithm 1). A proposal of reward 0 is never accepted, and a memory of
    reward 0 gives way to any other.

    Args:
        memory, proposal: rewards r and r~, at least 0, ``[M]``.
        uniforms: in [0, 1), ``[M]``.
    """
    return np.asarray(uniforms, np.float64) * np.asarray(memory, np.float64) < np.asarray(proposal, np.float64)


def acceptance_rates(solved: ArrayLike, accepted: ArrayLike, past: Past | None = None) -> Floats:
    """beta ``[M]``: each question's estimate of its acceptance rate, which does not depend on its own proposal.

    The mean over all other questions of the minibatch; 0 where no other memory is solved.

    Args:
        past: takes the question's own earlier proposals instead, and that mean as if it were one more of them. The
            estimator stays unbiased: what was drawn earlier does not know the proposal either.
    """
    solved, accepted = np.asarray(solved, np.float64), np.asarray(accepted, np.float64)
    others = solved.sum() - solved
    rates = (accepted.sum() - accepted) / np.where(others > 0, others, 1.0) * (others > 0)
    if past is None:
        return rates
    asked, hits = (np.asarray(part, np.float64) for part in past)
    return (hits + rates) / (asked + 1)


def basic(solved: ArrayLike) -> Floats:
    """Weights ``[2M]`` of algorithm 2: the mean over solved memories; proposals have none.

    Args:
        solved: whether the memory, after the transition, has a reward above 0, ``[M]``.
    """
    solved = np.asarray(solved, np.float64)
    return np.concatenate([solved, np.zeros_like(solved)]) / max(solved.sum(), 1.0)


def control_variate(solved: ArrayLike, accepted: ArrayLike, past: Past | None = None) -> Floats:
    """Weights ``[2M]`` of algorithm 3: from each memory's term, beta times its proposal's is subtracted.

    E grad log p(z~) is 0, so nothing changes but the variance. An accepted proposal is the memory: its terms are one,
    1 - beta. A rejected one is pushed down by beta. As everything is accepted, all weights go to 0.

    Args:
        solved: as for :func:`basic`.
        accepted: whether this step's proposal became the memory, ``[M]``.
        past: for a beta of each question's own (:func:`acceptance_rates`).
    """
    solved, accepted = np.asarray(solved, np.float64), np.asarray(accepted, np.float64)
    beta = acceptance_rates(solved, accepted, past)
    memories, proposals = solved * (1 - beta * accepted), solved * beta * (1 - accepted)
    return np.concatenate([memories, -proposals]) / max(solved.sum(), 1.0)


def check_estimator(kind: str) -> None:
    """Raises RestillError: unknown estimator."""
    if kind not in get_args(Estimator):
        raise RestillError(f"estimator={kind!r} is unknown; use {' or '.join(map(repr, get_args(Estimator)))}")


def estimator_weights(kind: Estimator, solved: ArrayLike, accepted: ArrayLike, past: Past) -> Floats:
    """Weights ``[2M]`` of the estimator of that name.

    Raises:
        RestillError: unknown estimator.
    """
    check_estimator(kind)
    if kind == "basic":
        return basic(solved)
    return control_variate(solved, accepted, past if kind == "per-question" else None)


def resample_systematic(probabilities: ArrayLike, count: int, uniform: float) -> NDArray[np.int64]:
    """``count`` indices, each drawn ``count * probability`` times, rounded up or down, from one uniform in [0, 1).

    Raises:
        RestillError: a negative probability, or none above 0.
    """
    p = np.asarray(probabilities, np.float64)
    if not len(p) or (p < 0).any() or not p.sum() > 0:
        raise RestillError(f"cannot resample with probabilities {p.tolist()!r:.80}; give at least one above 0")
    ends = np.cumsum(p / p.sum())
    drawn = np.searchsorted(ends, (uniform + np.arange(count)) / count, side="right")
    return np.minimum(drawn, np.flatnonzero(p)[-1])  # rounding may leave the last end below 1


def resample(weights: ArrayLike, count: int, uniform: float) -> Floats:
    """Signed weights of as many terms, at most ``count`` of them not 0, whose mean over ``uniform`` is ``weights``.

    Terms are drawn with probabilities proportional to the weights' sizes (not to their exponentials, as in the
    published notebook, which favours small weights); each draw counts as sign times the mean size. Where no more than
    ``count`` weights differ from 0, nothing is drawn: all are kept as they are.

    Args:
        weights: signed, ``[N]``.
        uniform: in [0, 1).
    """
    weights = np.asarray(weights, np.float64)
    sizes = np.abs(weights)
    if np.count_nonzero(sizes) <= count:
        return weights.copy()
    drawn = np.bincount(resample_systematic(sizes, count, uniform), minlength=len(weights))
    return np.sign(weights) * drawn * sizes.sum() / count
