"""The conversation of one run, in tokens or in messages, to which the loop appends turns and observations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from ..models.engine.request import Request, Sampling
from ..models.errors import RestillError
from .model import TokenModel
from .observation import Characters, Counter
from .prompt import Message
from .tool_results import well_formed
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

    async def sample(
        self, *, grammar: str | None, max_tokens: int, temperature: float, seed: int, deadline: float | None
    ) -> Sample:
        """Let the model write one turn and append it."""
        ...

    @property
    def overhead(self) -> int:
        """Tokens that the template adds to an observation, at most."""
        ...

    def observe(self, observation: str) -> None:
        """Append an observation turn."""
        ...


class ModelFailure(Exception):
    """The model gave no completion; the message says why."""


class TokenTranscript(Transcript):
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
        self._tail: list[int] = []
        self._last: tuple[int, ...] = ()
        self._suffix: list[int] | None = None
        self._overhead = len(self._turn("."))

    @property
    def length(self) -> int:
        """Tokens so far, examples and hint included."""
        return len(self._prefix) + len(self._tail)

    @property
    def seen(self) -> Seen:
        """Hash and length of the first prompt as the model saw it."""
        text = ",".join(map(str, self._prefix))
        return Seen(hash=hashlib.sha256(text.encode()).hexdigest(), length=len(self._prefix))

    def take_prompt(self) -> Prompt:
        """What this turn adds to the stored prompt: ids, and how many of those before it goes on from."""
        if self._suffix is None:
            return Prompt(shared=0, suffix=self._student)
        shared = len(self._student) + len(self._tail) - len(self._suffix)
        return Prompt(shared=shared, suffix=self._suffix)

    async def sample(
        self, *, grammar: str | None, max_tokens: int, temperature: float, seed: int, deadline: float | None
    ) -> Sample:
        """Let the model take its turn; the ids join the conversation as they are."""
        completion = await self._model.agenerate_tokens(
            Request(
                prompt=(*self._prefix, *self._tail),
                sampling=Sampling(temperature=temperature, max_tokens=max_tokens),
                seed=seed,
                grammar=grammar,
                deadline=deadline,
            )
        )
        if completion.finish_reason == "error":
            raise ModelFailure(completion.error or "the model failed without a message")
        self._last = completion.tokens
        self._tail.extend(completion.tokens)
        return Sample(
            text=completion.text,
            tokens=list(completion.tokens),
            logprobs=list(completion.logprobs),
            sampled_logprobs=list(completion.sampled_logprobs),
            finish_reason=completion.finish_reason,
            seed=seed,
            cached=completion.cached,
            seconds=completion.seconds,
        )

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


class TextTranscript(Transcript):
    """A conversation in messages, for any LangChain chat model. A token is taken to be four characters."""

    text_only = True

    def __init__(self, model: Any, seen: Sequence[Message]) -> None:
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
        self.counter = Characters()
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

    async def sample(
        self, *, grammar: str | None, max_tokens: int, temperature: float, seed: int, deadline: float | None
    ) -> Sample:
        """Let the model take its turn, up to the observation that some invent."""
        from langchain_core.messages import AIMessage

        options: dict[str, Any] = {"stop": ["\nObservation:"]}
        if temperature > 0:
            options["temperature"] = temperature
        message = await self._model.ainvoke(self._messages, **options)
        text = well_formed(str(message.text).split("\nObservation:")[0])
        self._messages.append(AIMessage(text))
        return Sample(text=text, seed=seed)

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


def open_transcript(model: Any, seen: Sequence[Message], student: Sequence[Message]) -> Transcript:
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
