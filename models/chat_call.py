"""A call of a chat model, as LangChain code writes it, made into a request to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from .engine.request import Request, Sampling
from .errors import RestillError
from .messages import to_turns
from .tokenizer import Tokenizer
from .tool_calls import tool_grammar

# What LangChain code may pass along that changes nothing here: one call per turn, always strict.
_HARMLESS = {"stream", "stream_usage", "strict", "parallel_tool_calls", "ls_structured_output_format"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")
"""The sampling parameters that a model has and a call may override."""


@dataclass(frozen=True, kw_only=True)
class ChatCall:
    """One call, translated: what the engine gets, and what its answer is read with."""

    request: Request
    tools: Sequence[dict[str, Any]]
    logprobs: bool


def to_call(
    messages: list[BaseMessage],
    stop: list[str] | None,
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> ChatCall:
    """Translate one call.

    Args:
        messages: the conversation.
        stop: strings that end the answer.
        options: what was given with the call; what is None counts as not given.
        defaults: `SAMPLING`, seed and logprobs where a call does not give them.
        tokenizer: of the model.

    Raises:
        RestillError: an option is unknown, or a grammar is given beside tools.
    """
    kwargs = {key: value for key, value in options.items() if key not in _HARMLESS}
    tools = kwargs.pop("tools", None) or []
    choice = kwargs.pop("tool_choice", None)
    grammar = kwargs.pop("grammar", None)
    if choice == "none" or choice is False:
        tools = []
    if tools:
        if grammar is not None:
            raise RestillError("grammar and tools exclude each other: tools bring their own grammar; drop one")
        grammar = tool_grammar(tools, choice)
    given = {key: kwargs.pop(key, None) for key in (*SAMPLING, "seed", "logprobs")}
    options = {key: defaults[key] if value is None else value for key, value in given.items()}
    deadline = kwargs.pop("deadline", None)
    if kwargs:
        raise RestillError(
            f"unknown option {', '.join(sorted(kwargs))}; JaxChatModel takes stop, temperature, top_k, "
            "top_p, min_p, repetition_penalty, max_tokens, seed, grammar, deadline and logprobs"
        )
    request = Request(
        prompt=tuple(tokenizer.chat(to_turns(messages, tools))),
        sampling=Sampling(**{key: options[key] for key in SAMPLING}),
        seed=options["seed"],
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        grammar=grammar,
        deadline=deadline,
    )
    return ChatCall(request=request, tools=tools, logprobs=options["logprobs"])
