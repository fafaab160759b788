"""Bootstrap intervals: how far a mean, or the difference of two, may lie from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, *, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) when there are no values."""
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 500):  # in pieces: memory stays small for large sets
        stop = min(start + 500, resamples)
        means[start:stop] = data[rng.integers(0, len(data), size=(stop - start, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    a: Sequence[float], b: Sequence[float], seed: int = 0, *, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``a - b``, question by question.

    Raises:
        ValueError: ``a`` and ``b`` differ in length.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, seed, level=level, resamples=resamples)
