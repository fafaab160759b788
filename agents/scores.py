"""Exact match and F1 as SQuAD and HotpotQA define them; what is the same answer to a sum."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trajectory import Trajectory

REASONING = "reason-"
"""How the protocols of agents that only think begin."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?\$?|\$[-+])\s?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)\s?%?"
)
_IDLE = re.compile(r"[!?;:'\"`´‘’“”«»]|[.,](?!\d)|(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")  # marks that compute nothing
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD's ``normalize_answer``)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def wording(question: str) -> str:
    """What questions in the same words have in common: as :func:`normalise`, but marks that compute stay, so that
    "(3 + 4) * 5" is not "3 - 4 * 5"."""
    return " ".join(_ARTICLES.sub(" ", _IDLE.sub("", question.casefold())).split())


def exact_match(prediction: str | None, golds: Sequence[str], spell: Callable[[str], str] = normalise) -> float:
    """1.0 when the prediction is one of the ``golds``, both as ``spell`` has them; no prediction scores 0."""
    if prediction is None:
        return 0.0
    return float(spell(prediction) in map(spell, golds))


def same_answer(said: str, golds: Sequence[str]) -> bool:
    """Exact match as SQuAD has it, but "-5" is not "5", "1,000" is "1000.0", "1, 2" is not "12", the option "(A)" is no
    article, and marks are compared where there is nothing else."""
    return bool(exact_match(said, golds, canonical))


def canonical(text: str) -> str:
    """One spelling for answers that are the same: of a number, an option's letter, or words."""
    text = text.strip()
    if (option := _LETTER.fullmatch(text)) is not None:
        return option[1]
    if (number := _NUMBER.fullmatch(text)) is not None:
        whole, _, part = number["digits"].replace(",", "").partition(".")
        value = f"{whole.lstrip('0') or '0'}.{part.rstrip('0')}".rstrip(".")
        return f"#-{value}" if "-" in number["sign"] and value != "0" else f"#{value}"  # words hold no "#"
    return normalise(text) or text


def f1(prediction: str | None, golds: Sequence[str], spell: Callable[[str], str] = normalise) -> float:
    """Best word-overlap F1 over ``golds``; yes, no and "noanswer" must match exactly (HotpotQA)."""
    if prediction is None:
        return 0.0
    return max((_f1(spell(prediction), spell(gold)) for gold in golds), default=0.0)


def spelling(trajectory: Trajectory) -> Callable[[str], str]:
    """How a trajectory's answer is compared: SQuAD's way, of an agent that only thinks :func:`canonical`."""
    return canonical if trajectory.protocol.startswith(REASONING) else normalise


def match(trajectory: Trajectory, golds: Sequence[str]) -> float:
    """Exact match of a trajectory's answer."""
    return exact_match(trajectory.answer, golds, spelling(trajectory))


def _f1(prediction: str, gold: str) -> float:
    if {prediction, gold} & {"yes", "no", "noanswer"}:
        return float(prediction == gold)
    said, wanted = prediction.split(), gold.split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
