"""Drafts without a draft model, and whether checking them pays.

Agents copy: names from the question, sentences from what was found, the format from the turns before and from the
runs before. So the guess of what comes next is what followed the same few tokens earlier, in this sequence (prompt
lookup, Saxena 2023) or in what this engine wrote before (REST, He et al. 2311.08252). One step checks several guesses:
eight tokens for the time of about two (SmolLM2-135M, one row, CPU). Each position is drawn with the randomness it would
have had anyway, and a guess is kept while it equals the draw. For such deterministic drafts that is modified rejection
sampling (Chen et al. 2302.01318: kept with probability p(guess) = 1 - TV), and the output is, draw for draw, what it is
without drafts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .shapes import MOST_ROWS, WIDTHS

MODEL = ("model", 0)
"""The source of guesses that a draft model makes."""
_NGRAMS = (4, 2, 1)
_MEMORY = 1 << 16
_DECAY = 0.98
_PRIOR = (2.0, 1.0)
"""Beta counts: every kind of guess starts at two of three."""
_BACK = 1 - _DECAY
_PRICES = {4: 1.3, 8: 1.7}


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next, and why: the n-gram's length and whether it stands in the sequence itself."""

    tokens: Sequence[int] = ()
    source: tuple[str, int] = ("none", 0)


class Lookup:
    """What followed each n-gram of one sequence, the latest time it was seen."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The sequence has gone on."""
        for token in tokens:
            # The n-grams that end before this token are now followed by something.
            for n in _NGRAMS:
                if len(self.tokens) >= n:
                    self._seen[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def after(self, ngram: tuple[int, ...], most: int) -> Sequence[int]:
        """At most ``most`` tokens that followed ``ngram``; none where it was not seen."""
        at = self._seen.get(ngram)
        return self.tokens[at : at + most] if at is not None else ()


class Drafter:
    """Guesses for the running requests: what an engine wrote, how often guesses came true, what steps cost."""

    def __init__(self) -> None:
        self._written: dict[tuple[int, ...], Sequence[int]] = {}
        self._came_true: dict[tuple[str, int], tuple[float, float]] = defaultdict(lambda: _PRIOR)
        self._seconds: dict[tuple[int, int, bool], float] = {}

    def remember(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """A request has been answered: others may be answered alike."""
        start = min(len(prompt), max(_NGRAMS))
        whole = [*prompt[len(prompt) - start :], *output]
        for i in range(start, len(whole)):
            for n in _NGRAMS:
                if n <= i:
                    self._written.pop(key := tuple(whole[i - n : i]), None)
                    self._written[key] = whole[i : i + WIDTHS[-1] - 1]
        while len(self._written) > _MEMORY:
            del self._written[next(iter(self._written))]  # written longest ago
        # What did not pay is tried again some requests later.
        for source, (true, false) in self._came_true.items():
            self._came_true[source] = (_DECAY * true + _BACK * _PRIOR[0], _DECAY * false + _BACK * _PRIOR[1])
        for shape, seconds in self._seconds.items():
            self._seconds[shape] = _DECAY * seconds if shape[1] > 1 else seconds

    def guess(self, lookup: Lookup, most: int) -> Guess:
        """What may come after ``lookup``'s sequence, judged by its longest known ending."""
        for n in _NGRAMS:
            if len(lookup.tokens) < n:
                continue
            ending = tuple(lookup.tokens[-n:])
            if own := lookup.after(ending, most):
                return Guess(own, ("own", n))
            if written := self._written.get(ending):
                return Guess(written[:most], ("written", n))
        return Guess()

    def learn(self, guess: Guess, kept: int) -> None:
        """``kept`` of the guessed tokens came true."""
        true, false = self._came_true[guess.source]
        self._came_true[guess.source] = (_DECAY * true + kept, _DECAY * false + (kept < len(guess.tokens)))

    def expected(self, guess: Guess, width: int) -> float:
        """How many tokens a row yields in a step of that width, if each guess comes true independently."""
        true, false = self._came_true[guess.source]
        rate = true / (true + false)
        return sum(rate**i for i in range(min(width, len(guess.tokens) + 1)))

    def note(self, rows: int, width: int, drafted: bool, seconds: float) -> None:
        """A step of that shape took so long, the draft model's time included if it was asked."""
        before = self._seconds.get((rows, width, drafted), seconds)
        # One step that something held up must not rule a shape out.
        self._seconds[rows, width, drafted] = min(seconds, 0.9 * before + 0.1 * min(seconds, 2 * before))

    def plan(
        self, rows: int, guesses: Mapping[int, Guess], most: int = WIDTHS[-1], ahead: Mapping[int, int] | None = None
    ) -> tuple[int, dict[int, Guess]]:
        """The width, up to ``most``, and the guesses that yield most tokens a second.

        Args:
            rows: of the batch, idle ones too. guesses: of the running.
            ahead: how many tokens a draft model may guess for each of them; its guesses are yet to be made.
        """
        best, fastest = (1, dict(guesses)), float(len(guesses))
        if rows > MOST_ROWS:
            return best
        asked = {row: Guess((-1,) * ahead[row], MODEL) if ahead else Guess() for row in guesses}
        modelled = {row: max(guesses[row], asked[row], key=lambda g: self.expected(g, WIDTHS[-1])) for row in guesses}
        for chosen in (guesses, modelled):
            for width in (w for w in WIDTHS if w <= most):
                if (pace := self._pace(rows, width, list(chosen.values()))) > fastest:
                    best, fastest = (width, dict(chosen)), pace
        return best

    def _pace(self, rows: int, width: int, guesses: Sequence[Guess]) -> float:
        """Tokens in the time of a plain step. A shape nobody has timed is taken to be cheap, so that it gets timed."""
        drafted = any(guess.source == MODEL for guess in guesses)
        plain, timed = self._seconds.get((rows, 1, False)), self._seconds.get((rows, width, drafted))
        price = timed / plain if timed and plain else _PRICES[width]
        return sum(self.expected(guess, width) for guess in guesses) / price


def cut(guesses: Mapping[int, Guess], width: int) -> dict[int, Guess]:
    """The guesses as far as a step of that width can check them; one of width 1 checks none."""
    short = {row: Guess(guess.tokens[: width - 1], guess.source) for row, guess in guesses.items()}
    return {row: guess for row, guess in short.items() if guess.tokens}
