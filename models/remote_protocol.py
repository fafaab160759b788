"""OpenAI's chat protocol on the wire: responses and event streams to LangChain messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import httpx
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata

from .remote_errors import Endpoint, RemoteError, missing


def read_completion(response: httpx.Response, endpoint: Endpoint) -> AIMessage:
    """The assistant message in a response body.

    Raises:
        RemoteError: the body is not JSON, or lacks what the protocol promises.
    """
    try:
        body = response.json()
    except ValueError:
        start = " ".join(response.text[:80].split())
        raise RemoteError(
            f"{endpoint.url} answered with something that is not JSON ({start!r}); is base_url right?"
        ) from None
    choice = _first_choice(body, endpoint)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise missing("choices[0].message", endpoint)
    calls, invalid = _tool_calls(message.get("tool_calls"), endpoint)
    return AIMessage(
        content=message.get("content") or "",
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage(body),
        response_metadata=_metadata(body, choice, endpoint),
    )


class StreamReader:
    """Reads server-sent events line by line into message chunks."""

    OPTIONS: ClassVar[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._finished = self._started = False
        self.done = False
        """Whether the server has said that nothing follows; it may keep the connection."""
        self._used: UsageMetadata | None = None

    def read(self, line: str) -> Iterator[AIMessageChunk]:
        """Chunks of one line; comments, other fields and empty lines give none.

        Raises:
            RemoteError: the line is no valid event, or the server reports an error in the middle.
        """
        field, _, value = line.partition(":")
        value = value.strip()
        if field != "data" or not value:
            return
        if value == "[DONE]":
            self._finished = self.done = True
            return
        try:
            body = json.loads(value)
        except ValueError:
            raise RemoteError(f"{self._endpoint.url} streamed something that is not JSON ({value[:80]!r})") from None
        if isinstance(body, Mapping) and body.get("error"):
            error = body["error"]
            said = error.get("message", error) if isinstance(error, Mapping) else error
            raise RemoteError(f"{self._endpoint.url} failed while streaming: {said}")
        if isinstance(body, Mapping):
            self._used = _usage(body) or self._used  # some servers tell it with each event, as a running total
            if body.get("choices") == []:  # the last event carries the usage alone
                return
        choice = _first_choice(body, self._endpoint)
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            raise missing("choices[0].delta", self._endpoint)
        reason = choice.get("finish_reason")
        self._finished = self._finished or reason is not None
        self._started = True
        yield AIMessageChunk(
            content=delta.get("content") or "",
            tool_call_chunks=[_call_chunk(call) for call in delta.get("tool_calls") or []],
            response_metadata=_metadata(body, choice, self._endpoint) if reason else {},
        )

    def end(self) -> AIMessageChunk:
        """The closing chunk, with the usage.

        Raises:
            RemoteError: the stream stopped before the model did.
        """
        if not self._finished:
            raise self._cut("it ended early")
        return AIMessageChunk(content="", chunk_position="last", usage_metadata=self._used)

    def blame(self, error: Exception) -> Exception:
        """The failure as the caller must see it: after the first piece of text a retry would repeat text."""
        if self._started and isinstance(error, httpx.HTTPError):
            return self._cut(str(error) or type(error).__name__)
        return error

    def _cut(self, why: str) -> RemoteError:
        return RemoteError(
            f"the stream from {self._endpoint.url} was cut off ({why}); what came is incomplete, ask again",
            retry=not self._started,
        )


def _first_choice(body: Any, endpoint: Endpoint) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise missing("choices", endpoint)
    return choices[0]


def _tool_calls(calls: Any, endpoint: Endpoint) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for call in calls or []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise missing("choices[0].message.tool_calls[].function.name", endpoint)
        name, text, ident = function["name"], function.get("arguments") or "{}", call.get("id")
        try:
            arguments = json.loads(text) if isinstance(text, str) else text
        except ValueError:
            arguments = None
        if isinstance(arguments, dict):
            good.append({"name": name, "args": arguments, "id": ident, "type": "tool_call"})
        else:
            error = "the arguments are no JSON object"
            bad.append({"name": name, "args": str(text), "id": ident, "error": error, "type": "invalid_tool_call"})
    return good, bad


def _call_chunk(call: Mapping[str, Any]) -> Any:
    function = call.get("function") or {}
    return {
        "name": function.get("name"),
        "args": function.get("arguments"),
        "id": call.get("id"),
        "index": call.get("index"),
        "type": "tool_call_chunk",
    }


def _usage(body: Mapping[str, Any]) -> Any:
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return None
    read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": int(usage.get("total_tokens") or read + written),
    }


def _metadata(body: Mapping[str, Any], choice: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    metadata = {
        "finish_reason": choice.get("finish_reason"),
        "model_name": body.get("model") or endpoint.model,
        "model_provider": "openai-compatible",
    }
    if choice.get("logprobs"):
        metadata["logprobs"] = choice["logprobs"]
    return metadata
