"""What an engine has done, in counts; those of two moments subtracted are what it did between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import add, sub


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts over some time of one engine, or of several one after the other.

    Attributes:
        steps: decode steps.
        rows: slots that decoded, summed over the steps.
        places: slots that the engine has, summed over the steps.
        prefilled: prompt tokens computed, those found in the cache not counted.
        decoded: tokens generated.
        guessed, kept: tokens guessed, and how many of them came true.
    """

    steps: int = 0
    rows: int = 0
    places: int = 0
    prefilled: int = 0
    decoded: int = 0
    guessed: int = 0
    kept: int = 0

    @property
    def occupancy(self) -> float | None:
        """Share of slots that were decoding, averaged over the steps; None without a step."""
        return self.rows / self.places if self.places else None

    def __sub__(self, earlier: Stats) -> Stats:
        """What came after ``earlier``."""
        return self._each(sub, earlier)

    def __add__(self, other: Stats) -> Stats:
        """Both together."""
        return self._each(add, other)

    def _each(self, merge: Callable[[int, int], int], other: Stats) -> Stats:
        theirs = asdict(other)
        return Stats(**{name: merge(count, theirs[name]) for name, count in asdict(self).items()})
