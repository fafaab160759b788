"""A model behind an OpenAI-compatible HTTP endpoint, as a LangChain chat model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from .errors import RestillError
from .remote_errors import Endpoint, RemoteError, Retry
from .remote_protocol import StreamReader, read_completion
from .text import well_formed

_OPTIONS = ("temperature", "top_p", "max_tokens", "seed", "logprobs")
_HARMLESS = {"stream", "ls_structured_output_format"}


class RemoteChatModel(BaseChatModel):
    """Chat completions of any server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, a provider).

    Connection failures, timeouts, 429 and 5xx are retried with exponential backoff and jitter, or after the
    time that ``Retry-After`` names; everything else fails at once. Trajectories made with it are text-only,
    as the protocol carries no token ids.

    Attributes:
        base_url: up to and including ``/v1``.
        model: the server's name for the model.
        api_key: sent as a bearer token; ``$OPENAI_API_KEY`` if not given, none if that is not set either.
        timeout: seconds one attempt may take.
        max_retries: further attempts after the first.
        max_retry_wait: longest wait between two attempts, also when the server asks for more.

    Raises:
        RestillError: from every call that fails in the end; the message says how and what to do.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    base_url: str
    model: str
    api_key: SecretStr | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: bool | None = None
    timeout: float = Field(default=60.0, gt=0)
    max_retries: int = Field(default=4, ge=0)
    max_retry_wait: float = Field(default=30.0, gt=0)
    headers: dict[str, str] = Field(default_factory=dict)
    transport: Any = Field(default=None, exclude=True, repr=False)
    """An httpx transport for tests; it serves synchronous and asynchronous calls."""

    _endpoint: Endpoint = PrivateAttr()
    _client: httpx.Client | None = PrivateAttr(None)

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            sound = url.startswith(("http://", "https://")) and bool(httpx.URL(url).host)
        except httpx.InvalidURL:
            sound = False
        if not sound:
            raise RestillError(f"base_url={url!r} is no address; write http://host:port/v1 or https://host/v1")
        return url.rstrip("/")

    def model_post_init(self, context: Any, /) -> None:
        """Resolve the API key."""
        key = self.api_key.get_secret_value() if self.api_key else os.environ.get("OPENAI_API_KEY", "")
        self._endpoint = Endpoint(url=f"{self.base_url}/chat/completions", model=self.model, key=key)

    @classmethod
    def from_spec(cls, spec: str, **options: Any) -> RemoteChatModel:
        """A model from ``"http://host:port/v1#model-name"``, as the command line spells it.

        Raises:
            RestillError: the part after ``#`` is missing.
        """
        base_url, _, name = spec.partition("#")
        if not name:
            raise RestillError(f"{spec!r} names no model; write {base_url}#MODEL")
        return cls(base_url=base_url, model=name, **options)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable:
        """Let the model call tools, as far as the server supports it; arguments as in LangChain."""
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        names = [tool["function"]["name"] for tool in formatted]
        if tool_choice in ("any", True):
            tool_choice = "required"
        elif tool_choice in names:
            tool_choice = {"type": "function", "function": {"name": tool_choice}}
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=formatted, **kwargs)

    @property
    def fingerprint(self) -> str:
        """Hash of server and model name: all that can be known of the weights."""
        return hashlib.sha256(f"{self.base_url}#{self.model}".encode()).hexdigest()

    def close(self) -> None:
        """Close idle connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @property
    def _llm_type(self) -> str:
        return "restill-remote"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "model": self.model,
            **{key: getattr(self, key) for key in _OPTIONS},
        }

    def _body(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], more: Mapping[str, Any] = {}
    ) -> bytes:
        if not messages:
            raise RestillError("there are no messages; pass at least one human message")
        options = {key: getattr(self, key) for key in _OPTIONS} | {"stop": stop or None}
        options |= {key: value for key, value in kwargs.items() if key not in _HARMLESS}
        given = {key: value for key, value in options.items() if value is not None}
        body = {"model": self.model, "messages": convert_to_openai_messages(messages), **given, **more}
        return well_formed(json.dumps(body, ensure_ascii=False)).encode()

    def _headers(self) -> dict[str, str]:
        return {"content-type": "application/json", **self._endpoint.headers(), **self.headers}

    def _retry(self) -> Retry:
        return Retry(self._endpoint, attempts=self.max_retries + 1, longest=self.max_retry_wait, timeout=self.timeout)

    def _sync_client(self) -> httpx.Client:
        if self._client is None:
            self._client = httpx.Client(timeout=self.timeout, transport=self.transport, headers=self._headers())
        return self._client

    def _async_client(self) -> httpx.AsyncClient:
        # One a call: an async client belongs to the event loop it was first used in.
        return httpx.AsyncClient(timeout=self.timeout, transport=self.transport, headers=self._headers())

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        body, retry = self._body(messages, stop, kwargs), self._retry()
        while True:
            try:
                response = self._sync_client().post(self._endpoint.url, content=body)
                retry.check(response)
                return _result(read_completion(response, self._endpoint))
            except (httpx.HTTPError, RemoteError) as error:
                time.sleep(retry.wait_after(error))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        body, retry = self._body(messages, stop, kwargs), self._retry()
        async with self._async_client() as client:
            while True:
                try:
                    response = await client.post(self._endpoint.url, content=body)
                    retry.check(response)
                    return _result(read_completion(response, self._endpoint))
                except (httpx.HTTPError, RemoteError) as error:
                    await asyncio.sleep(retry.wait_after(error))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        body, retry = self._body(messages, stop, kwargs, StreamReader.OPTIONS), self._retry()
        while True:
            reader = StreamReader(self._endpoint)
            try:
                with self._sync_client().stream("POST", self._endpoint.url, content=body) as response:
                    if response.is_error:
                        response.read()
                    retry.check(response)
                    for line in response.iter_lines():
                        yield from map(_chunk, reader.read(line))
                        if reader.done:
                            break
                    yield _chunk(reader.end())
                    return
            except (httpx.HTTPError, RemoteError) as error:
                time.sleep(retry.wait_after(reader.blame(error)))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        body, retry = self._body(messages, stop, kwargs, StreamReader.OPTIONS), self._retry()
        async with self._async_client() as client:
            while True:
                reader = StreamReader(self._endpoint)
                try:
                    async with client.stream("POST", self._endpoint.url, content=body) as response:
                        if response.is_error:
                            await response.aread()
                        retry.check(response)
                        async for line in response.aiter_lines():
                            for message in reader.read(line):
                                yield _chunk(message)
                            if reader.done:
                                break
                        yield _chunk(reader.end())
                        return
                except (httpx.HTTPError, RemoteError) as error:
                    await asyncio.sleep(retry.wait_after(reader.blame(error)))


def _result(message: BaseMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)
