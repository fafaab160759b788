"""From a question's first hits to the documents behind them: a graph over the collection, and a walk on it.

Two documents are linked where the text of one names the title of the other, where the metadata says so, or where both
hold a name that hardly any other has. Personalised PageRank (Page et al. 1999; for retrieval of several hops as in
HippoRAG, arXiv 2405.14831) from the first hits then ranks what is linked to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..models.errors import RestillError
from .titles import MAX_NAMESAKES, TitleFinder, words
from .types import Document

if TYPE_CHECKING:
    import networkx

Relation = Literal["mentions", "links", "shares"]
RELATIONS: tuple[Relation, ...] = ("mentions", "links", "shares")
WEIGHTS: Mapping[Relation, float] = {"mentions": 1.0, "links": 1.0, "shares": 0.4}
"""How readily the walk follows a link."""

BACKWARD = 0.5
"""The weight of a mention or link followed from the document named to the one that names it, over that forward."""

MAX_SHARED = 5
"""A name that more documents hold does not link them."""

MAX_BACKWARD = 100
"""Of a document that more others name, the walk does not visit all that name it, only those already at hand."""

_NAME = re.compile(
    r"[A-Z]\w*(?:['’.-]\w+)*(?:\s+(?:(?:of|the|and|de|la|von|van|in|for)\s+){0,2}[A-Z0-9]\w*(?:['’.-]\w+)*)*"
)
_NO_NAME_STARTS = frozenset(
    "a after although an and as at before but by during for from he her his however i if in it its on or she since "
    "that the their these they this those to we what when where which while who with".split()
)


class Linked(NamedTuple):
    """A document that another leads to, and how."""

    doc_id: str
    relation: Relation
    forward: bool
    """Whether the link starts at the document asked about; a shared name has no direction."""


@dataclass(frozen=True, kw_only=True)
class DocumentGraph:
    """Links between the documents of one state of a collection; built anew when that changes.

    Attributes:
        ids: the documents' ids; a document's number is its place here.
        finder: finds titles in texts; knows documents by number.
        edges: int32 [E, 3]: from, to, relation (its place in ``RELATIONS``); a shared name stands once each way.
        strengths: f32 [E], above 0, at most 1.
    """

    ids: list[str]
    finder: TitleFinder
    edges: np.ndarray
    strengths: np.ndarray

    @classmethod
    def build(cls, documents: Iterable[Document], *, links_key: str = "links") -> DocumentGraph:
        """Read all documents three times: for common words, for mentions, for shared names.

        About 0.2 to 0.4 s a thousand paragraphs; nothing grows with the square of the collection.

        Args:
            documents: with unique ids.
            links_key: the key of the metadata that lists ids or titles of linked documents; titles that more than
                ``MAX_NAMESAKES`` bear are passed over, so give ids there.

        Raises:
            RestillError: an id occurs twice.
        """
        documents = list(documents)
        ids = [document.id for document in documents]
        numbers = {doc_id: number for number, doc_id in enumerate(ids)}
        if len(numbers) < len(ids):
            raise RestillError("a document id occurs twice; ids must be unique")
        finder = TitleFinder([d.title for d in documents], (d.text for d in documents))
        edges: dict[tuple[int, int, int], float] = {}
        for number, document in enumerate(documents):
            for other in finder.find(document.text):
                edges[number, other, 0] = 1.0
            for other in _explicit(document.metadata.get(links_key), numbers, finder):
                edges[number, other, 1] = 1.0
        for one, other, strength in _shared_names(documents):
            edges[one, other, 2] = max(strength, edges.get((one, other, 2), 0.0))
        kept = [(edge, strength) for edge, strength in edges.items() if edge[0] != edge[1]]
        return cls(
            ids=ids,
            finder=finder,
            edges=np.array([edge for edge, _ in kept], np.int32).reshape(-1, 3),
            strengths=np.array([strength for _, strength in kept], np.float32),
        )

    def follow(self, document: str) -> list[Linked]:
        """The documents linked to one (an id, else a title): those it names in the order it names them, then those
        that name it, then those that share a rare name with it. Each once.

        Raises:
            RestillError: there is no such document.
        """
        starts = [self._numbers[document]] if document in self._numbers else self.finder.documents(document)
        if not starts:
            raise RestillError(f"no document has the id or title {document!r}; search for it first")
        found: dict[int, Linked] = {}
        for order in ((0, True), (1, True), (0, False), (1, False), (2, True)):
            relation, forward = order
            near, far = (0, 1) if forward else (1, 0)
            rows = np.flatnonzero((self.edges[:, 2] == relation) & np.isin(self.edges[:, near], starts))
            for number in self.edges[rows, far].tolist():
                if number not in starts:
                    found.setdefault(number, Linked(self.ids[number], RELATIONS[relation], forward))
        return list(found.values())

    def is_linked(self, doc_id: str) -> bool:
        """Whether any link starts or ends at the document; False if the graph lacks it."""
        number = self._numbers.get(doc_id)
        bounds = self._adjacency[0]
        return number is not None and bool(bounds[number] < bounds[number + 1])

    def walk(
        self, restart: Mapping[str, float], prior: Mapping[str, float] | None = None, *, damping: float = 0.5
    ) -> dict[str, float]:
        """Personalised PageRank on the documents in ``restart`` and all that they are linked to.

        Args:
            restart: where the walk starts and starts again, with weights above 0; ids that the graph lacks are ignored.
            prior: how likely a document is, all else being equal, at least 0; the walk prefers such neighbours. The
                square root is taken, and 0.05 added before, for those unknown.
            damping: the chance to go on at each step.

        Returns:
            for each document that was reached, the share of all steps that came to it by a link: to have started there
            does not count.
        """
        seeds = {self._numbers[i]: weight for i, weight in restart.items() if weight > 0 and i in self._numbers}
        if not seeds:
            return {}
        starts, targets, weights = self._around(np.array(list(seeds)), prior or {})
        nodes, local = np.unique(np.concatenate([starts, targets, list(seeds)]), return_inverse=True)
        start, target = local[: len(starts)], local[len(starts) : 2 * len(starts)]
        likely = {self._numbers[i]: value for i, value in (prior or {}).items() if i in self._numbers}
        weights = weights * np.sqrt([0.05 + likely.get(node, 0.0) for node in nodes.tolist()])[target]
        first = np.array([seeds.get(node, 0.0) for node in nodes.tolist()])
        rank = personalised_pagerank(start, target, weights, first, damping=damping)
        out = np.bincount(start, weights, len(nodes))
        arrived = damping * np.bincount(target, weights * rank[start] / out[start], len(nodes))
        return {self.ids[node]: value for node, value in zip(nodes.tolist(), arrived.tolist(), strict=True) if value}

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The whole graph, with ``relation`` and ``weight`` on each edge: for drawing and analysis, not for search."""
        import networkx

        graph = networkx.MultiDiGraph()
        graph.add_nodes_from(self.ids)
        for (start, end, relation), strength in zip(self.edges.tolist(), self.strengths.tolist(), strict=True):
            graph.add_edge(self.ids[start], self.ids[end], relation=RELATIONS[relation], weight=strength)
        return graph

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {doc_id: number for number, doc_id in enumerate(self.ids)}

    @cached_property
    def _adjacency(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Compressed rows: bounds [N+1], targets, weights and whether forward, both directions of every link."""
        start, end, relation = self.edges.T if len(self.edges) else np.zeros((3, 0), np.int32)
        weight = self.strengths * np.array([WEIGHTS[r] for r in RELATIONS], np.float32)[relation]
        back = relation != 2
        starts = np.concatenate([start, end[back]])
        targets = np.concatenate([end, start[back]])
        weights = np.concatenate([weight, weight[back] * np.float32(BACKWARD)])
        forward = np.concatenate([np.ones(len(start), bool), np.zeros(int(back.sum()), bool)])
        order = np.lexsort((-weights, targets, starts))
        starts, targets, weights, forward = starts[order], targets[order], weights[order], forward[order]
        # Of several links between two documents the strongest counts.
        once = np.ones(len(starts), bool)
        once[1:] = (starts[1:] != starts[:-1]) | (targets[1:] != targets[:-1])
        bounds = np.searchsorted(starts[once], np.arange(len(self.ids) + 1))
        return bounds, targets[once], weights[once], forward[once]

    def _links_of(self, node: int, at_hand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights of a node's links; of too many backward ones only those to nodes ``at_hand``."""
        bounds, targets, weights, forward = self._adjacency
        row = slice(bounds[node], bounds[node + 1])
        targets, weights, forward = targets[row], weights[row], forward[row]
        if np.count_nonzero(~forward) > MAX_BACKWARD:
            keep = forward | np.isin(targets, at_hand)
            targets, weights = targets[keep], weights[keep]
        return targets, weights

    def _around(self, seeds: np.ndarray, prior: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All links among the seeds and their neighbours."""
        at_hand = np.array([*seeds.tolist(), *(self._numbers[i] for i in prior if i in self._numbers)])
        links = {node: self._links_of(node, at_hand) for node in seeds.tolist()}
        nodes = np.unique(np.concatenate([seeds, *(targets for targets, _ in links.values())]))
        starts, ends, weights = [], [], []
        for node in nodes.tolist():
            targets, weight = links[node] if node in links else self._links_of(node, nodes)
            inside = np.isin(targets, nodes)
            starts.append(np.full(int(inside.sum()), node))
            ends.append(targets[inside])
            weights.append(weight[inside])
        return np.concatenate(starts), np.concatenate(ends), np.concatenate(weights)


def personalised_pagerank(
    starts: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    restart: np.ndarray,
    *,
    damping: float = 0.5,
    tolerance: float = 1e-9,
) -> np.ndarray:
    """PageRank by power iteration: at each step follow a link with chance ``damping``, else start again.

    Equal to ``networkx.pagerank(graph, damping, personalization=restart, dangling=restart)``, without its set-up.

    Args:
        starts: node numbers [E].
        targets: node numbers [E].
        weights: [E], at least 0.
        restart: [N], at least 0, not all 0; where a walk starts, and goes on from a node without links.
        damping: below 1.
        tolerance: stops when a step changes the ranks by less, in sum.

    Returns:
        ranks [N] that sum to 1.
    """
    n = len(restart)
    first = restart / restart.sum()
    out = np.bincount(starts, weights, n)
    share = weights / out[starts] if len(starts) else weights
    stuck = out == 0
    rank = first
    while True:
        moved = np.bincount(targets, share * rank[starts], n) + rank[stuck].sum() * first
        following = (1 - damping) * first + damping * moved
        if np.abs(following - rank).sum() < tolerance:
            return following
        rank = following


def _explicit(value: object, numbers: Mapping[str, int], finder: TitleFinder) -> list[int]:
    entries = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    found: list[int] = []
    for entry in entries:
        if isinstance(entry, str):
            several = [numbers[entry]] if entry in numbers else finder.documents(entry)
            # Without a bound, links to a title that all bear would be as many as the square of the collection.
            found += several if len(several) <= MAX_NAMESAKES else []
    return found


def _shared_names(documents: Sequence[Document]) -> Iterable[tuple[int, int, float]]:
    """Pairs of documents that hold a name few others hold, the stronger the fewer."""
    holders: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        for name in _names(f"{document.title}. {document.text}"):
            several = holders.setdefault(name, [])
            if len(several) <= MAX_SHARED:  # one more than may be: enough to know
                several.append(number)
    for several in holders.values():
        if 2 <= len(several) <= MAX_SHARED:
            for one in several:
                for other in several:
                    if one != other:
                        yield one, other, (len(several) - 1) ** -0.5


def _names(text: str) -> set[str]:
    """Capitalised phrases, folded; a sentence's first little word is none."""
    found = set()
    for match in _NAME.finditer(text):
        spelt = words(match.group())
        while spelt and spelt[0].lower() in _NO_NAME_STARTS:
            spelt = spelt[1:]
        if len(spelt) > 1 or (spelt and len(spelt[0]) > 3):
            found.add(" ".join(spelt).lower())
    return found
