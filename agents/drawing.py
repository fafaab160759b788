"""How a model is asked for a turn: once for each seed, all at once, in token ids or in messages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..models.engine.request import Request, Sampling
from ..models.text import well_formed
from .model import TokenModel
from .trajectory import Sample, Seen

Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a turn is drawn. A model without token ids heeds ``temperature`` and ``stop`` alone.

    Attributes:
        grammar: what the turn must match; ``None``: nothing.
        max_tokens: longest turn.
        temperature: 0 is greedy.
        deadline: when the model must return what it has (``time.monotonic()``); ``None``: never.
        stop: strings that end the turn.
    """

    grammar: str | None
    max_tokens: int
    temperature: float
    deadline: float | None
    stop: tuple[str, ...] = ()


class ModelFailure(Exception):
    """The model gave no completion; the message says why."""


async def draw_tokens(model: TokenModel, prompt: tuple[int, ...], seeds: Sequence[int], how: Drawing) -> list[Sample]:
    """Let the model go on with ``prompt`` once for each seed, at once, so that it is computed once (the engine forks
    its cache).

    Raises:
        ModelFailure: the model gave no completion to one of them.
    """
    sampling = Sampling(temperature=how.temperature, max_tokens=how.max_tokens)
    requests = [
        Request(prompt=prompt, sampling=sampling, seed=seed, stop=how.stop, grammar=how.grammar, deadline=how.deadline)
        for seed in seeds
    ]
    completions = await _all([model.agenerate_tokens(request) for request in requests])
    samples = []
    for seed, completion in zip(seeds, completions, strict=True):
        if completion.finish_reason == "error":
            raise ModelFailure(completion.error or "the model failed without a message")
        samples.append(
            Sample(
                text=completion.text,
                tokens=list(completion.tokens),
                logprobs=list(completion.logprobs),
                sampled_logprobs=list(completion.sampled_logprobs),
                finish_reason=completion.finish_reason,
                seed=seed,
                cached=completion.cached,
                seconds=completion.seconds,
            )
        )
    return samples


async def draw_texts(model: Any, messages: Sequence[Any], seeds: Sequence[int], how: Drawing) -> list[Sample]:
    """Ask a LangChain chat model once for each seed (which it does not know); cut at the first stop string."""
    # Temperature 0 too: a server's own default may be anything.
    replies = await _all([model.ainvoke(messages, stop=list(how.stop), temperature=how.temperature) for _ in seeds])
    return [_text_sample(reply, seed, how.stop) for reply, seed in zip(replies, seeds, strict=True)]


def _text_sample(reply: Any, seed: int, stop: Sequence[str]) -> Sample:
    whole = text = str(reply.text)
    for end in stop:
        text = text.split(end)[0]
    told = getattr(reply, "response_metadata", None) or {}
    reason = told.get("finish_reason") or told.get("stop_reason")
    cut = text == whole and reason in ("length", "max_tokens", "MAX_TOKENS")  # as servers call it
    return Sample(text=well_formed(text), seed=seed, finish_reason="length" if cut else "stop")


async def _all(calls: Sequence[Awaitable[Reply]]) -> list[Reply]:
    """What all calls return; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def seen_tokens(ids: Sequence[int]) -> Seen:
    """Hash and length of a prompt in token ids."""
    text = ",".join(map(str, ids))
    return Seen(hash=hashlib.sha256(text.encode()).hexdigest(), length=len(ids))
