"""Exact vector search: a FAISS ``IndexIDMap2(IndexFlatIP)`` with filtering inside the search."""

from __future__ import annotations

import faiss
import numpy as np

from ..models.errors import RestillError

_SPARE = 8
"""Neighbours fetched beyond ``k``, to see whether there are ties at the k-th place."""

_DIGITS = 5
"""Decimals of a score that count: the last bits of a float sum depend on how queries are batched."""


class DenseIndex:
    """Vectors of unit length and the rows they belong to; inner product is then the cosine.

    Searching is exact, with or without a filter, and may run in several threads at once; ``add`` may not.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._faiss = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))

    def __len__(self) -> int:
        return self._faiss.ntotal

    def add(self, vectors: np.ndarray) -> None:
        """Append vectors ``[N, dim]`` as rows ``len(self) ... len(self) + N - 1``.

        Raises:
            RestillError: the shape is wrong, or a vector holds NaN or infinity (it could never be found).
        """
        vectors = self._checked(vectors)
        first = len(self)
        self._faiss.add_with_ids(vectors, np.arange(first, first + len(vectors), dtype=np.int64))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[list[tuple[int, float]]]:
        """The ``k`` best (row, score) of each query ``[B, dim]``, best first, equal scores by row.

        Args:
            queries: f32 ``[B, dim]``.
            k: at most this many results; fewer rows than that are all returned.
            allowed: the rows to search among (int64); None means all.
        """
        queries = self._checked(queries)
        candidates = len(self) if allowed is None else len(allowed)
        if not candidates or not len(queries):
            return [[] for _ in queries]
        parameters = None
        if allowed is not None:
            # A bitmap is exact and as fast for one row as for all; the array must outlive the search.
            bitmap = np.zeros(len(self), bool)
            bitmap[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(bitmap, bitorder="little"))  # pyright: ignore
            parameters = faiss.SearchParameters(sel=selector)  # pyright: ignore
        fetch = k + _SPARE
        while True:
            fetch = min(fetch, candidates)
            scores, rows = self._faiss.search(queries, fetch, params=parameters)
            scores = np.round(scores.astype(np.float64), _DIGITS)
            if fetch == candidates or (scores[:, k - 1] > scores[:, -1]).all():
                break
            fetch *= 4  # a tie reaches beyond what was fetched, and FAISS breaks ties at random
        order = np.lexsort((rows, -scores))[:, :k]
        return [[(int(rows[query, i]), float(scores[query, i])) for i in best] for query, best in enumerate(order)]

    def to_bytes(self) -> bytes:
        """The index in FAISS's own file format."""
        return faiss.serialize_index(self._faiss).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> DenseIndex:
        """Read what ``to_bytes`` wrote. FAISS does not stand forged bytes: compare their hash before.

        Raises:
            RestillError: the content is no index, or of another kind.
        """
        try:
            loaded = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except RuntimeError as error:
            raise RestillError(f"vectors cannot be read by FAISS ({error}); build the index again") from error
        if not isinstance(loaded, faiss.IndexIDMap2):
            raise RestillError(f"vectors are a {type(loaded).__name__}, not an IndexIDMap2; build it again")
        index = cls(loaded.d)
        index._faiss = loaded
        return index

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise RestillError(f"vectors have shape {vectors.shape}, the index needs (N, {self.dim})")
        if not np.isfinite(vectors).all():
            raise RestillError("a vector holds NaN or infinity; the encoder's weights are probably broken")
        return vectors
