"""State graphs: small async functions that each name the next one, checked before anything runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import networkx as nx

from ...models.errors import RestillError

END = "__end__"


class Spender(Protocol):
    """What goes through a graph whose edges spend a budget."""

    def spend(self, budget: str) -> None:
        """Take one from ``budget``; raises when nothing is left of it."""
        ...


State = TypeVar("State", bound=Spender)
Node = Callable[[State], Awaitable[str]]
"""Does one thing, and names the node that comes next (``END``: none)."""


@dataclass(frozen=True)
class Edge:
    """A step from one node to another.

    Attributes:
        when: in which case it is taken, in a word or two; for people.
        spends: the budget that it takes one from; ``None``: it is free.
    """

    source: str
    target: str
    when: str = ""
    spends: str | None = None


class StateGraph(Generic[State]):
    """A graph of nodes that can neither get lost nor run for ever.

    Args:
        nodes: by name.
        start: where a run begins.
        edges: all steps that a node may choose; a last one goes to ``END``.

    Raises:
        RestillError: an edge to or from nowhere, two edges alike, a node that cannot be reached or cannot
            reach the end, or a cycle that spends nothing.
    """

    def __init__(self, nodes: Mapping[str, Node[State]], *, start: str, edges: Iterable[Edge]) -> None:
        self.nodes, self.start, self.edges = dict(nodes), start, tuple(edges)
        self._edge = {(edge.source, edge.target): edge for edge in self.edges}
        self._check()

    async def run(self, state: State) -> list[str]:
        """Go from ``start`` to the end; returns the names of the nodes that ran.

        Raises:
            RestillError: a node named one that no edge leads to, or a budget is spent.
        """
        here, path = self.start, list[str]()
        while here != END:
            path.append(here)
            there = await self.nodes[here](state)
            edge = self._edge.get((here, there))
            if edge is None:
                raise RestillError(f"node {here!r} chose {there!r}, and the graph has no such edge; add it")
            if edge.spends is not None:
                state.spend(edge.spends)
            here = there
        return path

    def mermaid(self) -> str:
        """The graph as Mermaid source, with what edges spend in parentheses."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        for edge in self.edges:
            notes = [edge.when, f"(one of {edge.spends})" if edge.spends else ""]
            label = " ".join(note for note in notes if note)
            target = "[*]" if edge.target == END else edge.target
            lines.append(f"    {edge.source} --> {target}" + (f": {label}" if label else ""))
        return "\n".join(lines) + "\n"

    def _check(self) -> None:
        known = {*self.nodes, END}
        for name in (self.start, *(end for edge in self.edges for end in (edge.source, edge.target))):
            if name not in known:
                raise RestillError(f"the graph has no node {name!r}; it has {', '.join(self.nodes)}")
        if len(self._edge) < len(self.edges):
            raise RestillError("two edges join the same two nodes; keep one of them")
        whole = nx.DiGraph(list(self._edge))
        whole.add_nodes_from(known)
        reached = nx.descendants(whole, self.start) | {self.start}
        ending = nx.ancestors(whole, END) | {END}
        if lost := sorted(known - {END} - reached):
            raise RestillError(f"no way leads from {self.start!r} to node {lost[0]!r}; add an edge or drop the node")
        if stuck := sorted(known - ending):
            raise RestillError(f"no way leads from node {stuck[0]!r} to the end; add an edge")
        free = nx.DiGraph([pair for pair, edge in self._edge.items() if edge.spends is None])
        if not nx.is_directed_acyclic_graph(free):
            cycle = " -> ".join(source for source, _ in nx.find_cycle(free))
            raise RestillError(f"the cycle {cycle} spends no budget and could run for ever; let one of its edges spend")
