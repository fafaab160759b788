"""Vector search against a plain matrix product: a file, a tail, deletions and filters in every mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval import dense, faiss_file
from restill.retrieval.dense import DenseIndex, set_threads

KINDS = ["flat", "ivf", "hnsw"]


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(vectors: np.ndarray, rows: np.ndarray, kind: str | None = None, base: int = 0) -> DenseIndex:
    """The first ``base`` vectors in a FAISS index of this kind, the others in memory."""
    dim, file = vectors.shape[1], None
    if kind is not None and base:
        file = faiss_file.build(kind, dim, vectors[:base], [(rows[:base], vectors[:base])], base)  # type: ignore[arg-type]
    places = {int(row): place for place, row in enumerate(rows)}
    index = DenseIndex(dim, base=file, kind=kind or "flat", vectors=lambda r: vectors[[places[int(i)] for i in r]])  # type: ignore[arg-type]
    start = base if file is not None else 0
    half = (start + len(rows)) // 2
    return index.extended(rows[start:half], vectors[start:half]).extended(rows[half:], vectors[half:])


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 300),
    queries=st.integers(0, 40),
    k=st.integers(1, 400),
    kind=st.sampled_from([None, *KINDS]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_search_is_exact_at_any_selectivity(count: int, queries: int, k: int, kind, seed: int, data) -> None:
    rng = np.random.default_rng(seed)
    vectors, asked = unit(rng, count), unit(rng, queries)
    rows = np.sort(rng.choice(3 * count, count, replace=False))
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0] if kind in (None, "flat") else [0.0, 0.01, 0.5, 1.0]))
    allowed = None if share is None else np.flatnonzero(rng.random(3 * count) < share)
    dead = rows[rng.random(count) < data.draw(st.sampled_from([0.0, 0.1, 0.9]))]
    index = filled(vectors, rows, kind, data.draw(st.integers(0, count)))
    index = index.extended(rows[:0], vectors[:0], dead)
    live = np.setdiff1d(rows, dead)
    assert len(index) == len(live) and np.array_equal(index.rows, live)
    pool = np.flatnonzero(np.isin(rows, live if allowed is None else np.intersect1d(live, allowed)))
    for query, hits in zip(asked, index.search(asked, k, allowed), strict=True):
        best = np.sort(np.round((vectors[pool] @ query).astype(np.float64), 5))[::-1][:k]
        np.testing.assert_allclose([score for _, score in hits], best, atol=2e-5)
        assert {row for row, _ in hits} <= set(rows[pool].tolist()) and len({row for row, _ in hits}) == len(hits)


@settings(deadline=None)
@given(copies=st.integers(1, 120), k=st.integers(1, 60), base=st.integers(0, 240))
def test_ties_are_broken_by_row_alone_or_in_a_batch(copies: int, k: int, base: int) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(unit(rng, 2), copies, axis=0)
    index = filled(vectors, np.arange(2 * copies), "flat", min(base, 2 * copies))
    queries = np.concatenate([vectors[:1], unit(rng, 30)])
    alone, batched = index.search(queries[:1], k)[0], index.search(queries, k)[0]
    assert [row for row, _ in alone] == list(range(min(k, 2 * copies)))
    assert alone == batched


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_approximate_kinds_find_nine_of_ten_and_score_exactly(kind: str, share: float, monkeypatch) -> None:
    monkeypatch.setattr(dense, "_FEW", 100)  # so that the filter is not answered by comparing all
    rng = np.random.default_rng(0)
    centres = unit(rng, 40)
    vectors = centres[rng.integers(0, 40, 3000)] + 0.1 * rng.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, asked = np.arange(3000), vectors[:50]
    index = filled(vectors, rows, kind, 2900).extended(rows[:0], vectors[:0], rows[5:3000:10])
    allowed = None if share == 1.0 else np.flatnonzero(rng.random(3000) < share)
    pool = np.setdiff1d(rows if allowed is None else allowed, rows[5:3000:10])
    found = 0
    for query, hits in zip(asked, index.search(asked, 10, allowed), strict=True):
        assert len(hits) == 10 and {row for row, _ in hits} <= set(pool.tolist())
        np.testing.assert_allclose([s for _, s in hits], vectors[[r for r, _ in hits]] @ query, atol=2e-5)
        found += len({row for row, _ in hits} & set(pool[np.argsort(-(vectors[pool] @ query))[:10]].tolist()))
    assert found >= 0.9 * 500


def test_an_older_view_stays_as_it_was() -> None:
    rng = np.random.default_rng(0)
    vectors, rows = unit(rng, 30), np.arange(30)
    first = DenseIndex(16).extended(rows[:10], vectors[:10])
    left, right = first.extended(rows[10:20], vectors[10:20]), first.extended(rows[20:], vectors[20:], rows[:5])
    everything = [[row for row, _ in index.search(vectors[:1], 99)[0]] for index in (first, left, right)]
    assert [sorted(found) for found in everything] == [
        list(range(10)),
        list(range(20)),
        [*range(5, 10), *range(20, 30)],
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_is_read_or_mapped_and_answers_the_same(tmp_path: Path, kind, mapped: bool, monkeypatch) -> None:
    monkeypatch.setattr(faiss_file, "MAP_FROM", 0 if mapped else 1 << 40)
    rng = np.random.default_rng(0)
    vectors, rows = unit(rng, 500), np.arange(500) * 2
    built = faiss_file.build(kind, 16, vectors, [(rows[:200], vectors[:200]), (rows[200:], vectors[200:])], 500)
    record = faiss_file.write(built, tmp_path, kind=kind, last_row=998, generation=7)
    again, _ = faiss_file.read(tmp_path, record.to_dict())
    for mine, theirs in zip(again.search(vectors[:9], 5), built.search(vectors[:9], 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("damage", ["first", "cut", "last"])
def test_another_file_than_the_recorded_one_is_refused(tmp_path: Path, damage: str, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 2000)
    built = faiss_file.build("flat", 16, vectors, [(np.arange(2000), vectors)], 2000)
    record = faiss_file.write(built, tmp_path, kind="flat", last_row=1999, generation=1).to_dict()
    path = tmp_path / record["name"]
    data = bytearray(path.read_bytes())
    data[0 if damage == "first" else -1] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises(RestillError, match="is not the file that was recorded"):
        faiss_file.read(tmp_path, record)
    monkeypatch.setattr(faiss_file, "MAP_FROM", 0)
    if damage != "last":  # a mapped file's end is looked at only when asked
        with pytest.raises(RestillError, match="is not the file that was recorded"):
            faiss_file.read(tmp_path, record)
    with pytest.raises(RestillError, match="is not the file that was recorded"):
        faiss_file.read(tmp_path, record, whole=True)


@pytest.mark.parametrize("bad", [np.ones((2, 15)), np.ones(16), np.full((1, 16), np.nan)])
def test_wrong_vectors_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(RestillError):
        DenseIndex(16).extended(np.arange(len(bad)), bad)


def test_rows_must_rise() -> None:
    vectors = unit(np.random.default_rng(0), 2)
    index = DenseIndex(16).extended(np.array([4, 7]), vectors)
    for rows in ([7, 8], [9, 9], [9]):
        with pytest.raises(RestillError, match="not ascending above 7"):
            index.extended(np.array(rows), vectors)


def test_advice_and_threads_are_plain(monkeypatch) -> None:
    assert [faiss_file.advise(n) for n in (0, 100_000, 100_001)] == ["flat", "flat", "ivf"]
    with pytest.raises(RestillError, match="kind='pq' is unknown; give auto, flat, ivf, hnsw"):
        faiss_file.checked_kind("pq", 5)
    monkeypatch.setenv("RESTILL_THREADS", "3")
    assert set_threads(None) == 3 and set_threads(2) == 2
    monkeypatch.setenv("RESTILL_THREADS", "many")
    with pytest.raises(RestillError, match="threads='many'"):
        set_threads(None)
    monkeypatch.delenv("RESTILL_THREADS")
    assert set_threads(None) >= 1
