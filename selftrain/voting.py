"""Self-consistency (Wang et al. 2203.11171): the answer that most of many samples give, and what that scores.

The majority is a Monte Carlo estimate of argmax_y p_theta(y|x): at the time of the test the same sum over latents that
TRICE has in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..agents.evaluate import EvalReport
from ..agents.scores import canonical, same_answer
from ..models.errors import RestillError
from ..retrieval.intervals import bootstrap_interval, paired_interval


@dataclass(frozen=True)
class Marks:
    """Right or wrong, question by question (or the share of right samples).

    Attributes:
        of: by question key, 0 to 1.
    """

    of: dict[str, float]

    @property
    def mean(self) -> float:
        """Accuracy."""
        return sum(self.of.values()) / len(self.of) if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its bootstrap interval over questions, 95 %."""
        return bootstrap_interval(list(self.of.values()))

    def over(self, other: Marks) -> tuple[float, tuple[float, float]]:
        """How much better than ``other`` on the same questions, with the paired interval.

        Raises:
            RestillError: they share no question.
        """
        keys = [key for key in self.of if key in other.of]
        if not keys:
            raise RestillError("the two share no question; score both on the same ones")
        ours, theirs = [self.of[k] for k in keys], [other.of[k] for k in keys]
        return sum(ours) / len(keys) - sum(theirs) / len(keys), paired_interval(ours, theirs)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given most often, in its first wording; of equals the one given first; ``None`` if none was given."""
    given = [answer for answer in answers if answer is not None]
    if not given:
        return None
    [(most, _)] = Counter(canonical(answer) for answer in given).most_common(1)  # equals in the order of appearance
    return next(answer for answer in given if canonical(answer) == most)


def marks(report: EvalReport) -> Marks:
    """The share of right samples of each question."""
    rows = {r.key: [float(a is not None and same_answer(a, r.golds)) for a in r.answers] for r in report.rows}
    return Marks({key: sum(found) / max(1, report.samples) for key, found in rows.items()})


def voted(report: EvalReport) -> Marks:
    """Whether the majority of each question's samples is right."""
    chosen = {row.key: (majority(row.answers), row.golds) for row in report.rows}
    return Marks({key: float(a is not None and same_answer(a, golds)) for key, (a, golds) in chosen.items()})
