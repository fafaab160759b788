"""Asking many short questions of a chat model at once: a local engine in one batch, any other through LangChain."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..agents.model import CONTEXT_SLACK, TokenModel, context_of, is_token_model
from ..agents.threads import run_sync
from ..models.engine.request import Request, Sampling
from ..models.errors import RestillError
from ..models.remote_errors import RemoteError

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ChatCall:
    """One call.

    Attributes:
        messages: roles and contents.
        grammar: what a local model must keep to; others are asked for it in words only.
        seed: of this call, for a local model.
    """

    messages: Sequence[Message]
    grammar: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer to a call.

    Attributes:
        sure: probability that the model gives just this text, whatever the grammar; 1 where a model does not tell.
    """

    text: str
    sure: float = 1.0


def ask(model: Any, calls: Sequence[ChatCall], *, temperature: float, max_tokens: int) -> list[Reply]:
    """The replies, in the order of ``calls``; empty where a local model's context is too short, or where a remote model
    refuses this call, though not all.

    Args:
        model: a ``TokenModel`` (``JaxChatModel``) or any LangChain chat model, which is taken as it is: its own
            temperature and limits hold.

    Raises:
        RestillError: a local model failed at a call, or a remote one refuses all of them.
    """
    if is_token_model(model):
        return run_sync(_local(model, calls, temperature, max_tokens))
    turns = [[(message["role"], message["content"]) for message in call.messages] for call in calls]
    replies = model.batch(turns, return_exceptions=True) if turns else []
    failed = [reply for reply in replies if isinstance(reply, BaseException)]
    if failed and (len(failed) == len(replies) or not all(_refused(error) for error in failed)):
        raise next((error for error in failed if not _refused(error)), failed[0])
    return [Reply("" if isinstance(reply, BaseException) else reply.text) for reply in replies]


def _refused(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and error.refused


async def _local(model: TokenModel, calls: Sequence[ChatCall], temperature: float, max_tokens: int) -> list[Reply]:
    room = context_of(model)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)

    async def one(call: ChatCall) -> Reply:
        prompt = tuple(model.tokenizer.chat(call.messages))
        if room is not None and len(prompt) + max_tokens > room + CONTEXT_SLACK:
            return Reply("")
        request = Request(prompt=prompt, sampling=sampling, seed=call.seed, grammar=call.grammar)
        completion = await model.agenerate_tokens(request)
        if completion.finish_reason == "error":
            raise RestillError(completion.error or "generation failed")
        return Reply(completion.text, math.exp(sum(completion.logprobs)))

    return list(await asyncio.gather(*map(one, calls)))
