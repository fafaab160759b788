"""Alignment: the streamed solution against a direct solver, and what it does to vectors."""

import zipfile
from io import BytesIO

import numpy as np
import pytest
from scipy.linalg import block_diag, eigh

from restill.models.errors import RestillError
from restill.retrieval.align import Alignment, fit, sentence_pairs
from restill.retrieval.types import Document

DIM, PAIRS, SHARED = 6, 600, 2
EPSILON = 0.01


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Questions and documents share two coordinates, in other directions on each side; the rest is noise."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(PAIRS, SHARED))
    sides = []
    for _ in range(2):
        turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
        noise = np.concatenate([0.1 * rng.normal(size=(PAIRS, SHARED)), rng.normal(size=(PAIRS, DIM - SHARED))], axis=1)
        noise[:, :SHARED] += shared
        sides.append(unit(noise @ turn))
    return sides[0], sides[1]


@pytest.fixture(scope="module")
def alignment(pairs):
    return fit(*pairs, k=SHARED, epsilon=EPSILON, weight=1.0, steps=2000)


def test_correlations_equal_the_direct_solvers(pairs, alignment):
    x, y = (side - side.mean(0) for side in pairs)
    cross = x.T @ y / PAIRS
    a = np.block([[np.zeros_like(cross), cross], [cross.T, np.zeros_like(cross)]])
    b = block_diag(x.T @ x, y.T @ y) / PAIRS + EPSILON * np.eye(2 * DIM)
    expected = eigh(a, b, eigvals_only=True)[::-1][:SHARED]
    assert alignment.correlations == pytest.approx(expected, abs=5e-3)


def test_a_question_finds_its_document_after_the_map_and_not_before(pairs, alignment):
    def found(questions, documents):
        return np.mean((questions @ documents.T).argmax(1) == np.arange(PAIRS))

    assert found(*pairs) < 0.05
    x, y = alignment.questions(pairs[0]), alignment.documents(pairs[1])
    ranks = ((x @ y.T) > (x * y).sum(1, keepdims=True)).sum(1)
    assert np.median(ranks) < PAIRS / 20
    before = ((pairs[0] @ pairs[1].T) > (pairs[0] * pairs[1]).sum(1, keepdims=True)).sum(1)
    assert np.median(ranks) < np.median(before) / 4


def test_mapped_vectors_are_unit_and_weight_0_changes_no_similarity(pairs):
    alignment = fit(*pairs, k=SHARED, epsilon=EPSILON, weight=0.0, steps=10)
    x, y = alignment.questions(pairs[0]), alignment.documents(pairs[1])
    assert x.shape == (PAIRS, DIM + SHARED)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(x @ y.T, pairs[0] @ pairs[1].T, atol=1e-5)


def test_the_same_seed_gives_the_same_map(pairs):
    one, two, other = (fit(*pairs, k=1, steps=20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.question_map, two.question_map)
    assert not np.allclose(one.question_map, other.question_map)


def test_pairs_without_labels_are_first_sentences_and_what_follows():
    rest = "It was signed in the spring of that year, and it was broken in the autumn."
    documents = [
        Document(id="1", title="Treaty", text=f"The treaty ended the war. {rest}"),
        Document(id="2", title="Short", text="One sentence only."),
    ]
    assert sentence_pairs(documents) == [("Treaty\nThe treaty ended the war.", rest)]


def test_bad_input_is_named(pairs, alignment):
    x, y = pairs
    with pytest.raises(RestillError, match="4 pairs"):
        fit(x[:3], y[:3])
    with pytest.raises(RestillError, match="k=7"):
        fit(x, y, k=7)
    with pytest.raises(RestillError, match="epsilon=0"):
        fit(x, y, k=2, epsilon=0)
    with pytest.raises(RestillError, match=r"\(N, 6\)"):
        alignment.questions(np.zeros((2, 5), np.float32))


def test_what_is_saved_is_loaded_and_nothing_else(alignment, tmp_path):
    file = tmp_path / "map.npz"
    alignment.save(file)
    np.testing.assert_array_equal(Alignment.load(file).question_map, alignment.question_map)
    whole = file.read_bytes()
    for damaged in (b"", b"no archive", whole[:40], whole[:-30], whole[:200] + bytes(99) + whole[299:]):
        file.write_bytes(damaged)
        with pytest.raises(RestillError, match="is no alignment"):
            Alignment.load(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 1.5),
        ("weight", np.nan),
        ("weight", np.zeros(3)),
        ("correlations", np.full(SHARED, np.nan, np.float32)),
        ("document_mean", np.zeros(DIM + 1, np.float32)),
        ("question_map", np.zeros(DIM, np.float32)),
        ("question_map", np.full((DIM, SHARED), "x")),
        ("document_map", np.zeros((DIM, SHARED + 1), np.float32)),
        ("document_map", None),
    ],
)
def test_an_alignment_whose_values_do_not_fit_is_refused(alignment, tmp_path, name, value):
    np.savez(tmp_path / "map.npz", **{**vars(alignment), name: value})
    with pytest.raises(RestillError, match="is no alignment"):
        Alignment.load(tmp_path / "map.npz")


def test_an_array_that_claims_too_much_is_refused_before_it_is_read(alignment, tmp_path):
    alignment.save(tmp_path / "map.npz")
    out = BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2)})
    with zipfile.ZipFile(tmp_path / "map.npz") as good, zipfile.ZipFile(tmp_path / "huge.npz", "w") as huge:
        for name in good.namelist():
            huge.writestr(name, out.getvalue() if name == "question_map.npy" else good.read(name))
    with pytest.raises(RestillError, match="more than"):
        Alignment.load(tmp_path / "huge.npz")
