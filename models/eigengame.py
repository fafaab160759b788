"""Top-k generalised eigenvectors from a stream: γ-EigenGame (Gemp, Chen, McWilliams, ICLR 2023, arXiv 2206.04993).

Solves ``A v = λ B v`` for symmetric A and positive definite B without ever forming either: a step needs only the
products ``A v`` and ``B v`` of the k vectors, estimated on a minibatch, and costs O(d k) a sample. Vector i is a
player that maximises its Rayleigh quotient and pays for overlap with the players before it; the game's only
equilibrium is the eigenvectors in order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .errors import RestillError

_FLOOR = 1e-6
"""Least ``<v, B v>`` that is divided by."""

Products = Callable[[jax.Array], jax.Array]
"""Maps vectors [k, d] to their products [k, d] with a symmetric matrix."""


class Players(NamedTuple):
    """The game's state.

    ``b_vectors`` and ``b_norms`` are running averages of ``B v_j`` and ``<v_j, B v_j>``: what stands in a denominator,
    or is multiplied with another estimate, must not come from the same minibatch, or the update is biased.
    """

    vectors: jax.Array  # [k, d], unit length
    b_vectors: jax.Array  # [k, d]
    b_norms: jax.Array  # [k]


def start(key: jax.Array, k: int, dim: int) -> Players:
    """Random unit vectors; the averages start as if B were the identity.

    Raises:
        RestillError: ``k`` is not between 1 and ``dim``.
    """
    if not 1 <= k <= dim:
        raise RestillError(f"k={k}: a problem of dimension {dim} has 1 to {dim} eigenvectors")
    vectors = _unit(jax.random.normal(key, (k, dim)))
    return Players(vectors, vectors, jnp.ones(k))


def step(
    players: Players,
    a_vectors: jax.Array,
    b_vectors: jax.Array,
    rate: jax.Array | float,
    averaging: jax.Array | float,
) -> Players:
    """One simultaneous move of all players.

    The direction of player i is::

        <v_i,Bv_i> A v_i - <v_i,Av_i> B v_i
            - sum over j<i of <v_i,Av_j> / <v_j,Bv_j> * (<v_i,Bv_i> B v_j - <v_i,Bv_j> B v_i)

    where ``B v_j`` and the denominator in the sum are the running averages. It is unbiased when A's and B's products
    come from independent minibatches.

    Args:
        players: the state.
        a_vectors: estimate of ``A v`` [k, d].
        b_vectors: estimate of ``B v`` [k, d], from another minibatch.
        rate: step size; about ``1 / (|A| |B|)`` is the most that is stable.
        averaging: γ, the weight of this minibatch in the running averages.
    """
    v, _, _ = players
    a_inner = v @ a_vectors.T  # <v_i, A v_j>
    b_norm = jnp.sum(v * b_vectors, axis=1)  # <v_i, B v_i>
    reward = b_norm[:, None] * a_vectors - jnp.diagonal(a_inner)[:, None] * b_vectors
    share = jnp.tril(a_inner / jnp.maximum(players.b_norms, _FLOOR), -1)
    overlap = jnp.sum(share * (v @ players.b_vectors.T), axis=1)  # sum_j share_ij <v_i, B v_j>
    penalty = b_norm[:, None] * (share @ players.b_vectors) - overlap[:, None] * b_vectors
    moved = _unit(v + rate * (reward - penalty))
    return Players(
        moved,
        players.b_vectors + averaging * (b_vectors - players.b_vectors),
        players.b_norms + averaging * (b_norm - players.b_norms),
    )


@partial(jax.jit, static_argnames=("k", "steps"))
def _solve(a: jax.Array, b: jax.Array, key: jax.Array, rate: jax.Array, k: int, steps: int) -> Players:
    def move(players: Players, _: None) -> tuple[Players, None]:
        a_vectors, b_vectors = players.vectors @ a, players.vectors @ b
        exact = players._replace(b_vectors=b_vectors, b_norms=jnp.sum(players.vectors * b_vectors, axis=1))
        return step(exact, a_vectors, b_vectors, rate, 0.0), None

    return jax.lax.scan(move, start(key, k, len(a)), length=steps)[0]


def solve(a: jax.Array, b: jax.Array, k: int, *, steps: int = 20_000, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """The k largest eigenvalues of ``A v = λ B v`` and their vectors, from the whole matrices.

    Slower than a direct solver; it shows what the game converges to. Compiles for each new (d, k, steps).

    Args:
        a: symmetric [d, d].
        b: symmetric, positive definite [d, d].
        k: number of eigenvectors.
        steps: moves; few are needed where the eigenvalues lie far apart.
        seed: of the vectors the game starts with.

    Returns:
        eigenvalues [k], largest first, and vectors [k, d] with ``v B v = 1``.

    Raises:
        RestillError: the matrices are not both square and of one size, or ``k`` does not fit.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise RestillError(f"A {a.shape} and B {b.shape} must be square and of one size")
    rate = 1.0 / (jnp.linalg.norm(a, 2) * jnp.linalg.norm(b, 2))
    players = _solve(a, b, jax.random.key(seed), rate, k, steps)
    return rayleigh(players.vectors, lambda v: v @ a, lambda v: v @ b)


def rayleigh(vectors: jax.Array, a: Products, b: Products) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues ``<v,Av> / <v,Bv>`` [k] that ``vectors`` [k, d] stand for, and the vectors with ``v B v = 1``."""
    norms = jnp.maximum(jnp.sum(vectors * b(vectors), axis=1), _FLOOR)
    values = jnp.sum(vectors * a(vectors), axis=1) / norms
    return values, vectors / jnp.sqrt(norms)[:, None]


def subspace_error(vectors: jax.Array, truth: jax.Array, b: jax.Array) -> jax.Array:
    """How much of the span of ``truth`` [k, d] the span of ``vectors`` [k, d] misses: 0 none, 1 all.

    ``1 - tr(P* P) / k`` of the two projections, after both are mapped by the square root of ``b`` [d, d].
    """
    root = jnp.linalg.cholesky(b)  # L with B = L L^T; v -> L^T v is an isometry from the B-norm
    ours, theirs = (jnp.linalg.qr((v @ root).T)[0] for v in (vectors, truth))
    return 1.0 - jnp.sum((theirs.T @ ours) ** 2) / len(truth)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
