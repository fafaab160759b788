"""One request on its way through the engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from llguidance import LLMatcher

from ..tokenizer import Tokenizer
from .adapters import Loaded
from .request import Completion, FinishReason, Request
from .shapes import WIDTHS
from .slots import Slot
from .speculation import Drafter, Guess, Lookup


@dataclass(eq=False)
class Job:
    """Mutable state of a request: what it has produced, where it sits, who waits for it.

    Attributes:
        cached: prompt tokens found in the KV cache.
        dispatched: tokens asked of the device; ``tokens`` are those that were read back.
        ended: nobody wants what may still be in flight.
        adapter: whose weights answer; None is the base model.
        scored: nothing is generated; the log-probabilities of the prompt's tokens from here on are what is asked.
    """

    request: Request
    max_tokens: int
    matcher: LLMatcher | None
    on_text: Callable[[str], None] | None = None
    future: Future[Completion] = field(default_factory=Future)
    slot: Slot | None = None
    cached: int = 0
    dispatched: int = 0
    ended: bool = False
    scored: int | None = None
    adapter: Loaded | None = None
    lookup: Lookup = field(default_factory=Lookup)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _text: str = ""
    _sent: int = 0

    @property
    def ahead(self) -> int:
        """How many tokens beyond the next may be guessed."""
        if self.request.sampling.repetition_penalty != 1:
            return 0
        return max(0, min(WIDTHS[-1] - 1, self.max_tokens - len(self.tokens) - 1))

    def guess(self, drafter: Drafter) -> Guess:
        """What may come next, for a step that checks it: forced by the grammar, or seen before."""
        if not self.ahead:
            return Guess()
        self.lookup.extend(self.request.prompt[len(self.lookup.tokens) :])
        self.lookup.extend(self.tokens[len(self.lookup.tokens) - len(self.request.prompt) :])
        if self.matcher is not None and (forced := self.matcher.compute_ff_tokens()):
            return self.allowed(Guess(forced, ("forced", 0)))
        return self.allowed(drafter.guess(self.lookup, self.ahead))

    def allowed(self, guess: Guess) -> Guess:
        """As much of a guess as may be checked."""
        tokens = list(guess.tokens[: self.ahead])
        if self.matcher is not None:
            tokens = tokens[: self.matcher.validate_tokens(tokens)]
        return Guess(tokens, guess.source)

    @property
    def waits(self) -> bool:
        """Whether the host must have read the last token before it can say what the next may be."""
        return self.matcher is not None or self.request.sampling.repetition_penalty != 1

    @property
    def position(self) -> int:
        """Tokens that are, or will be, in the cache when the next step runs."""
        return len(self.request.prompt) - 1 + self.dispatched

    def accept(self, token: int, raw: float, sampled: float, tokenizer: Tokenizer) -> FinishReason | None:
        """Take one sampled token; returns why generation is over, or None."""
        self.tokens.append(token)
        self.logprobs.append(raw)
        self.sampled_logprobs.append(sampled)
        if self.matcher is not None:
            self.matcher.consume_token(token)
        ended = token in tokenizer.eos_ids and not self.request.sampling.ignore_eos
        if self.request.stop or self.on_text or ended:
            self._text = tokenizer.decode(self.tokens, skip_special=True)
            ended = self._cut_at_stop() or ended
            self._stream(final=ended)
        # A finished grammar still lets the end-of-turn token be drawn: adapters must see it to learn to end a turn.
        if ended or (self.matcher is not None and self.matcher.is_error()):
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None

    def _cut_at_stop(self) -> bool:
        at = min((i for s in self.request.stop if (i := self._text.find(s)) >= 0), default=-1)
        if at >= 0:
            self._text = self._text[:at]
        return at >= 0

    def _stream(self, *, final: bool) -> None:
        """Send new text, holding back what might still become a stop string or is half a character."""
        if self.on_text is None:
            return
        end = len(self._text)
        if not final:
            longest = max((len(s) for s in self.request.stop), default=1)
            end -= longest - 1
            while end > 0 and self._text[end - 1] == "\ufffd":
                end -= 1
        if end > self._sent:
            piece, self._sent = self._text[self._sent : end], end
            try:
                self.on_text(piece)
            except Exception as error:  # the caller's own fault: this request ends, the batch goes on
                self.on_text = None
                self.fail(error)

    def finish(self, reason: FinishReason, tokenizer: Tokenizer) -> None:
        """Resolve the future with everything produced so far."""
        self.ended = True
        self._text = tokenizer.decode(self.tokens, skip_special=True)
        self._cut_at_stop()
        self._stream(final=True)
        done = Completion(
            tokens=tuple(self.tokens),
            text=self._text,
            logprobs=tuple(self.logprobs),
            sampled_logprobs=tuple(self.sampled_logprobs),
            finish_reason=reason,
            cached=self.cached,
            seconds=time.monotonic() - self.started,
        )
        with contextlib.suppress(InvalidStateError):  # its caller may leave at any moment
            self.future.set_result(done)

    def fail(self, error: Exception) -> None:
        """Resolve the future with an error."""
        self.ended = True
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)
