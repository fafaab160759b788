"""Vector search against a plain matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval.dense import DenseIndex


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 300),
    queries=st.integers(0, 40),
    k=st.integers(1, 400),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_search_is_exact_at_any_selectivity(rows: int, queries: int, k: int, seed: int, data) -> None:
    rng = np.random.default_rng(seed)
    vectors, asked = unit(rng, rows), unit(rng, queries)
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]))
    allowed = None if share is None else np.flatnonzero(rng.random(rows) < share)
    index = DenseIndex(16)
    index.add(vectors[: rows // 2])
    index.add(vectors[rows // 2 :])
    found = index.search(asked, k, allowed)
    pool = np.arange(rows) if allowed is None else allowed
    for query, hits in zip(asked, found, strict=True):
        scores = np.round((vectors[pool] @ query).astype(np.float64), 5)
        best = np.sort(scores)[::-1][:k]
        np.testing.assert_allclose([score for _, score in hits], best, atol=2e-5)
        assert {row for row, _ in hits} <= set(pool.tolist()) and len({row for row, _ in hits}) == len(hits)


@settings(deadline=None)
@given(copies=st.integers(1, 120), k=st.integers(1, 60))
def test_ties_are_broken_by_row_alone_or_in_a_batch(copies: int, k: int) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(unit(rng, 2), copies, axis=0)
    index = DenseIndex(16)
    index.add(vectors)
    queries = np.concatenate([vectors[:1], unit(rng, 30)])
    alone, batched = index.search(queries[:1], k)[0], index.search(queries, k)[0]
    assert [row for row, _ in alone] == list(range(min(k, 2 * copies)))
    assert alone == batched


def test_an_index_survives_bytes_and_other_bytes_are_refused() -> None:
    rng = np.random.default_rng(0)
    index, queries = DenseIndex(16), unit(rng, 3)
    index.add(unit(rng, 50))
    again = DenseIndex.from_bytes(index.to_bytes())
    assert again.search(queries, 5) == index.search(queries, 5) and len(again) == 50
    again.add(unit(rng, 1))
    assert len(again) == 51
    with pytest.raises(RestillError, match="cannot be read by FAISS"):
        DenseIndex.from_bytes(b"nonsense" * 10)


@pytest.mark.parametrize("bad", [np.ones((2, 15)), np.ones(16), np.full((1, 16), np.nan)])
def test_wrong_vectors_are_refused(bad: np.ndarray) -> None:
    index = DenseIndex(16)
    with pytest.raises(RestillError):
        index.add(bad)
    assert len(index) == 0
