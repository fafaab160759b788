"""What the next step checks beyond the next token, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import runner
from .draft import DraftModel
from .job import Job
from .model import CachedModel
from .shapes import MOST_ROWS, Shapes
from .speculation import MODEL, Drafter, Guess, cut


class Guesser:
    """Guesses for the rows that run, from what was seen before and from a draft model.

    Attributes:
        guessed, kept: tokens guessed so far, and how many of them came true.
    """

    def __init__(self, draft: CachedModel | None, shapes: Shapes, on: bool) -> None:
        self.model = DraftModel(draft, shapes) if draft else None
        self.drafter, self.on = Drafter(), on and not shapes.deterministic
        self.guessed = self.kept = 0
        self._shapes, self._asked = shapes, False
        self._shape: tuple[int, int, bool, int] | None = None

    def guesses(self, rows: Mapping[int, Job]) -> bool:
        """Whether there may be guesses for these rows."""
        return self.on and bool(rows) and self._shapes.rows(max(rows)) <= MOST_ROWS

    def plan(self, rows: Mapping[int, Job], flying: bool) -> tuple[int, dict[int, Guess]]:
        """The width of the next step and what it checks; a preview while a step is ``flying``."""
        self._asked = False
        if not self.guesses(rows):
            return 1, {}
        guesses = {row: job.guess(self.drafter) for row, job in rows.items()}
        if flying:
            guesses = {row: Guess(guess.tokens[1:], guess.source) for row, guess in guesses.items()}
        batch, most = self._shapes.rows(max(rows)), min(self._shapes.rest(job.position) for job in rows.values())
        ahead = {row: job.ahead for row, job in rows.items()} if self.model else {}
        width, guesses = self.drafter.plan(batch, guesses, most, ahead)
        asked = {row: rows[row] for row, guess in guesses.items() if guess.source == MODEL}
        self._asked = bool(asked) and width > 1
        if self.model and self._asked and not flying:
            drafted = self.model.guess(asked, batch, width - 1)
            for row in asked:
                tokens = drafted.get(row, [])
                guesses[row] = rows[row].allowed(Guess(tokens, MODEL))
                if len(guesses[row].tokens) < len(tokens):  # what the grammar forbids did not come true
                    self.drafter.learn(Guess(tokens, MODEL), 0)
        return width, cut(guesses, width)

    def time(self, rows: Mapping[int, Job], width: int, seconds: float | None) -> None:
        """Note what a step cost, unless a prompt or another shape is in the time."""
        if not self.guesses(rows):
            self._shape = None
            return
        shape = (self._shapes.rows(max(rows)), width, self._asked, runner.compilations())
        if seconds is not None and shape == self._shape:
            self.drafter.note(*shape[:3], seconds)
        self._shape = shape

    def learn(self, guess: Guess, kept: int) -> None:
        """``kept`` of the guessed tokens came true."""
        self.drafter.learn(guess, kept)
        self.guessed, self.kept = self.guessed + len(guess.tokens), self.kept + kept

    def remember(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """What was written may come again."""
        if self.on:
            self.drafter.remember(prompt, output)

    def warm(self) -> None:
        """Compile what guessing needs."""
        if self.model:
            self.model.warm()

    def forget(self) -> None:
        """Start over with an empty cache."""
        if self.model:
            self.model.forget()
