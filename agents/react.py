"""The ReAct agent: a LangChain ``Runnable`` that thinks, calls tools and answers with citations."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel

from ..models.errors import RestillError
from ..retrieval.types import Citation
from .budget import Budget
from .episode import Episode
from .grammar import finish_grammar, grammar
from .model import default_few_shot, identity, is_token_model
from .plan import Plan
from .prompt import EXAMPLES
from .protocol import PROTOCOL
from .question import Question
from .threads import run_sync
from .tools import Tool, tools_fingerprint
from .trajectory import RunStatus, Step, Trajectory

_OPTIONS = (
    "model",
    "tools",
    "budget",
    "few_shot",
    "temperature",
    "constrained",
    "seed",
    "hint",
    "observation_tokens",
    "step_tokens",
)


class AgentResult(BaseModel):
    """What a run came to.

    Attributes:
        answer: ``None`` when there is none; with status "budget" it is a best effort.
        status: "answered", "budget", "error" (see ``trajectory.error``) or "cancelled".
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


class ReActAgent(Runnable[Any, AgentResult]):
    """An agent in the protocol react-1. Immutable and re-entrant: all state lives in the run.

    Args:
        model: a ``JaxChatModel`` (token ids are kept) or any LangChain chat model (text only).
        tools: typed functions, LangChain tools or :class:`Tool`.
        budget: what a run may spend.
        few_shot: examples in the prompt (at most 2); ``None``: what the model's adapter was trained with,
            else 2.
        constrained: let a grammar allow only well-formed turns (token models).
        seed: of :meth:`invoke` and its kin; ``rollout`` derives its own.
        hint: text shown to the model under the question and never stored: the guide of a pilot.
        observation_tokens: longest observation.
        step_tokens: longest turn of the model.

    Raises:
        RestillError: two tools of one name, no tool at all, or a number out of range.
    """

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

    def __init__(
        self,
        model: Any,
        tools: Sequence[Any],
        *,
        budget: Budget = Budget(),
        few_shot: int | None = None,
        temperature: float = 0.0,
        constrained: bool = True,
        seed: int = 0,
        hint: Callable[[Question], str] | None = None,
        observation_tokens: int = 256,
        step_tokens: int = 128,
    ) -> None:
        if not is_token_model(model) and not hasattr(model, "ainvoke"):
            raise RestillError(f"not a model: {model!r:.80}; give a JaxChatModel or a LangChain chat model")
        made = tuple(Tool.of(tool) for tool in tools)
        names = [tool.name for tool in made]
        if not made:
            raise RestillError("an agent needs at least one tool; pass tools=[retriever.as_tool()]")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise RestillError(f"two tools are called {twice[0]!r}; rename one of them")
        if few_shot is not None and not 0 <= few_shot <= len(EXAMPLES):
            raise RestillError(f"few_shot={few_shot}: there are {len(EXAMPLES)} examples")
        for name, value, least in (
            ("observation_tokens", observation_tokens, 16),
            ("step_tokens", step_tokens, 32),
        ):
            if value < least:
                raise RestillError(f"{name}={value}: give at least {least}")
        if not temperature >= 0:
            raise RestillError(f"temperature={temperature}: give 0 (greedy) or more")
        options = (
            model,
            made,
            budget,
            few_shot,
            float(temperature),
            constrained,
            seed,
            hint,
            observation_tokens,
            step_tokens,
        )
        for name, value in zip(_OPTIONS, options, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RestillError(f"an agent never changes; use agent.replace({name}=...)")

    def replace(self, **changes: Any) -> ReActAgent:
        """The same agent with other options (the names of the constructor)."""
        unknown = [name for name in changes if name not in _OPTIONS]
        if unknown:
            raise RestillError(f"an agent has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}")
        return type(self)(**{**{name: getattr(self, name) for name in _OPTIONS}, **changes})

    # -- identity

    @cached_property
    def examples(self) -> int:
        """How many few-shot examples the prompt holds."""
        return min(default_few_shot(self.model), len(EXAMPLES)) if self.few_shot is None else self.few_shot

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the agent hash covers, as plain values."""
        hint = self.hint
        return {
            "protocol": PROTOCOL,
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

    @cached_property
    def fingerprint(self) -> str:
        """Agent hash, 16 hex digits: covers everything in :attr:`config`."""
        text = json.dumps(self.config, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _plan(self) -> Plan:
        tokens = is_token_model(self.model)
        return Plan(
            model=self.model,
            tools={tool.name: tool for tool in self.tools},
            budget=self.budget,
            few_shot=self.examples,
            temperature=self.temperature,
            observation_tokens=self.observation_tokens,
            step_tokens=self.step_tokens,
            hint=self.hint,
            grammar=grammar(self.tools) if tokens and self.constrained else None,
            finish_grammar=finish_grammar() if tokens else None,
            fingerprint=self.fingerprint,
        )

    # -- running

    def begin(
        self,
        question: str | Question,
        *,
        seed: int | None = None,
        sample: int = 0,
        deadline: float | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Episode:
        """A run that has not begun yet; ``await episode.complete()`` carries it out."""
        return Episode(
            self._plan,
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
        return f"ReActAgent({identity(self.model)['name']}, tools=[{names}], agent={self.fingerprint})"


def agent_summary(config: Mapping[str, Any]) -> str:
    """One line about an agent, from its :attr:`ReActAgent.config`."""
    model = config["model"]
    adapter = f" + {model['adapter']}" if model["adapter"] else ""
    return f"{model['name']}{adapter}, T={config['temperature']}, few-shot {config['few_shot']}"
