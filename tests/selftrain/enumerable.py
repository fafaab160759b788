"""A language model so small that every rationale can be listed: vocabulary 4, at most 3 tokens, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

VOCABULARY, LONGEST, END = 4, 3, 0


def all_rationales() -> list[tuple[int, ...]]:
    """Every sequence that ends with ``END`` or at the longest length: 40 of them."""
    return [
        z
        for length in range(1, LONGEST + 1)
        for z in product(range(VOCABULARY), repeat=length)
        if END not in z[:-1] and (z[-1] == END or length == LONGEST)
    ]


RATIONALES = all_rationales()


class Enumerable:
    """Logits of a token: a row of the token before (shared by all questions) plus one of the question.

    Args:
        questions: how many.
        reach: added to the logit of beginning right (a rationale is right if its first token is 2), to choose the
            accuracy; how right rationales go on stays open, also as the accuracy tends to 1.
    """

    def __init__(self, questions: int, *, reach: float = 0.0, seed: int = 0, spread: float = 0.7) -> None:
        rng = np.random.default_rng(seed)
        self.before = rng.normal(scale=spread, size=(VOCABULARY + 1, VOCABULARY))
        self.own = rng.normal(scale=spread, size=(questions, VOCABULARY))
        self.before[VOCABULARY, 2] += reach
        self.right = np.array([z[0] == 2 for z in RATIONALES])

    @property
    def theta(self) -> np.ndarray:
        """All parameters, flat."""
        return np.concatenate([self.before.ravel(), self.own.ravel()])

    def log_p(self, theta: np.ndarray, question: int, z: tuple[int, ...]) -> tuple[float, np.ndarray]:
        """log p(z | question), and its gradient in ``theta``."""
        before = theta[: self.before.size].reshape(self.before.shape)
        own = theta[self.before.size :].reshape(self.own.shape)
        gradient, total, last = np.zeros_like(theta), 0.0, VOCABULARY
        for token in z:
            logits = before[last] + own[question]
            p = np.exp(logits - logits.max())
            p /= p.sum()
            total += np.log(p[token])
            off = np.eye(VOCABULARY)[token] - p
            gradient[last * VOCABULARY : (last + 1) * VOCABULARY] += off
            at = self.before.size + question * VOCABULARY
            gradient[at : at + VOCABULARY] += off
            last = token
        return total, gradient

    def table(self, question: int) -> tuple[np.ndarray, np.ndarray]:
        """p(z | question) ``[Z]``, and grad log p(z | question) ``[Z, P]``, of every rationale."""
        rows = [self.log_p(self.theta, question, z) for z in RATIONALES]
        return np.exp([logp for logp, _ in rows]), np.array([gradient for _, gradient in rows])

    def log_marginal(self, theta: np.ndarray, question: int, rewards: np.ndarray) -> float:
        """log sum_z p(z | question) r(z)."""
        likelihoods = np.exp([self.log_p(theta, question, z)[0] for z in RATIONALES])
        return float(np.log(likelihoods @ rewards))


def with_accuracy(questions: int, accuracy: float, *, seed: int = 0) -> Enumerable:
    """A model that answers so many of its questions, on average."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        model = Enumerable(questions, reach=middle, seed=seed)
        mean = np.mean([model.table(q)[0][model.right].sum() for q in range(questions)])
        low, high = (middle, high) if mean < accuracy else (low, middle)
    return Enumerable(questions, reach=(low + high) / 2, seed=seed)


def with_accuracies(accuracies: Sequence[float], *, seed: int = 0) -> Enumerable:
    """A model that is right so often on each of its questions."""
    model = Enumerable(len(accuracies), seed=seed)
    for question, accuracy in enumerate(accuracies):
        low, high = -20.0, 20.0
        for _ in range(60):
            model.own[question, 2] = middle = (low + high) / 2
            less = model.table(question)[0][model.right].sum() < accuracy
            low, high = (middle, high) if less else (low, middle)
    return model
