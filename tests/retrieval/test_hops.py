"""The graph over a collection and the walk on it."""

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval.hops import BACKWARD, DocumentGraph, Linked, personalised_pagerank
from restill.retrieval.types import Document

DOCUMENTS = [
    Document(id="kate", title="Kate Ramsay", text="Kate Ramsay is a character of the soap opera Neighbours."),
    Document(id="soap", title="Neighbours", text="Neighbours was created by Reg Watson."),
    Document(id="watson", title="Reg Watson", text="He worked for the Grundy Organisation."),
    Document(id="prison", title="Prisoner", text="A series of the Grundy Organisation.", metadata={"links": ["soap"]}),
    Document(id="bread", title="Bread", text="Flour and water."),
]


@pytest.fixture(scope="module")
def graph() -> DocumentGraph:
    return DocumentGraph.build(DOCUMENTS)


def test_follow_gives_what_a_document_names_then_what_names_it_then_what_shares_a_name(graph):
    assert graph.follow("soap") == [
        Linked("watson", "mentions", True),
        Linked("kate", "mentions", False),
        Linked("prison", "links", False),
    ]
    assert graph.follow("Reg Watson") == [Linked("soap", "mentions", False), Linked("prison", "shares", True)]
    assert graph.follow("bread") == []
    with pytest.raises(RestillError, match="no document has the id or title 'Nobody'"):
        graph.follow("Nobody")


def test_which_documents_are_linked(graph):
    assert [graph.is_linked(i) for i in ("kate", "watson", "bread", "unknown")] == [True, True, False, False]


def test_links_may_be_titles(graph):
    again = DocumentGraph.build(
        [*DOCUMENTS, Document(id="x", title="X", text="", metadata={"see": "Bread"})], links_key="see"
    )
    assert again.follow("x") == [Linked("bread", "links", True)]


def test_numbers_and_common_words_can_be_followed_and_linked_to():
    documents = [
        Document(id="novel", title="1984", text="By George Orwell."),
        Document(id="orwell", title="George Orwell", text="He wrote.", metadata={"links": ["1984", "It"]}),
        Document(id="it", title="It", text="it is what it is"),
    ]
    graph = DocumentGraph.build(documents)
    assert graph.follow("1984") == [Linked("orwell", "mentions", True)]
    assert graph.follow("It") == [Linked("orwell", "links", False)]
    assert Linked("it", "links", True) in graph.follow("orwell")


def test_a_walk_from_the_first_hit_reaches_the_second_document_and_the_third_less(graph):
    visits = graph.walk({"kate": 1.0})
    assert visits["soap"] > 0
    assert "bread" not in visits
    further = graph.walk({"kate": 1.0, "soap": 0.1})
    assert further["soap"] > further["watson"] > 0


def test_a_walk_prefers_what_is_likely(graph):
    plain, told = graph.walk({"soap": 1.0}), graph.walk({"soap": 1.0}, {"kate": 1.0})
    assert plain["watson"] > plain["kate"]
    assert told["kate"] > told["watson"]


def test_a_walk_from_nowhere_goes_nowhere(graph):
    assert graph.walk({}) == graph.walk({"unknown": 1.0}) == graph.walk({"kate": 0.0}) == {}
    assert graph.walk({"bread": 1.0}) == {}


def test_of_a_page_that_many_name_only_those_at_hand_are_visited():
    many = [Document(id=f"d{i}", title=f"Place Number{i}x", text="A town in Ruritania.") for i in range(150)]
    graph = DocumentGraph.build([Document(id="land", title="Ruritania", text="A country."), *many])
    assert graph.walk({"land": 1.0}) == {}
    assert set(graph.walk({"land": 1.0}, {"d7": 0.5})) == {"d7", "land"}
    assert "land" in graph.walk({"d3": 1.0})


def test_a_name_that_many_share_links_nothing():
    few = [Document(id=str(i), text=f"No. {i}: the Grundy Organisation") for i in range(5)]
    assert len(DocumentGraph.build(few).follow("0")) == 4
    assert DocumentGraph.build([*few, Document(id="5", text="The Grundy Organisation")]).follow("0") == []


def test_ids_must_be_unique():
    with pytest.raises(RestillError, match="twice"):
        DocumentGraph.build([DOCUMENTS[0], DOCUMENTS[0]])


def test_an_empty_collection_has_an_empty_graph():
    graph = DocumentGraph.build([])
    assert graph.to_networkx().number_of_nodes() == 0
    assert graph.walk({"a": 1.0}) == {}


def test_the_whole_graph_as_networkx(graph):
    whole = graph.to_networkx()
    assert set(whole) == {d.id for d in DOCUMENTS}
    assert whole.has_edge("kate", "soap")
    assert {d["relation"] for *_, d in whole.edges(data=True)} == {"mentions", "links", "shares"}


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.dictionaries(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), st.floats(0.01, 5), max_size=40),
            st.lists(st.floats(0.01, 5), min_size=n, max_size=n),
            st.sets(st.integers(0, n - 1), max_size=n - 1),
            st.floats(0.05, 0.9),
        )
    )
)
def test_pagerank_equals_networkx(case):
    edges, restart, unlikely, damping = case
    restart = np.array([0.0 if i in unlikely else weight for i, weight in enumerate(restart)])
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(restart)))
    graph.add_weighted_edges_from((a, b, w) for (a, b), w in edges.items())
    first = dict(enumerate(restart.tolist()))
    expected = networkx.pagerank(graph, damping, personalization=first, dangling=first, tol=1e-12, max_iter=1000)
    starts, targets = (np.array([edge[side] for edge in edges], int) for side in (0, 1))
    found = personalised_pagerank(starts, targets, np.array(list(edges.values()), float), restart, damping=damping)
    assert found == pytest.approx([expected[i] for i in range(len(restart))], abs=1e-7)
    assert found.sum() == pytest.approx(1)


def test_the_walk_is_pagerank_on_the_links_both_ways(graph):
    whole = networkx.DiGraph()
    whole.add_weighted_edges_from([("kate", "soap", 1.0), ("soap", "kate", BACKWARD)])
    rank = networkx.pagerank(whole, 0.5, personalization={"kate": 1.0}, tol=1e-12)
    visits = graph.walk({"kate": 1.0})
    assert visits["soap"] == pytest.approx(rank["soap"], abs=1e-6)
    assert visits["kate"] == pytest.approx(rank["kate"] - 0.5, abs=1e-6)
