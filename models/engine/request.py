"""What goes into the engine and what comes out: plain frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from ..errors import RestillError

FinishReason = Literal["stop", "length", "deadline", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep that many of the likeliest; 0 keeps all.
        top_p: keep the likeliest until their mass reaches this (Holtzman et al. 1904.09751); 1 keeps all.
        min_p: keep what is at least this share of the likeliest (Nguyen et al. 2407.01082); 0 keeps all.
        repetition_penalty: divide the positive and multiply the negative logits of tokens that the prompt or the
            output already has (Keskar et al. 1909.05858, section 4.1); 1 leaves them.
        ignore_eos: go on after an end-of-turn token, until ``max_tokens`` or a stop string.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    ignore_eos: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """One continuation to generate.

    Attributes:
        prompt: token ids, never re-tokenised.
        seed: randomness of this request alone; the same seed and prompt give the same draw.
        stop: strings that end generation, also across token borders; the string itself is cut from ``text``.
        grammar: a Lark grammar for llguidance that the output must follow.
        adapter: name of an adapter that the engine has loaded; None is the model itself.
        deadline: ``time.monotonic()`` value after which generation stops with what it has.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    adapter: str | None = None
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished continuation.

    Attributes:
        tokens: sampled ids, the end-of-turn token included when it was sampled.
        text: decoded tokens without special tokens and without a stop string.
        logprobs: per token, log p under the model's own distribution (temperature 1, untruncated, no grammar).
        sampled_logprobs: per token, log p under the distribution it was drawn from.
        cached: how many prompt tokens were reused from the KV cache.
        seconds: wall time from submission to the last token.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    sampled_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    cached: int = 0
    seconds: float = 0.0
    error: str | None = None


def check_request(request: Request) -> None:
    """Refuse what the engine's thread would fail at, and with it everybody's requests.

    Raises:
        RestillError: a value of the wrong kind or out of its range, by name.
    """
    s, deadline = request.sampling, request.deadline
    for name, value, fits, range_ in (
        ("seed", request.seed, isinstance(request.seed, Integral), "a whole number"),
        ("deadline", deadline, deadline is None or isinstance(deadline, Real), "a number of seconds or None"),
        ("stop", request.stop, all(isinstance(end, str) and end for end in request.stop), "strings, none empty"),
        ("max_tokens", s.max_tokens, s.max_tokens >= 1, "at least 1"),
        ("temperature", s.temperature, 0 <= s.temperature < math.inf, "0 (greedy) or more"),
        ("top_k", s.top_k, s.top_k >= 0, "0 (all) or more"),
        ("top_p", s.top_p, 0 < s.top_p <= 1, "above 0, at most 1"),
        ("min_p", s.min_p, 0 <= s.min_p <= 1, "from 0 to 1"),
        ("repetition_penalty", s.repetition_penalty, 0 < s.repetition_penalty < math.inf, "above 0"),
    ):
        if not fits:
            raise RestillError(f"{name}={value} must be {range_}")
