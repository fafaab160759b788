"""Bring questions and documents together by a linear map learned from pairs: streaming CCA.

Canonical correlation analysis looks for directions in which the embedding of a question and that of its document vary
together. It is the generalised eigenproblem ``A v = λ B v`` with ``A = [[0, Cxy], [Cyx, 0]]`` and ``B`` the block
diagonal of ``Cxx`` and ``Cyy``, solved from minibatches by γ-EigenGame (arXiv 2206.04993): neither matrix is formed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..models.eigengame import Players, rayleigh, start, step
from ..models.errors import RestillError
from .types import Document, Encoder, titled

_SENTENCE_END = re.compile(r"[.!?] +(?=[A-Z])")

MAX_BYTES = 64 << 20
"""The largest array of a saved alignment that is read."""

MIN_REST = 60
"""Characters that must follow a first sentence, or the document gives no pair."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A map for questions and one for documents, from the encoder's space to a common one.

    The mapped vector stands behind the original one, so that an inner product is
    ``(1 - weight) * cosine + weight * cosine after the map``: weight 0 changes nothing.

    Attributes:
        question_mean: f32 [D].
        question_map: f32 [D, k].
        document_mean: f32 [D].
        document_map: f32 [D, k].
        correlations: f32 [k], of the pairs in each direction, highest first.
        weight: 0 to 1.
    """

    question_mean: np.ndarray
    question_map: np.ndarray
    document_mean: np.ndarray
    document_map: np.ndarray
    correlations: np.ndarray
    weight: float = 0.3

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the arrays as ``.npz``, whole or not at all."""
        beside = Path(f"{os.fspath(file)}.new")
        with beside.open("wb") as out:
            np.savez(out, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(beside, file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Alignment:
        """Read what ``save`` wrote.

        Raises:
            RestillError: the file is missing, or none of those.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                values: dict[str, Any] = {field.name: _array(archive, f"{field.name}.npy") for field in fields(cls)}
            read = cls(**{**values, "weight": float(values["weight"])})
            read._check()
        # A damaged member, an encrypted one and an unknown packing raise one of these each.
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise RestillError(f"{file} is no alignment ({error}); write one with Alignment.save") from error
        return read

    def _check(self) -> None:
        """Raise ValueError unless shapes fit, numbers are finite and the weight is between 0 and 1."""
        dim, k = np.shape(self.question_map) if np.ndim(self.question_map) == 2 else (0, 0)
        expected = {"question_mean": (dim,), "question_map": (dim, k), "document_mean": (dim,)}
        for name, shape in {**expected, "document_map": (dim, k), "correlations": (k,)}.items():
            array = getattr(self, name)
            if array.shape != shape or not array.size or array.dtype.kind != "f":
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not floats {list(shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight {self.weight} is not between 0 and 1")

    def questions(self, vectors: np.ndarray) -> np.ndarray:
        """Questions' unit vectors [N, D] to unit vectors [N, D + k], to search among ``documents``."""
        return self._joined(vectors, self.question_mean, self.question_map)

    def documents(self, vectors: np.ndarray) -> np.ndarray:
        """Documents' unit vectors [N, D] to unit vectors [N, D + k], to be indexed."""
        return self._joined(vectors, self.document_mean, self.document_map)

    def _joined(self, vectors: np.ndarray, mean: np.ndarray, linear: np.ndarray) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != len(mean):
            raise RestillError(f"vectors have shape {vectors.shape}, the alignment was fitted to (N, {len(mean)})")
        mapped = (vectors - mean) @ linear
        mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
        joined = np.concatenate([np.sqrt(1 - self.weight) * vectors, np.sqrt(self.weight) * mapped], axis=1)
        return joined.astype(np.float32)


class AlignedEncoder:
    """An encoder behind an alignment: an index built with it is opened with it.

    Passages go through the documents' map, queries through the questions'.
    """

    def __init__(self, encoder: Encoder, alignment: Alignment) -> None:
        self._encoder, self._alignment = encoder, alignment
        self.name = f"{getattr(encoder, 'name', type(encoder).__name__)}, aligned"
        self.dim, self.max_tokens = encoder.dim + alignment.document_map.shape[1], encoder.max_tokens
        digest = hashlib.sha256(encoder.fingerprint.encode())
        for field in fields(alignment):
            digest.update(np.ascontiguousarray(getattr(alignment, field.name)).tobytes())
        self.fingerprint = digest.hexdigest()

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Passages' unit vectors, f32 ``[len(texts), dim]``."""
        return self._alignment.documents(self._encoder.encode(texts, batch_size=batch_size, progress=progress))

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Queries' unit vectors, f32 ``[len(texts), dim]``."""
        return self._alignment.questions(self._encoder.encode(texts))

    def count_tokens(self, text: str) -> int:
        """As the encoder counts them."""
        return self._encoder.count_tokens(text)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """As the encoder has them."""
        return self._encoder.token_offsets(text)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an ``.npz``, unless its header claims more than ``MAX_BYTES``: nothing is allocated before."""
    with archive.open(name) as member:
        if (version := np.lib.format.read_magic(member)) != (1, 0):  # others have headers of any size
            raise ValueError(f"{name} has version {version}, not (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if math.prod(shape) * dtype.itemsize > MAX_BYTES:
            raise ValueError(f"{name} claims {list(shape)} of {dtype}, more than {MAX_BYTES} bytes")
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def sentence_pairs(documents: Iterable[Document]) -> list[tuple[str, str]]:
    """Pairs without labels: a document's title and first sentence, and the rest of it.

    Both are to be embedded as they are. Documents of one sentence give none.
    """
    pairs = []
    for document in documents:
        end = _SENTENCE_END.search(document.text)
        if end and len(document.text) - end.end() >= MIN_REST:
            first = document.text[: end.start() + 1]
            pairs.append((titled(document.title, first), document.text[end.end() :]))
    return pairs


def fit(
    questions: np.ndarray,
    documents: np.ndarray,
    *,
    k: int = 64,
    epsilon: float = 0.003,
    weight: float = 0.3,
    batch: int = 256,
    steps: int = 3000,
    seed: int = 0,
) -> Alignment:
    """Fit the map to pairs: row i of the one belongs to row i of the other.

    Pairs may come from trajectories (a question, a document that answered it), or without labels from the collection
    (a passage's first sentence, the rest of it). Reads minibatches only; a step costs ``O(batch * D * k)``. Compiles
    for each new shape.

    Args:
        questions: f32 [N, D].
        documents: f32 [N, D].
        k: directions; at most D.
        epsilon: added to B's diagonal. Unit vectors of dimension D have a variance of about 1/D in each direction.
        weight: of the mapped cosine beside the original one.
        batch: pairs in a minibatch; two that share no pair are drawn for each step, or halves of N.
        steps: moves of the game; the step size and the averaging weight fall to a hundredth on the way.
        seed: of the start and the minibatches.

    Raises:
        RestillError: the shapes differ, there are fewer than 4 pairs, ``k`` does not fit, or a number is out of range.
    """
    x, y = np.asarray(questions, np.float32), np.asarray(documents, np.float32)
    if x.ndim != 2 or x.shape != y.shape or len(x) < 4:
        raise RestillError(f"questions {x.shape} and documents {y.shape} must be at least 4 pairs of one dimension")
    dim = x.shape[1]
    if not 1 <= k <= dim:
        raise RestillError(f"k={k}: vectors of dimension {dim} have 1 to {dim} directions")
    if not (epsilon > 0 and 0 <= weight <= 1 and batch >= 1 and steps >= 1):
        raise RestillError(
            f"epsilon={epsilon}, weight={weight}, batch={batch}, steps={steps}: epsilon must be above 0, weight "
            "between 0 and 1, batch and steps at least 1"
        )
    means = x.mean(0), y.mean(0)
    x, y = jnp.asarray(x - means[0]), jnp.asarray(y - means[1])
    players = _play(x, y, jax.random.key(seed), k, min(batch, len(x) // 2), steps, epsilon)
    correlations, vectors = rayleigh(
        players.vectors, lambda v: cca_products(x, y, v)[0], lambda v: cca_products(x, y, v)[1] + epsilon * v
    )
    # A direction counts as much as its pairs correlate: half of it on each side.
    scaled = np.asarray(vectors * jnp.sqrt(jnp.maximum(correlations, 0.0))[:, None])
    return Alignment(
        question_mean=means[0],
        question_map=scaled[:, :dim].T,
        document_mean=means[1],
        document_map=scaled[:, dim:].T,
        correlations=np.asarray(correlations),
        weight=weight,
    )


def cca_products(x: jax.Array, y: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``A v`` and ``B v`` of CCA, both [k, 2D], from centred pairs x, y [N, D] and vectors v [k, 2D]."""
    on_x, on_y = v[:, : x.shape[1]] @ x.T, v[:, x.shape[1] :] @ y.T  # [k, N]
    a = jnp.concatenate([on_y @ x, on_x @ y], axis=1) / len(x)
    b = jnp.concatenate([on_x @ x, on_y @ y], axis=1) / len(x)
    return a, b


@partial(jax.jit, static_argnames=("k", "batch", "steps"))
def _play(x: jax.Array, y: jax.Array, key: jax.Array, k: int, batch: int, steps: int, epsilon: float) -> Players:
    key, start_key, norm_key = jax.random.split(key, 3)
    first = start(start_key, k, 2 * x.shape[1])
    top = 1.0 / (_norm(x, y, norm_key, 0) * (_norm(x, y, norm_key, 1) + epsilon))

    def move(players: Players, at: jax.Array) -> tuple[Players, None]:
        # Large steps find the subspace, small ones average the noise away.
        decay = 0.01 ** (at / steps)
        drawn = jax.random.choice(jax.random.fold_in(key, at), len(x), (2, batch), replace=False)
        a, _ = cca_products(x[drawn[0]], y[drawn[0]], players.vectors)
        _, b = cca_products(x[drawn[1]], y[drawn[1]], players.vectors)
        b = b + epsilon * players.vectors
        return step(players, a, b, 0.5 * decay * top, jnp.maximum(decay, 0.01)), None

    return jax.lax.scan(move, first, jnp.arange(steps))[0]


def _norm(x: jax.Array, y: jax.Array, key: jax.Array, which: int) -> jax.Array:
    """The largest eigenvalue of A (0) or B (1), nearly, by power iteration."""

    def iterate(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        # A's eigenvalues come in pairs of opposite sign; applied twice they are one.
        v = cca_products(x, y, cca_products(x, y, v)[which])[which]
        size = jnp.linalg.norm(v)
        return v / size, size

    v = jax.random.normal(key, (1, 2 * x.shape[1]))
    return jnp.sqrt(jax.lax.scan(iterate, v / jnp.linalg.norm(v), length=30)[1][-1])
