"""Top-k generalised eigenvectors from a stream: γ-EigenGame (Gemp, Chen, McWilliams, ICLR 2023, arXiv 2206.04993).

Solves ``A v = λ B v`` for symmetric A and positive definite B without ever forming either: a step needs only the
products ``A v`` and ``B v`` of the k vectors, estimated on a minibatch, and costs O(d k) a sample. Vector i is a
player that maximises its Rayleigh quotient and pays for overlap with the players before it; the game's only
equilibrium is the eigenvectors in order.
"""

from __future__ import annotations

from collections.abc import Callable
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


def rayleigh(vectors: jax.Array, a: Products, b: Products) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues ``<v,Av> / <v,Bv>`` [k] that ``vectors`` [k, d] stand for, and the vectors with ``v B v = 1``."""
    norms = jnp.maximum(jnp.sum(vectors * b(vectors), axis=1), _FLOOR)
    values = jnp.sum(vectors * a(vectors), axis=1) / norms
    return values, vectors / jnp.sqrt(norms)[:, None]


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
