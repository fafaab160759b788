"""Exact match and F1 as SQuAD and HotpotQA define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

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
