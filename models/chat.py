"""The engine as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, PrivateAttr

from .chat_call import SAMPLING, ChatCall, to_call
from .engine.request import Completion, Request
from .errors import RestillError
from .messages import to_message
from .serving import Serving
from .streaming import in_thread

if TYPE_CHECKING:
    from .checkpoint.load import Checkpoint
    from .engine.engine import Engine
    from .engine.precision import Precision
    from .lora import AdapterInfo
    from .tokenizer import Tokenizer


class JaxChatModel(BaseChatModel):
    """A local model in LangChain code: ``invoke``, ``stream``, ``batch``, ``bind_tools``, structured output.

    Sampling defaults are the fields below; each may be given per call as well (``model.invoke(messages,
    temperature=0.7, seed=3)``), as may ``stop``, ``grammar`` (Lark, for llguidance) and ``deadline``.
    Text in messages can never become a control token of the chat template.

    Attributes:
        name: what the model is called in logs.
        temperature: 0 is greedy.
        top_k: 0 keeps all tokens.
        top_p, min_p: 1 and 0 keep all tokens.
        repetition_penalty: 1 is none.
        max_tokens: the most tokens to generate in one turn.
        seed: makes a sampled answer repeatable.
        logprobs: put log-probabilities into ``response_metadata``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    name: str | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    logprobs: bool = False

    _serving: Serving | None = PrivateAttr(None)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        precision: Precision = "auto",
        slots: int = 16,
        max_context: int = 2048,
        deterministic: bool = False,
        **defaults: Any,
    ) -> JaxChatModel:
        """A model by name (``"smollm2-135m"``), Hugging Face folder or ``.gguf`` file; pulled if need be.

        Args:
            name_or_path: which model.
            adapter: a LoRA adapter's name or folder, merged into the weights.
            precision: what the engine computes in: ``"auto"``, ``"f32"``, ``"w8a8"`` (int8, on CPU), ``"bf16"`` or
                ``"int8"`` (weights only).
            slots: how many sequences decode at once.
            max_context: tokens of prompt and answer together.
            deterministic: what a request gets does not depend on what else runs, to the last bit; slower.
            **defaults: sampling defaults, such as ``temperature=0.7``.

        Raises:
            RestillError: unknown model or adapter, or an adapter of another base model.
        """
        from .checkpoint.load import load_decoder

        checkpoint = load_decoder(str(name_or_path))
        return cls.from_checkpoint(
            checkpoint,
            adapter=adapter,
            precision=precision,
            slots=slots,
            max_context=max_context,
            deterministic=deterministic,
            **defaults,
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        adapter: str | Path | None = None,
        precision: Precision = "auto",
        slots: int = 16,
        max_context: int = 2048,
        deterministic: bool = False,
        **defaults: Any,
    ) -> JaxChatModel:
        """A model from weights in memory; the arguments are those of :meth:`from_pretrained`."""
        model = cls(**{"name": checkpoint.name, **defaults})
        serving = Serving(
            checkpoint, precision=precision, slots=slots, max_context=max_context, deterministic=deterministic
        )
        model._serving = serving if adapter is None else serving.with_adapter(adapter)
        return model

    def with_adapter(self, name_or_path: str | Path | None) -> JaxChatModel:
        """The same base weights with another adapter or none; its engine is its own, or this one's if that rests."""
        model = self.model_copy()
        model._serving = self._parts.with_adapter(name_or_path)
        return model

    def with_weights(self, folder: str | Path) -> JaxChatModel:
        """The same settings with the weights of a folder; served by this one's engine if that rests and they fit."""
        model = self.model_copy()
        model._serving = self._parts.with_weights(folder)
        model.name = model._serving.checkpoint.name
        return model

    @property
    def _parts(self) -> Serving:
        if self._serving is None:
            raise RestillError("this JaxChatModel has no weights; make it with JaxChatModel.from_pretrained(name)")
        return self._serving

    @property
    def engine(self) -> Engine:
        """The engine below; the first use starts it (merges the adapter, compiles on first requests)."""
        return self._parts.engine

    @property
    def checkpoint(self) -> Checkpoint:
        """The base weights, without the adapter."""
        return self._parts.checkpoint

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._parts.checkpoint.tokenizer

    @property
    def fingerprint(self) -> str:
        """Hash of the base model; the adapter's own is ``adapter.hash``."""
        return self._parts.checkpoint.fingerprint

    @property
    def adapter(self) -> AdapterInfo | None:
        """The adapter merged into the weights, if any."""
        return self._parts.adapter

    @property
    def max_context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return min(self._parts.max_context, self._parts.checkpoint.config.max_positions)

    @property
    def slots(self) -> int:
        """Sequences that decode at once."""
        return self._parts.slots

    @property
    def precision(self) -> Precision:
        """What the engine computes in; ``"auto"`` is resolved, so that logs tell what was used."""
        from .engine.precision import resolve

        return resolve(self._parts.precision)

    @property
    def deterministic(self) -> bool:
        """Whether what a request gets is the same to the last bit, whatever else runs."""
        return self._parts.deterministic

    def close(self) -> None:
        """Stop the engine, if it runs; the next call starts it again."""
        if self._serving is not None:
            self._serving.close()

    def rest(self) -> None:
        """Free the memory of the engine until the next call; ``with_adapter`` hands a resting engine on."""
        if self._serving is not None:
            self._serving.rest()

    async def agenerate_tokens(self, request: Request) -> Completion:
        """Token ids in, token ids out: the path of agents, whose transcripts are never re-tokenised."""
        return await self.engine.agenerate(request)

    # LangChain's side.

    @property
    def _llm_type(self) -> str:
        return "restill"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "adapter": self.adapter.hash if self.adapter else None,
            **{key: getattr(self, key) for key in (*SAMPLING, "seed")},
        }

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable:
        """Let the model call tools: the output is constrained to plain text or one well-formed call.

        Args:
            tools: functions, pydantic models, LangChain tools or OpenAI schemas.
            tool_choice: ``None``/``"auto"``, ``"any"``, ``"none"`` or a tool's name.
            **kwargs: passed on to every call.
        """
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, tool_choice=tool_choice, **kwargs)

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> ChatCall:
        defaults = {key: getattr(self, key) for key in (*SAMPLING, "seed", "logprobs")}
        return to_call(messages, stop, options, defaults=defaults, tokenizer=self.tokenizer)

    def _message(self, call: ChatCall, completion: Completion) -> AIMessage:
        if completion.finish_reason == "error":
            raise RestillError(completion.error or "generation failed")
        return to_message(
            completion,
            tokenizer=self.tokenizer,
            model_name=self.name or "restill",
            prompt_tokens=len(call.request.prompt),
            tools=call.tools,
            logprobs=call.logprobs,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        message = self._message(call, self.engine.generate([call.request])[0])
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        message = self._message(call, await self.engine.agenerate(call.request))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        held: bool | None = None  # what may become a tool call is held back until it is whole
        async for piece in self.engine.astream(call.request):
            if isinstance(piece, Completion):
                message = self._message(call, piece)
                last = message.model_dump(include={"tool_calls", "usage_metadata", "response_metadata"})
                content = message.content if held else ""
                yield ChatGenerationChunk(message=AIMessageChunk(content=content, chunk_position="last", **last))
            else:
                held = bool(call.tools) and piece.startswith("{") if held is None else held
                if not held:
                    yield ChatGenerationChunk(message=AIMessageChunk(content=piece))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return in_thread(lambda: self._astream(messages, stop, **kwargs))
