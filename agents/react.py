"""The ReAct agent: thinks, calls tools and answers with citations, in as many steps as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from ..models.errors import RestillError
from .agent import Agent
from .budget import Budget
from .grammar import finish_grammar, grammar
from .model import is_token_model
from .plan import ReActPlan
from .prompt import EXAMPLES
from .protocol import PROTOCOL
from .question import Question
from .react_episode import ReActEpisode
from .tools import Tool


class ReActAgent(Agent):
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

    most_examples = len(EXAMPLES)
    episode = ReActEpisode

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
        made = tuple(Tool.of(tool) for tool in tools)
        names = [tool.name for tool in made]
        if not made:
            raise RestillError("an agent needs at least one tool; pass tools=[retriever.as_tool()]")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise RestillError(f"two tools are called {twice[0]!r}; rename one of them")
        self._freeze(
            model=model,
            tools=made,
            budget=budget,
            few_shot=few_shot,
            temperature=temperature,
            constrained=constrained,
            seed=seed,
            hint=hint,
            observation_tokens=observation_tokens,
            step_tokens=step_tokens,
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every option, as plain values."""
        return {"protocol": PROTOCOL, **self._shared_config()}

    @cached_property
    def plan(self) -> ReActPlan:
        """The options, resolved."""
        tokens = is_token_model(self.model)
        return ReActPlan(
            **self._shared_plan(),
            tools={tool.name: tool for tool in self.tools},
            grammar=grammar(self.tools) if tokens and self.constrained else None,
            finish_grammar=finish_grammar() if tokens else None,
        )
