"""Short names for what a phase is made from: questions, weights, seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..agents.question import Question
from .files import hash_json


def digest(questions: Sequence[Question]) -> dict[str, Any]:
    """The number of questions and a hash of all they hold."""
    return {"count": len(questions), "sha256": hash_json([q.model_dump(mode="json") for q in questions])}


def phase_seed(seed: int, name: str) -> int:
    """The seed of one phase of a job."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights that training left in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
