"""Which passages answered which questions: pairs that retrieval can learn from (``retrieval.align.fit``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..retrieval.types import titled
from .trajectory import Trajectory

if TYPE_CHECKING:
    from ..retrieval.retriever import Retriever


def answered(trajectory: Trajectory) -> bool:
    """Whether the agent came to an answer by itself."""
    return trajectory.answer is not None and not trajectory.forced


def evidence_pairs(
    trajectories: Iterable[Trajectory], retriever: Retriever, accept: Callable[[Trajectory], bool] = answered
) -> list[tuple[str, str]]:
    """(question, title and text of a passage) for each passage cited by an accepted trajectory, each pair once.

    Args:
        retriever: the collection that the agents searched; passages that it no longer holds give no pair.
        accept: which trajectories to learn from; with labels, those whose answer is right.
    """
    snapshot, pairs = retriever.snapshot, dict[tuple[str, str], None]()
    for trajectory in filter(accept, trajectories):
        for citation in trajectory.citations:
            for chunk in snapshot.chunks_at(snapshot.rows_of(citation.doc_id)):
                if chunk.chunk_id == citation.chunk_id:
                    pairs[trajectory.question, titled(chunk.title, chunk.text)] = None
    return list(pairs)
