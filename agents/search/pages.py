"""Prompts that are written anew at each step, for the run's transcript: a page at a time, no chat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from ...models.engine.slots import common_prefix
from ..drawing import Drawing, draw_texts, draw_tokens, seen_tokens
from ..model import TokenModel, is_token_model
from ..observation import Characters
from ..trajectory import Prompt, Sample, Seen
from ..transcript import Transcript


class Pages(Transcript, Protocol):
    """Whole prompts in sequence.

    Attributes:
        few_shot: examples that each prompt shows. hint: what each prompt hints at.
    """

    few_shot: int
    hint: str | None

    def measure(self, page: str) -> int:
        """Tokens of a prompt."""
        ...

    def show(self, seen: str, student: str) -> None:
        """Put the next prompt: as the model sees it, and as it is stored (no examples, no hint)."""
        ...


class TokenPages(Pages):
    """Prompts in token ids. Special tokens are off: what stands in a prompt cannot be a control token."""

    text_only = False
    few_shot = 0
    hint: str | None = None

    def __init__(self, model: TokenModel, seen: str, student: str) -> None:
        self.counter = model.tokenizer
        self._model = model
        self.ids: tuple[int, ...] = ()
        self._before: list[int] = []
        self._student: list[int] = []
        self._first: Seen | None = None
        self.show(seen, student)

    @property
    def length(self) -> int:
        """Tokens of the prompt as the model sees it."""
        return len(self.ids)

    def measure(self, page: str) -> int:
        """Tokens of a prompt."""
        return len(self.counter.encode(page))

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt as the model saw it."""
        return self._first or seen_tokens(self.ids)

    def show(self, seen: str, student: str) -> None:
        """Put the next prompt: as the model sees it, and as it is stored."""
        self.ids = tuple(self.counter.encode(seen))
        self._student = list(self.ids) if seen == student else self.counter.encode(student)

    def take_prompt(self) -> Prompt:
        """The stored prompt, relative to the one before and its output."""
        self._first = self._first or seen_tokens(self.ids)
        shared = common_prefix(self._before, self._student)
        return Prompt(shared=shared, suffix=self._student[shared:])

    async def draw(self, seeds: Sequence[int], how: Drawing) -> list[Sample]:
        """Let the model write, once for each seed, all from one prompt."""
        return await draw_tokens(self._model, self.ids, seeds, how)

    def keep(self, sample: Sample) -> None:
        """Go on with this output; it stays out of the next prompt, unless the state has it."""
        self._before = [*self._student, *sample.tokens]


class TextPages(Pages):
    """Prompts as single messages, for any LangChain chat model. A token is taken to be four characters."""

    text_only = True
    few_shot = 0
    hint: str | None = None

    def __init__(self, model: Any, seen: str) -> None:
        self.counter = Characters()
        self._model = model
        self._page = seen
        self._seen = Seen(hash=hashlib.sha256(seen.encode()).hexdigest(), length=self.length)

    @property
    def length(self) -> int:
        """Tokens of the prompt as the model sees it."""
        return self.measure(self._page)

    def measure(self, page: str) -> int:
        """Tokens of a prompt."""
        return len(self.counter.encode(page))

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt as the model saw it."""
        return self._seen

    def show(self, seen: str, student: str) -> None:
        """Put the next prompt: as the model sees it, and as it is stored."""
        self._page = seen

    def take_prompt(self) -> Prompt:
        """The stored prompt, relative to the one before and its output."""
        return Prompt()

    async def draw(self, seeds: Sequence[int], how: Drawing) -> list[Sample]:
        """Let the model write, once for each seed, all from one prompt."""
        from langchain_core.messages import HumanMessage

        return await draw_texts(self._model, [HumanMessage(self._page)], seeds, how)

    def keep(self, sample: Sample) -> None:
        """Go on with this output; it stays out of the next prompt, unless the state has it."""
        pass


def open_pages(model: Any, seen: str, student: str) -> Pages:
    """The prompts that fit the model; the first one is given."""
    return TokenPages(model, seen, student) if is_token_model(model) else TextPages(model, seen)
