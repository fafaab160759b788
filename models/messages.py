"""LangChain messages to the plain role/content turns that chat templates know, and completions back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from .engine.request import Completion
from .errors import RestillError
from .tokenizer import Tokenizer
from .tool_calls import describe_tools, parse_tool_call, write_tool_call

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "user", "chat": "user"}


def to_turns(messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Turns with roles ``system``, ``user`` and ``assistant``, which every chat template has.

    A tool's result becomes a user turn, an assistant's tool call the JSON that the grammar would have made
    it write, and all system messages one leading turn, with the tools described at its end.

    Raises:
        RestillError: no messages, a role or a kind of content that no text model can read.
    """
    if not messages:
        raise RestillError("there are no messages; pass at least one human message")
    system = [_text(m) for m in messages if m.type == "system"]
    if tools:
        system.append(describe_tools(tools))
    turns = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    for message in messages:
        if message.type != "system":
            turns.append({"role": _role(message), "content": _content(message)})
    return turns


def to_message(
    completion: Completion,
    *,
    tokenizer: Tokenizer,
    model_name: str,
    prompt_tokens: int,
    tools: Sequence[Mapping[str, Any]] = (),
    logprobs: bool = False,
) -> AIMessage:
    """The assistant message of a completion.

    ``usage_metadata`` counts tokens (``cache_read``: found in the KV cache); ``response_metadata`` has
    ``finish_reason`` (``"tool_calls"`` if a tool was called), ``seconds`` and, on request, ``logprobs``.
    """
    call = parse_tool_call(completion.text, tools) if tools else None
    metadata: dict[str, Any] = {
        "finish_reason": "tool_calls" if call else completion.finish_reason,
        "model_name": model_name,
        "model_provider": "restill",
        "seconds": completion.seconds,
    }
    if logprobs:
        metadata["logprobs"] = {
            "content": [
                {
                    "token": tokenizer.decode([token]),
                    "token_id": token,
                    "logprob": logprob,
                    "sampled_logprob": sampled,
                }
                for token, logprob, sampled in zip(
                    completion.tokens, completion.logprobs, completion.sampled_logprobs, strict=True
                )
            ]
        }
    return AIMessage(
        content="" if call else completion.text,
        tool_calls=[call] if call else [],
        usage_metadata={
            "input_tokens": prompt_tokens,
            "output_tokens": len(completion.tokens),
            "total_tokens": prompt_tokens + len(completion.tokens),
            "input_token_details": {"cache_read": completion.cached},
        },
        response_metadata=metadata,
    )


def _role(message: BaseMessage) -> str:
    role = getattr(message, "role", None) or _ROLES.get(message.type)
    if role not in ("system", "user", "assistant"):
        raise RestillError(
            f"message type {message.type!r} (role {role!r}) is not supported; use human, ai, system or tool"
        )
    return role


def _content(message: BaseMessage) -> str:
    text = _text(message)
    if isinstance(message, ToolMessage):
        label = f"Result of {message.name}" if message.name else "Result"
        return f"{label}: {text}"
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = "\n".join(write_tool_call(call["name"], call["args"]) for call in message.tool_calls)
        return f"{text}\n{calls}" if text else calls
    return text


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") in ("text", "text-plain"):
            parts.append(block.get("text", ""))
        elif block.get("type") not in ("tool_use", "tool_call", "reasoning"):
            raise RestillError(
                f"message content of type {block.get('type')!r} is not supported; this model reads text only"
            )
    return "".join(parts)
