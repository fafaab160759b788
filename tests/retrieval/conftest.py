"""A text encoder without weights: bags of hashed words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import pytest


class HashingEncoder:
    """Texts that share words are near each other. A token is up to four word characters, or one other."""

    def __init__(self, max_tokens: int = 64, name: str = "hashing") -> None:
        self.dim, self.max_tokens = 128, max_tokens
        self.name, self.fingerprint = name, f"fingerprint of {name}"
        self.batches: list[int] = []

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        self.batches.append(len(texts))
        vectors = np.full((len(texts), self.dim), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_tokens(self, text: str) -> int:
        return len(self.token_offsets(text)) + 2

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w{1,4}|[^\w\s]", text)]


@pytest.fixture
def encoder() -> HashingEncoder:
    return HashingEncoder()


@pytest.fixture(scope="session")
def make_encoder() -> type[HashingEncoder]:
    return HashingEncoder
