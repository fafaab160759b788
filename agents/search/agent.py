"""The search agent of "ReST meets ReAct": a state machine of small steps around one search tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ...models.errors import RestillError
from ..agent import Agent
from ..budget import Budget
from ..model import is_token_model
from ..prompt import search_tool
from ..question import Question
from ..tools import Tool
from ..trajectory import Action, Trajectory
from .code import CodeFormat
from .compact import CompactFormat
from .episode import SearchEpisode, SearchPlan
from .examples import EXAMPLES
from .format import PromptFormat
from .nodes import search_graph
from .replay import read, replay

FORMATS: dict[str, PromptFormat] = {format.name: format for format in (CompactFormat(), CodeFormat())}


class SearchAgent(Agent):
    """Decides, searches, summarises, and so on; then answers with inline citations and checks itself twice.

    After Aksitov et al. (arXiv 2312.10003). Each step is drawn several times and goes on with the sample of
    lowest perplexity (of the model itself: temperature 1, mean per token) among those that can be read. If
    none can, they are drawn once more with other seeds; then the run ends with status "invalid" and, if one
    can be had, a best-effort answer.

    Args:
        model: a ``JaxChatModel`` (token ids are kept) or any LangChain chat model (text only: the first sample
            that can be read goes on).
        tools: one search tool, whose one required argument is a string.
        format: ``"compact"`` (chat turns, for small models) or ``"code"`` (the paper's code as the prompt).
        searches: most searches of a run.
        top_k: results of a search that are shown.
        samples: drawn at each step; 1 when ``temperature`` is 0.
        checks: let the agent check its answer's relevance and grounding; ``Trajectory.draft`` keeps the answer
            from before.
        budget: steps, tokens and seconds of a run; 24 steps are 10 searches and all that belongs to them.
        few_shot: examples in the prompt (at most 2); ``None``: what the model's adapter was trained with,
            else 2.
        constrained: let a grammar allow only well-formed steps that name links there are (token models).
        seed: of :meth:`invoke` and its kin; ``rollout`` derives its own.
        hint: text shown to the model and never stored: the guide of a pilot.
        observation_tokens: longest observation.
        step_tokens: longest output of a step.

    Raises:
        RestillError: not exactly one search tool, an unknown format, or a number out of range.
    """

    most_examples = len(EXAMPLES)
    episode = SearchEpisode

    format: str
    searches: int
    top_k: int
    samples: int
    checks: bool

    def __init__(
        self,
        model: Any,
        tools: Sequence[Any],
        *,
        format: str = "compact",
        searches: int = 10,
        top_k: int = 3,
        samples: int = 4,
        checks: bool = True,
        budget: Budget = Budget(steps=24),
        few_shot: int | None = None,
        temperature: float = 0.5,
        constrained: bool = True,
        seed: int = 0,
        hint: Callable[[Question], str] | None = None,
        observation_tokens: int = 256,
        step_tokens: int = 128,
    ) -> None:
        made = tuple(Tool.of(tool) for tool in tools)
        if len(made) != 1 or search_tool(made) is None:
            names = ", ".join(tool.name for tool in made) or "none"
            raise RestillError(f"a search agent needs one tool that takes a query, and got {names}; use ReActAgent")
        if format not in FORMATS:
            raise RestillError(f"format={format!r} is unknown; choose {' or '.join(map(repr, FORMATS))}")
        for name, value, least in (("searches", searches, 0), ("top_k", top_k, 1), ("samples", samples, 1)):
            if value < least:
                raise RestillError(f"{name}={value}: give at least {least}")
        self._freeze(
            model=model,
            tools=made,
            format=format,
            searches=searches,
            top_k=top_k,
            samples=samples,
            checks=checks,
            budget=budget,
            few_shot=few_shot,
            temperature=temperature,
            constrained=constrained,
            seed=seed,
            hint=hint,
            observation_tokens=observation_tokens,
            step_tokens=step_tokens,
        )

    @property
    def at_once(self) -> int:
        """The samples of a step."""
        return self.samples if self.temperature > 0 else 1

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every option, as plain values."""
        return {
            "protocol": FORMATS[self.format].protocol,
            **self._shared_config(),
            "searches": self.searches,
            "top_k": self.top_k,
            "samples": self.samples,
            "checks": self.checks,
        }

    @cached_property
    def plan(self) -> SearchPlan:
        """The options, resolved."""
        tokens, found = is_token_model(self.model), search_tool(self.tools)
        tool, argument = found or ("", "")
        return SearchPlan(
            **self._shared_plan(),
            tools={tool: self.tools[0]},
            format=FORMATS[self.format],
            tool=tool,
            argument=argument,
            searches=min(self.searches, self.budget.per_tool.get(tool, self.searches)),
            top_k=self.top_k,
            samples=self.samples,
            checks=self.checks,
            grammars=tokens and self.constrained,
        )

    def replay(self, trajectory: Trajectory, *, few_shot: int = 0) -> Iterator[list[int]]:
        """The prompt ids of each step, written anew from what is stored: those of ``trajectory.prompts()``.

        Args:
            few_shot: examples in the prompts; with the trajectory's own number (and if it had no guide), they
                are what the model saw.

        Raises:
            RestillError: the trajectory has no token ids, or is of another protocol.
        """
        return replay(self.plan, trajectory, few_shot=few_shot)

    def read(self, trajectory: Trajectory) -> list[list[Action | None]]:
        """What each sample of each step of a trajectory of this agent's protocol would have done there, as a step
        stores it; ``None`` when it cannot be read. Rankers that judge actions need it for samples that did not go on.
        """
        return read(self.plan, trajectory)

    def mermaid(self) -> str:
        """The state machine as Mermaid source."""
        return search_graph(self.checks).mermaid()
