"""γ-EigenGame against a direct solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh

from restill.models import eigengame
from restill.models.errors import RestillError

DIM, K = 8, 3


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Symmetric A, positive definite B, and the K largest eigenvalues with their vectors (rows)."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(DIM, DIM)), rng.normal(size=(DIM, 2 * DIM))
    a, b = a + a.T, b @ b.T / (2 * DIM) + 0.1 * np.eye(DIM)
    values, vectors = eigh(a, b)
    return a, b, values[::-1][:K], vectors[:, ::-1][:, :K].T


@jax.jit
def solved(a: jax.Array, b: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the game converges to on whole matrices: eigenvalues [K] and vectors [K, DIM] with ``v B v = 1``."""
    rate = 1.0 / (jnp.linalg.norm(a, 2) * jnp.linalg.norm(b, 2))

    def move(players, _):
        a_vectors, b_vectors = players.vectors @ a, players.vectors @ b
        exact = players._replace(b_vectors=b_vectors, b_norms=jnp.sum(players.vectors * b_vectors, axis=1))
        return eigengame.step(exact, a_vectors, b_vectors, rate, 0.0), None

    players = jax.lax.scan(move, eigengame.start(key, K, DIM), length=20_000)[0]
    return eigengame.rayleigh(players.vectors, lambda v: v @ a, lambda v: v @ b)


def subspace_error(vectors: jax.Array, truth: np.ndarray, b: np.ndarray) -> float:
    """How much of the span of ``truth`` [k, d] the span of ``vectors`` [k, d] misses: 0 none, 1 all.

    ``1 - tr(P* P) / k`` of the two projections, after both are mapped by the square root of ``b`` [d, d].
    """
    root = np.linalg.cholesky(b)  # L with B = L L^T; v -> L^T v is an isometry from the B-norm
    ours, theirs = (np.linalg.qr((np.asarray(v) @ root).T)[0] for v in (vectors, truth))
    return float(1.0 - np.sum((theirs.T @ ours) ** 2) / len(truth))


@pytest.mark.parametrize("seed", range(3))
def test_eigenvalues_and_vectors_equal_the_direct_solvers(seed):
    a, b, values, vectors = problem(seed)
    found, players = solved(jnp.asarray(a), jnp.asarray(b), jax.random.key(seed))
    np.testing.assert_allclose(found, values, atol=1e-5)
    assert subspace_error(players, vectors, b) < 1e-5
    np.testing.assert_allclose(np.abs(np.asarray(players) @ b @ vectors.T), np.eye(K), atol=1e-3)


def stream(seed: int, independent: bool, steps: int = 4000, batch: int = 16) -> float:
    """Subspace error after minibatches x, y with A = E[x x'], B = E[y y'] and eigenvalues 9, 6, 4, then small ones."""
    rng = np.random.default_rng(seed)
    mix_b = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] * np.linspace(0.7, 1.3, DIM)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    mix_a = mix_b @ turn * np.sqrt([9, 6, 4, 1, 0.8, 0.6, 0.4, 0.2])
    a, b = mix_a @ mix_a.T, mix_b @ mix_b.T
    truth = eigh(a, b)[1][:, ::-1][:, :K].T
    rate = 0.5 / (np.linalg.norm(a, 2) * np.linalg.norm(b, 2))
    left, right = jnp.asarray(mix_a, jnp.float32), jnp.asarray(mix_b, jnp.float32)

    def products(v, key):
        # One source of randomness drives x and y alike, as one sample of data drives both covariances.
        z = jax.random.laplace(key, (batch, DIM))
        x, y = z @ left.T / 2**0.5, z @ right.T / 2**0.5
        return (v @ x.T) @ x / batch, (v @ y.T) @ y / batch

    def move(players, at):
        one, two = jax.random.split(jax.random.fold_in(jax.random.key(seed), at))
        decay = 0.01 ** (at / steps)
        a_vectors, b_same = products(players.vectors, one)
        b_other = products(players.vectors, two)[1]
        b_vectors = b_other if independent else b_same
        return eigengame.step(players, a_vectors, b_vectors, 0.2 * rate * decay, 0.1 * decay), None

    first = eigengame.start(jax.random.key(seed), K, DIM)
    players = jax.jit(lambda p: jax.lax.scan(move, p, jnp.arange(steps))[0])(first)
    return subspace_error(players.vectors, truth, b)


def test_a_stream_converges_and_reusing_one_batch_for_both_products_is_biased():
    errors = np.array([[stream(seed, independent) for independent in (True, False)] for seed in range(2)])
    assert (errors[:, 0] < 1e-2).all()
    assert errors[:, 1].mean() > 3 * errors[:, 0].mean()


def test_bad_input_is_named():
    with pytest.raises(RestillError, match="k=9"):
        eigengame.start(jax.random.key(0), 9, 8)
