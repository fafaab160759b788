"""How a search agent's steps are written as prompts and read back: the interface of the prompt formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ...models.errors import RestillError
from ...models.text import well_formed
from ..observation import Counter
from ..tool_results import ToolResult
from ..trajectory import StepKind
from ..transcript import Transcript
from .state import PastAction, ResultItem, SearchState

MAX_OUTPUT = 20_000
"""Characters of the longest output that is read at all."""
MAX_TEXT = 200
"""Characters of a thought, a query or a comment under the grammar."""
MAX_SUMMARY = 300
MAX_ANSWER = 300
MAX_CITATIONS = 8


class PromptFormat(Protocol):
    """A way to write prompts. Never changed without a new ``protocol``: adapters and masks depend on it.

    Attributes:
        name: what ``SearchAgent(format=...)`` calls it.
        stop: strings that end an output.
        citation: finds the citations in an answer; group 1 is the link id.
    """

    name: str
    protocol: str
    stop: tuple[str, ...]
    citation: re.Pattern[str]

    def open(self, model: Any, state: SearchState, *, few_shot: int, hint: str | None) -> Transcript:
        """The prompts of one run, at its beginning."""
        ...

    def measure(self, transcript: Any, kind: StepKind, state: SearchState) -> int:
        """Tokens that the prompt of this step would have."""
        ...

    def ask(self, transcript: Any, kind: StepKind, state: SearchState) -> None:
        """Put the prompt of this step."""
        ...

    def grammar(self, kind: StepKind, state: SearchState) -> str:
        """The Lark grammar of this step's output."""
        ...

    def parse(self, kind: StepKind, text: str, state: SearchState) -> PastAction:
        """Read an output.

        Raises:
            RestillError: it is no such step; the message is short.
        """
        ...

    def write(self, kind: StepKind, action: PastAction, state: SearchState) -> str:
        """The output that :meth:`parse` reads as ``action``."""
        ...

    def read(self, text: str) -> tuple[StepKind, SearchState]:
        """What a prompt (decoded) asks for, and the state that it was written from: for scripted policies.

        Raises:
            RestillError: it is no prompt of this format.
        """
        ...

    def cite(self, answer: str, ids: Iterable[int]) -> str:
        """An answer with its citations."""
        ...

    def show(self, result: ToolResult, first: int, counter: Counter, max_tokens: int) -> tuple[str, list[ResultItem]]:
        """What a search found, as shown, and its items, numbered from ``first``."""
        ...


def split_answer(text: str, citation: re.Pattern[str]) -> tuple[str, list[int]]:
    """The bare answer, and the link ids that it cites in order."""
    ids = [int(match[1]) for match in citation.finditer(text)]
    bare = re.sub(rf"\s*(?:{citation.pattern})", "", text)
    return " ".join(bare.split()), ids


def checked_text(text: str, name: str) -> str:
    """One line of text that is not empty.

    Raises:
        RestillError: it is empty, or holds half of a surrogate pair.
    """
    line = " ".join(text.split())
    if not line:
        raise RestillError(f"{name} is empty")
    if well_formed(line) != line:
        raise RestillError(f"{name} holds a broken Unicode escape")
    return line


def checked_answer(text: str, citation: re.Pattern[str]) -> str:
    """An answer that is more than its citations.

    Raises:
        RestillError: it is not.
    """
    line = checked_text(text, "the answer")
    checked_text(split_answer(line, citation)[0], "the answer")
    return line


def either(ids: Sequence[int]) -> str:
    """A regular expression for one of ``ids``."""
    return "(" + "|".join(map(str, ids)) + ")"
