"""FAISS files: which kind for how many vectors, how one is built, written, and opened with what was recorded of it."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np

from ..models.errors import RestillError

Kind = Literal["flat", "ivf", "hnsw"]
"""flat: every vector is compared, exact. ivf: 8-bit codes in clusters, a quarter of the size. hnsw: a graph over
the whole vectors, faster still, larger, slow to build."""

FLAT_UP_TO = 100_000
"""Up to here a flat search takes at most about 15 ms a query alone, and a thirtieth of that in a batch."""

MAP_FROM = 64 << 20
"""Bytes from which a file is mapped into memory rather than read and hashed as a whole."""

_HEADER = 1 << 16


@dataclass(frozen=True, kw_only=True)
class FaissFile:
    """What the store records of a file: vectors of the live rows up to ``last_row`` at ``generation``."""

    name: str
    kind: Kind
    vectors: int
    last_row: int
    generation: int
    size: int
    sha256: str
    header: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def advise(vectors: int) -> Kind:
    """The kind for a collection of that many vectors: flat up to `FLAT_UP_TO`, then ivf.

    Never hnsw: at the same recall it is faster than ivf, but needs four times the memory and the time to build.
    """
    return "flat" if vectors <= FLAT_UP_TO else "ivf"


def checked_kind(kind: str, vectors: int) -> Kind:
    """``kind``, or for ``auto`` what `advise` says.

    Raises:
        RestillError: there is no such kind.
    """
    if kind == "auto":
        return advise(vectors)
    if kind not in get_args(Kind):
        raise RestillError(f"kind={kind!r} is unknown; give auto, {', '.join(get_args(Kind))}")
    return kind  # pyright: ignore[reportReturnType]


def build(
    kind: Kind,
    dim: int,
    sample: np.ndarray,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    vectors: int,
) -> faiss.IndexIDMap:
    """An index of ``vectors`` vectors, which come as (rows int64 [N] ascending, f32 [N, dim]).

    Args:
        sample: f32 [M, dim], what ivf learns its clusters from; unused by the others.
    """
    if kind == "flat":
        inner = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        inner = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        inner.hnsw.efConstruction = 80
    else:
        lists = clusters(vectors)
        quantizer = faiss.IndexFlatIP(dim)
        eight_bits = faiss.ScalarQuantizer.QT_8bit
        inner = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, eight_bits, faiss.METRIC_INNER_PRODUCT)
        inner.cp.niter, inner.cp.max_points_per_centroid = 10, 64
        inner.cp.min_points_per_centroid = 1
        inner.cp.spherical = True
        inner.train(sample)  # pyright: ignore[reportCallIssue]
    index = faiss.IndexIDMap(inner)
    for rows, values in batches:
        index.add_with_ids(np.ascontiguousarray(values, np.float32), rows)  # pyright: ignore[reportCallIssue]
    return index


def clusters(vectors: int) -> int:
    """Number of ivf clusters: the power of two next to 4 √n, with at least 39 vectors each (FAISS's own bound)."""
    wanted = min(4 * math.sqrt(vectors), vectors / 39)
    return max(1, 2 ** round(math.log2(max(1, wanted))))


def write(index: faiss.IndexIDMap, folder: Path, *, kind: Kind, last_row: int, generation: int) -> FaissFile:
    """Write ``index`` into ``folder`` under a name of its own, and flush it to the disk.

    Raises:
        RestillError: writing fails (disk full, no permission).
    """
    path = folder / f"vectors-{generation}-{os.urandom(4).hex()}.faiss"
    try:
        faiss.write_index(index, str(path))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        _flush_folder(folder)
        return FaissFile(
            name=path.name,
            kind=kind,
            vectors=index.ntotal,
            last_row=last_row,
            generation=generation,
            size=path.stat().st_size,
            sha256=_sha256(path),
            header=_header(path),
        )
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise RestillError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def read(folder: Path, recorded: Mapping[str, Any], *, whole: bool = False) -> tuple[faiss.IndexIDMap, FaissFile]:
    """Open the recorded file: a large one mapped into memory, a small one read.

    FAISS does not stand forged bytes. A file that is read is compared with its SHA-256 first; of one that is mapped
    only size and first 64 KiB are, unless ``whole``.

    Raises:
        FileNotFoundError: it is gone, perhaps because a newer one was recorded since.
        RestillError: it is not what was recorded, or FAISS cannot read it.
    """
    try:
        record = FaissFile(**recorded)
    except TypeError as error:
        raise RestillError(f"{folder}: the record of the vectors is damaged ({error}); run --repair") from error
    path = folder / Path(record.name).name
    mapped = record.size >= MAP_FROM
    try:
        same = path.stat().st_size == record.size and _header(path) == record.header
        if same and (whole or not mapped):
            same = _sha256(path) == record.sha256
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RestillError(f"{path}: cannot be read ({error.strerror}); run `restill index --repair`") from error
    if not same:
        raise RestillError(
            f"{path}: is not the file that was recorded (size or SHA-256 differ); "
            "`restill index --repair` makes it again from the store"
        )
    try:
        # This flag maps flat, IVF and HNSW alike; plain IO_FLAG_MMAP maps inverted lists only (FAISS 1.15).
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise RestillError(f"{path}: cannot be read by FAISS ({error}); run `restill index --repair`") from error
    if not isinstance(index, faiss.IndexIDMap) or index.ntotal != record.vectors:
        raise RestillError(f"{path}: holds another index than was recorded; run `restill index --repair`")
    return index, record


def _flush_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a loss of power; other systems than POSIX cannot be asked to."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEADER)).hexdigest()
