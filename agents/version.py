"""Which code made a run or a job."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

_PARTS = ("agents", "commands", "models", "retrieval", "selftrain")


@cache
def code_version() -> str:
    """Version of the package and a hash of its sources, as they are on disk: ``0.1.0+1f2e3d4c``."""
    try:
        version = metadata.version("restill")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"{version}+{sources_hash(Path(__file__).parents[1])}"


def sources_hash(root: Path) -> str:
    """8 hex digits over names and texts of the modules of the package in ``root``; tests and benchmarks are not in."""
    digest = hashlib.sha256()
    files = [*root.glob("*.py"), *(file for part in _PARTS for file in (root / part).rglob("*.py"))]
    for file in sorted(files, key=lambda f: f.relative_to(root).as_posix()):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
