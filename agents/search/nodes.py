"""The steps of the search agent as nodes of its graph (Aksitov et al., arXiv 2312.10003, section 2)."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from ..trajectory import StepKind
from .graph import END, Edge, Spender, StateGraph
from .state import PastAction, Search

SEARCHES = "searches"
"""The budget that a search takes one from."""


class Run(Spender, Protocol):
    """What the nodes need of a run."""

    async def step(self, kind: StepKind, *, forced: bool = False) -> PastAction | None:
        """Let the model do one step; ``None``: it could not be read, or no budget was left for it."""
        ...

    async def search(self) -> None:
        """Carry out the search that was decided on."""
        ...


async def decide(run: Run) -> str:
    """Search for something, or end the searches."""
    action = await run.step("decide")
    if action is None:
        return "best_effort"
    return "search" if isinstance(action, Search) else "answer"


async def search(run: Run) -> str:
    """Call the search tool."""
    await run.search()
    return "summarise"


async def summarise(run: Run) -> str:
    """Select the results that matter and write down what they tell."""
    return "best_effort" if await run.step("summarise") is None else "decide"


async def answer(run: Run) -> str:
    """Draft the answer; its checks follow."""
    return "best_effort" if await run.step("answer") is None else "relevance"


async def answer_unchecked(run: Run) -> str:
    """Write the answer."""
    return "best_effort" if await run.step("answer") is None else END


async def relevance(run: Run) -> str:
    """Check that the answer fits the question."""
    return END if await run.step("relevance") is None else "grounding"


async def grounding(run: Run) -> str:
    """Check that the selected links support the answer."""
    await run.step("grounding")
    return END


async def best_effort(run: Run) -> str:
    """One last call, which can only be an answer."""
    await run.step("answer", forced=True)
    return END


@cache
def search_graph(checks: bool = True) -> StateGraph[Run]:
    """The search agent's graph, with the two self-checks or without."""
    nodes = {"decide": decide, "search": search, "summarise": summarise, "best_effort": best_effort}
    edges = [
        Edge("decide", "search", "Search", spends=SEARCHES),
        Edge("search", "summarise"),
        Edge("summarise", "decide"),
        Edge("decide", "answer", "Terminate"),
        *(Edge(name, "best_effort", "unreadable or out of budget") for name in ("decide", "summarise", "answer")),
        Edge("best_effort", END),
    ]
    if not checks:
        nodes |= {"answer": answer_unchecked}
        return StateGraph(nodes, start="decide", edges=[*edges, Edge("answer", END)])
    nodes |= {"answer": answer, "relevance": relevance, "grounding": grounding}
    edges += [
        Edge("answer", "relevance"),
        Edge("relevance", "grounding"),
        Edge("relevance", END, "unreadable or out of budget"),
        Edge("grounding", END),
    ]
    return StateGraph(nodes, start="decide", edges=edges)
