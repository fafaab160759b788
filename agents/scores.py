"""Exact match and F1 as SQuAD and HotpotQA define them, and bootstrap intervals."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD's ``normalize_answer``)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, golds: Sequence[str]) -> float:
    """1.0 when the normalised prediction is one of the normalised ``golds``; no prediction scores 0."""
    if prediction is None:
        return 0.0
    return float(any(normalise(prediction) == normalise(gold) for gold in golds))


def f1(prediction: str | None, golds: Sequence[str]) -> float:
    """Best word-overlap F1 over ``golds``; yes, no and "noanswer" must match exactly (HotpotQA)."""
    if prediction is None:
        return 0.0
    return max((_f1(normalise(prediction), normalise(gold)) for gold in golds), default=0.0)


def _f1(prediction: str, gold: str) -> float:
    if {prediction, gold} & {"yes", "no", "noanswer"}:
        return float(prediction == gold)
    said, wanted = prediction.split(), gold.split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


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
