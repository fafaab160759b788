"""Order the best results again, by anything that scores texts for a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from ..models.errors import RestillError
from .fusion import scaled
from .types import Hit, titled

Result = TypeVar("Result")

Scorer = Callable[[str, Sequence[str]], Sequence[float]]
"""A question and texts in; a score for each text out, higher is better."""


class TokenEncoder(Protocol):
    """What late interaction needs; ``restill.models.encoder.TextEncoder`` has it."""

    def encode_tokens(self, texts: Sequence[str], *, batch_size: int = 32) -> list[np.ndarray]:
        """Unit vectors of the tokens of each text, f32 ``[tokens, dim]``."""
        ...


def rerank(
    question: str,
    results: Sequence[tuple[Result, float]],
    texts: Sequence[str],
    scorer: Scorer,
    *,
    weight: float = 1.0,
) -> list[tuple[Result, float]]:
    """Order ``results`` by the scorer, or by a mixture of its scores and theirs.

    Only what is given is scored: pass the first few, and append the others afterwards.

    Args:
        question: what the scorer compares with.
        results: with their scores, best first.
        texts: one a result.
        scorer: called once with all texts.
        weight: of the scorer's scores; the rest is for the results' own. Both are scaled to 0 to 1 before.

    Returns:
        the results with the scores they are now ordered by; equal ones keep their order.

    Raises:
        RestillError: the numbers of results, texts and scores differ, a score is not finite, or the weight is not
            between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise RestillError(f"weight={weight}: give a number between 0 and 1")
    if len(texts) != len(results):
        raise RestillError(f"{len(texts)} texts for {len(results)} results; give one for each")
    if not results:
        return []
    scores = [float(score) for score in scorer(question, texts)]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise RestillError(f"the re-ranker gave {scores!r:.80} for {len(texts)} texts; it must give one number each")
    old, new = scaled(results), scaled(list(enumerate(scores)))
    mixed = [(1 - weight) * a + weight * b for a, b in zip(old, new, strict=True)]
    order = sorted(range(len(results)), key=lambda i: -mixed[i])
    return [(results[i][0], mixed[i]) for i in order]


def rerank_hits(question: str, hits: Sequence[Hit], scorer: Scorer, *, depth: int, weight: float) -> list[Hit]:
    """Order the first ``depth`` hits again, as `rerank` does; the others follow as they were.

    Those keep their score, or get that of the last one ordered again if it is lower. It is always the same number
    that is ordered again, so that results do not depend on the k of others in the batch.
    """
    best, rest = hits[:depth], hits[depth:]
    texts = [titled(hit.chunk.title, hit.chunk.text) for hit in best]
    ordered = rerank(question, [(hit, hit.score) for hit in best], texts, scorer, weight=weight)
    ordered += [(hit, min(hit.score, ordered[-1][1])) for hit in rest]
    return [hit.model_copy(update={"score": score}) for hit, score in ordered]


class LateInteraction:
    """A scorer: for each token of the question the most similar token of the text, averaged.

    MaxSim of ColBERT (Khattab and Zaharia, SIGIR 2020, arXiv 2004.12832) over the token vectors of a sentence encoder,
    which was not trained for it. The texts are encoded at each call: that costs as much as indexing them.

    Attributes:
        fingerprint: names the encoder if that has a fingerprint, else None.
    """

    def __init__(self, encoder: TokenEncoder) -> None:
        self._encoder = encoder
        known = getattr(encoder, "fingerprint", None)
        self.fingerprint: str | None = f"late interaction {known}" if known else None

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """A score between -1 and 1 for each text; -1 where question or text has no token."""
        (asked,) = self._encoder.encode_tokens([question])
        return [max_similarity(asked, tokens) for tokens in self._encoder.encode_tokens(texts)]


def max_similarity(question: np.ndarray, text: np.ndarray) -> float:
    """Mean over the question's token vectors [Q, dim] of the greatest cosine with one of the text's [T, dim]."""
    if not len(question) or not len(text):
        return -1.0
    return float((question @ text.T).max(axis=1).mean())
