"""What the agent tests share: a search that always finds something, and tokenizers small and real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from restill.agents.testing import ByteTokenizer, make_hit
from restill.models.checkpoint.pull import REGISTRY
from restill.models.home import home
from restill.models.testing import tiny_tokenizer as bpe_tokenizer
from restill.models.tokenizer import Tokenizer
from restill.retrieval.types import Hit


@pytest.fixture(scope="session")
def search() -> Callable[[str], list[Hit]]:
    """Finds two passages, whatever the query."""

    def search(query: str) -> list[Hit]:
        """Search the documents."""
        return [
            make_hit("d1", "Rome", "Rome is a city."),
            make_hit("d2", "", f"A text about {query}.", start=7),
        ]

    return search


def _load(name: str) -> Any:
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe":
        return bpe_tokenizer()
    file = home() / "models" / "smollm2-135m" / REGISTRY["smollm2-135m"].weights.name
    if not file.is_file():
        pytest.skip("SmolLM2 has not been pulled")
    return Tokenizer.from_gguf(file)


@pytest.fixture(scope="session", params=["bytes", "bpe", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each tokenizer in turn; SmolLM2's only where it has been pulled."""
    return _load(request.param)


@pytest.fixture(scope="session", params=["bpe", "smollm2"])
def hf_tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each tokenizer that llguidance can read."""
    return _load(request.param)
