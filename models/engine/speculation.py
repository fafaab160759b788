"""Drafts without a draft model, and whether checking them pays.

Agents copy: names from the question, sentences from what was found, the format from the prompt. So the guess of what
comes next is what followed the same few tokens before (prompt lookup, Saxena 2023; the deterministic-draft case of Chen
et al. 2302.01318): one step checks several guesses at little more than the cost of one token. Each position is drawn
with the randomness it would have had anyway and a guess is kept while it equals the draw; with a deterministic draft
that is modified rejection sampling (kept with probability p(guess) = 1 - TV), and the output is, draw for draw, what it
would have been without drafts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Job

WIDTH = 8
"""Tokens a checking step computes in each row: the newest and seven guesses."""
_NGRAMS = (4, 2)
_DECAY = 0.9


class Lookup:
    """What followed each n-gram of one sequence, the latest time it was seen, and how often its guesses came true."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}
        self._kept, self._missed = 2.0, 1.0
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The sequence has gone on."""
        for token in tokens:
            # The n-grams that end before this token are now followed by something.
            for n in _NGRAMS:
                if len(self._tokens) >= n:
                    self._seen[tuple(self._tokens[-n:])] = len(self._tokens)
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most ``most`` tokens that may come next; none where nothing like this was seen."""
        for n in _NGRAMS:
            at = self._seen.get(tuple(self._tokens[-n:])) if len(self._tokens) >= n else None
            if at is not None:
                return self._tokens[at : at + most]
        return []

    def learn(self, kept: int, guessed: int) -> None:
        """``kept`` of ``guessed`` tokens came true."""
        self._kept = _DECAY * self._kept + kept
        self._missed = _DECAY * self._missed + (kept < guessed)

    def expected(self, guessed: int) -> float:
        """How many of that many guesses will come true, if each does so independently at the rate so far."""
        rate = self._kept / (self._kept + self._missed)
        return sum(rate ** (i + 1) for i in range(guessed))


class Pace:
    """What steps cost, by (rows, tokens in each row), and what they would bring.

    A checking step is taken when the tokens it is expected to yield in its time are more than plain steps would; where
    that is not so, nothing is drafted. A shape nobody has timed is taken to be cheap, so that it gets timed.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}

    def note(self, rows: int, width: int, seconds: float) -> None:
        """A step of that shape took so long."""
        before = self._seconds.get((rows, width), seconds)
        self._seconds[rows, width] = min(seconds, 0.9 * before + 0.1 * seconds)

    def pays(self, rows: int, jobs: Iterable[Job], guesses: Mapping[Job, Sequence[int]]) -> bool:
        """Whether a step over ``rows`` rows that checks ``guesses`` yields more a second than one without."""
        if not any(guesses.values()):
            return False
        yields = [1 + job.lookup.expected(len(guesses.get(job, ()))) for job in jobs]
        plain, wide = self._seconds.get((rows, 1)), self._seconds.get((rows, WIDTH))
        price = 1.5 if plain is None or wide is None else wide / plain
        return sum(yields) > price * len(yields)
