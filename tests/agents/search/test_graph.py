"""A state graph is checked before it runs: nothing is out of reach, stuck or without end."""

from __future__ import annotations

import re
from typing import Any

import networkx as nx
import pytest

from restill.agents.search.graph import END, Edge, StateGraph
from restill.agents.search.nodes import SEARCHES, search_graph
from restill.models.errors import RestillError


class Purse:
    """Coins to spend."""

    def __init__(self, coins: int) -> None:
        self.coins = coins

    def spend(self, budget: str) -> None:
        if not self.coins:
            raise RestillError(f"no {budget} left")
        self.coins -= 1


def to(name: str) -> Any:
    async def node(state: Any) -> str:
        return name

    return node


async def test_a_run_follows_the_nodes_and_spends_on_the_way() -> None:
    async def again(purse: Purse) -> str:
        return "a" if purse.coins else END

    graph = StateGraph(
        {"a": to("b"), "b": again}, start="a", edges=[Edge("a", "b"), Edge("b", "a", spends="coins"), Edge("b", END)]
    )
    assert await graph.run(Purse(2)) == ["a", "b"] * 3


async def test_an_edge_that_was_not_declared_is_not_taken() -> None:
    graph = StateGraph({"a": to("a")}, start="a", edges=[Edge("a", END)])
    with pytest.raises(RestillError, match="no such edge"):
        await graph.run(Purse(0))


@pytest.mark.parametrize(
    ("edges", "why"),
    [
        ([Edge("a", "b"), Edge("b", "a")], "to the end"),
        ([Edge("a", END)], "no way leads from 'a' to node 'b'"),
        ([Edge("a", "b"), Edge("b", "a"), Edge("b", END)], "could run for ever"),
        ([Edge("a", "b"), Edge("b", END), Edge("b", "b")], "could run for ever"),
        ([Edge("a", "c"), Edge("b", END)], "no node 'c'"),
        ([Edge("a", "b"), Edge("a", "b", "twice"), Edge("b", END)], "same two nodes"),
    ],
)
def test_a_graph_that_could_go_wrong_is_refused(edges: list[Edge], why: str) -> None:
    with pytest.raises(RestillError, match=why):
        StateGraph({"a": to(END), "b": to(END)}, start="a", edges=edges)


@pytest.mark.parametrize("checks", [True, False])
def test_every_cycle_of_the_search_graph_spends_a_search(checks: bool) -> None:
    graph = search_graph(checks)
    spending = {(edge.source, edge.target) for edge in graph.edges if edge.spends == SEARCHES}
    cycles = list(nx.simple_cycles(nx.DiGraph([(edge.source, edge.target) for edge in graph.edges])))
    assert cycles == [cycle for cycle in cycles if set(zip(cycle, [*cycle[1:], cycle[0]], strict=True)) & spending]
    assert [sorted(cycle) for cycle in cycles] == [["decide", "search", "summarise"]]


def test_the_mermaid_text_has_every_edge() -> None:
    graph = search_graph()
    shown = set(re.findall(r"    (\S+) --> (\S+?)(?::|$)", graph.mermaid(), re.MULTILINE))
    named = {(edge.source, "[*]" if edge.target == END else edge.target) for edge in graph.edges}
    assert shown == named | {("[*]", "decide")}
    assert "decide --> search: Search (one of searches)" in graph.mermaid()
