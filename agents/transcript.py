"""The conversation of one run, in tokens or in messages, to which the loop appends turns and observations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..models.errors import RestillError
from .drawing import Drawing, draw_texts, draw_tokens, seen_tokens
from .model import TokenModel
from .observation import Characters, Counter
from .prompt import Message
from .trajectory import Prompt, Sample, Seen


class Transcript(Protocol):
    """What the loop needs of a conversation.

    Attributes:
        counter: counts and cuts text in the units of ``length``.
        text_only: there are no token ids.
    """

    counter: Counter
    text_only: bool

    @property
    def length(self) -> int:
        """Tokens of everything that the model would read now."""
        ...

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt, as the model saw it."""
        ...

    def take_prompt(self) -> Prompt:
        """The prompt of the step that begins now, relative to the step before."""
        ...

    async def draw(self, seeds: Sequence[int], how: Drawing) -> list[Sample]:
        """Let the model write the turn that comes next, once for each seed."""
        ...

    def keep(self, sample: Sample) -> None:
        """Go on with this turn."""
        ...


class ChatTranscript(Transcript, Protocol):
    """A conversation in chat turns, which only grows.

    Attributes:
        answered: the model's turn has come at least once.
    """

    answered: bool

    @property
    def overhead(self) -> int:
        """Tokens that the template adds to an observation, at most."""
        ...

    def observe(self, observation: str) -> None:
        """Append an observation turn."""
        ...


class TokenTranscript(ChatTranscript):
    """A conversation in token ids, append-only.

    Args:
        seen: messages as the model sees them, few-shot examples and hint included.
        student: the same without examples and hint; stored in their place.
    """

    text_only = False

    def __init__(self, model: TokenModel, seen: Sequence[Message], student: Sequence[Message]) -> None:
        self.counter = model.tokenizer
        self._model = model
        self._tokenizer = model.tokenizer
        self._prefix = tuple(self._tokenizer.chat(seen))
        self._student = list(self._prefix) if seen == student else self._tokenizer.chat(student)
        self.answered = False
        self._tail: list[int] = []
        self._last: tuple[int, ...] = ()
        self._suffix: list[int] | None = None
        self._overhead = len(self._turn("."))

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model would read now."""
        return (*self._prefix, *self._tail)

    @property
    def length(self) -> int:
        """Tokens so far, examples and hint included."""
        return len(self._prefix) + len(self._tail)

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt as the model saw it."""
        return seen_tokens(self._prefix)

    def take_prompt(self) -> Prompt:
        """What this turn adds to the stored prompt: ids, and how many of those before it goes on from."""
        if self._suffix is None:
            return Prompt(shared=0, suffix=self._student)
        shared = len(self._student) + len(self._tail) - len(self._suffix)
        return Prompt(shared=shared, suffix=self._suffix)

    async def draw(self, seeds: Sequence[int], how: Drawing) -> list[Sample]:
        """Let the model write its turn once for each seed, all from one prompt."""
        return await draw_tokens(self._model, self.ids, seeds, how)

    def keep(self, sample: Sample) -> None:
        """Append a turn; its ids join the conversation as they are."""
        self.answered = True
        self._last = tuple(sample.tokens)
        self._tail.extend(sample.tokens)

    @property
    def overhead(self) -> int:
        """Tokens of a turn beside its text."""
        return self._overhead

    def observe(self, observation: str) -> None:
        """Append an observation as a turn of its own."""
        self._suffix = self._turn(observation)
        self._tail.extend(self._suffix)

    def _turn(self, observation: str) -> list[int]:
        return self._tokenizer.continue_chat(self._last, [{"role": "user", "content": observation}])


class TextTranscript(ChatTranscript):
    """A conversation in messages, for any LangChain chat model. A token is taken to be four characters."""

    text_only = True

    def __init__(self, model: Any, seen: Sequence[Message]) -> None:
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
        self.counter = Characters()
        self.answered = False
        self._model = model
        self._messages: list[Any] = [kinds[m["role"]](m["content"]) for m in seen]
        text = "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in seen)
        self._seen = Seen(hash=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), length=self.length)

    @property
    def length(self) -> int:
        """Tokens so far, about: four characters each, and a few for every turn."""
        return sum(self._size(message.text) for message in self._messages)

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt as the model saw it."""
        return self._seen

    def take_prompt(self) -> Prompt:
        """Nothing: messages have no token ids."""
        return Prompt()

    async def draw(self, seeds: Sequence[int], how: Drawing) -> list[Sample]:
        """Let the model write its turn, up to the observation that some invent."""
        how = replace(how, stop=("\nObservation:", *how.stop))
        return await draw_texts(self._model, self._messages, seeds, how)

    def keep(self, sample: Sample) -> None:
        """Append a turn."""
        from langchain_core.messages import AIMessage

        self.answered = True
        self._messages.append(AIMessage(sample.text))

    @property
    def overhead(self) -> int:
        """About the tokens of a turn beside its text."""
        return self._size("")

    def observe(self, observation: str) -> None:
        """Append an observation as a turn of its own."""
        from langchain_core.messages import HumanMessage

        self._messages.append(HumanMessage(observation))

    def _size(self, text: str) -> int:
        return len(self.counter.encode(text)) + 4  # the template's share of a turn, about


def open_transcript(model: Any, seen: Sequence[Message], student: Sequence[Message]) -> ChatTranscript:
    """The transcript that fits the model.

    Raises:
        RestillError: neither a token model nor a LangChain chat model.
    """
    from .model import is_token_model

    if is_token_model(model):
        return TokenTranscript(model, seen, student)
    if hasattr(model, "ainvoke"):
        return TextTranscript(model, seen)
    raise RestillError(f"not a model: {model!r:.80}; give a JaxChatModel or a LangChain chat model")
