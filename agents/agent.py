"""What every agent is: a LangChain ``Runnable``, immutable and re-entrant, known by the hash of its options."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from typing import Any, ClassVar, Self

from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel

from ..models.errors import RestillError
from ..retrieval.types import Citation
from .budget import Budget
from .episode import Episode
from .model import default_few_shot, identity, is_token_model, nameless
from .plan import Plan
from .question import Question
from .threads import run_sync
from .tools import Tool, tools_fingerprint
from .trajectory import RunStatus, Step, Trajectory


class AgentResult(BaseModel):
    """What a run came to.

    Attributes:
        answer: ``None`` when there is none; with status "budget" or "invalid" it is a best effort.
        status: "answered", "budget", "invalid", "error" (see ``trajectory.error``) or "cancelled".
    """

    answer: str | None
    citations: list[Citation]
    status: RunStatus
    trajectory: Trajectory

    @classmethod
    def of(cls, trajectory: Trajectory) -> AgentResult:
        """The result that a trajectory holds."""
        return cls(
            answer=trajectory.answer,
            citations=trajectory.citations,
            status=trajectory.status,
            trajectory=trajectory,
        )


class Agent(Runnable[Any, AgentResult], ABC):
    """What :class:`ReActAgent` and :class:`SearchAgent` share. All state lives in the run.

    A kind of agent names its kind of run, and says what its hash covers and what it gives each run.

    Attributes:
        most_examples: few-shot examples that its prompt can hold.
        episode: its kind of run.
    """

    most_examples: ClassVar[int]
    episode: ClassVar[type[Episode[Any]]]

    model: Any
    tools: tuple[Tool, ...]
    budget: Budget
    few_shot: int | None
    temperature: float
    constrained: bool
    seed: int
    hint: Callable[[Question], str] | None
    observation_tokens: int
    step_tokens: int

    def _freeze(self, **values: Any) -> None:
        """Check what all agents have, and set every option for good."""
        model, few_shot, temperature = values["model"], values["few_shot"], values["temperature"]
        if not is_token_model(model) and not hasattr(model, "ainvoke"):
            raise RestillError(f"not a model: {model!r:.80}; give a JaxChatModel or a LangChain chat model")
        if few_shot is not None and not 0 <= few_shot <= self.most_examples:
            raise RestillError(f"few_shot={few_shot}: there are {self.most_examples} examples")
        for name, least in (("observation_tokens", 16), ("step_tokens", 32)):
            if values[name] < least:
                raise RestillError(f"{name}={values[name]}: give at least {least}")
        if not temperature >= 0:
            raise RestillError(f"temperature={temperature}: give 0 (greedy) or more")
        for name, value in {**values, "temperature": float(temperature)}.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RestillError(f"an agent never changes; use agent.replace({name}=...)")

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the constructor's options."""
        return tuple(inspect.signature(type(self)).parameters)

    def replace(self, **changes: Any) -> Self:
        """The same agent with other options (the names of the constructor)."""
        unknown = [name for name in changes if name not in self.options]
        if unknown:
            raise RestillError(f"an agent has no option {unknown[0]!r}; it has {', '.join(self.options)}")
        return type(self)(**{**{name: getattr(self, name) for name in self.options}, **changes})

    # -- identity

    @cached_property
    def examples(self) -> int:
        """How many few-shot examples the prompt holds."""
        return min(default_few_shot(self.model), self.most_examples) if self.few_shot is None else self.few_shot

    @property
    def at_once(self) -> int:
        """Requests that one run has in the model at the same time."""
        return 1

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Every option, as plain values."""

    @property
    def settled(self) -> dict[str, Any]:
        """What of :attr:`config` decides what the agent does."""
        config = self.config
        return {**config, "model": nameless(config["model"])}

    def _shared_config(self) -> dict[str, Any]:
        hint = self.hint
        return {
            "model": identity(self.model),
            "tools": [{"name": t.name, "fingerprint": t.fingerprint} for t in self.tools],
            "tools_hash": tools_fingerprint(self.tools),
            "budget": self.budget.to_dict(),
            "few_shot": self.examples,
            "temperature": self.temperature,
            "constrained": self.constrained,
            "hint": None if hint is None else getattr(hint, "__qualname__", type(hint).__qualname__),
            "observation_tokens": self.observation_tokens,
            "step_tokens": self.step_tokens,
        }

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The options, resolved."""

    def _shared_plan(self) -> dict[str, Any]:
        return {
            "protocol": self.config["protocol"],
            "model": self.model,
            "budget": self.budget,
            "few_shot": self.examples,
            "temperature": self.temperature,
            "observation_tokens": self.observation_tokens,
            "step_tokens": self.step_tokens,
            "hint": self.hint,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Agent hash, 16 hex digits: covers all of :attr:`settled`."""
        text = json.dumps(self.settled, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # -- running

    def begin(
        self,
        question: str | Question,
        *,
        seed: int | None = None,
        sample: int = 0,
        deadline: float | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Episode[Any]:
        """A run that has not begun yet; ``await episode.complete()`` carries it out."""
        return self.episode(
            self.plan,
            Question.of(question),
            seed=self.seed if seed is None else seed,
            sample=sample,
            deadline=deadline,
            on_step=on_step,
        )

    async def arun(
        self,
        question: str | Question,
        *,
        seed: int | None = None,
        sample: int = 0,
        deadline: float | None = None,
    ) -> Trajectory:
        """Run over one question.

        Args:
            seed: of this run; each step derives its own from it.
            sample: index among several runs over the same question.
            deadline: hard end (``time.monotonic()``), besides the budget's own.
        """
        return await self.begin(question, seed=seed, sample=sample, deadline=deadline).complete()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AgentResult:
        """Answer a question: a string, a :class:`Question` or a mapping with ``question``."""

        async def answer(question: Any) -> AgentResult:
            return AgentResult.of(await self.arun(question, **kwargs))

        return await self._acall_with_config(answer, input, config)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AgentResult:
        """Like :meth:`ainvoke`, for synchronous code (also inside a notebook)."""
        return run_sync(self.ainvoke(input, config, **kwargs))

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AgentResult]:
        """Like ``abatch``: all in one event loop, ``max_concurrency`` (of ``config``) at a time."""
        return run_sync(self.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs))

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Step | AgentResult]:
        """Yield each step when it is complete, then the result."""
        queue: asyncio.Queue[Step] = asyncio.Queue()
        episode = self.begin(input, on_step=queue.put_nowait, **kwargs)
        task = asyncio.ensure_future(episode.complete())
        try:
            while not task.done() or not queue.empty():
                getter = asyncio.ensure_future(queue.get())
                await asyncio.wait({task, getter}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield getter.result()
                else:
                    getter.cancel()
            yield AgentResult.of(task.result())
        finally:
            if not task.done():
                task.cancel()

    def __repr__(self) -> str:
        names = ", ".join(tool.name for tool in self.tools)
        return f"{type(self).__name__}({identity(self.model)['name']}, tools=[{names}], agent={self.fingerprint})"
