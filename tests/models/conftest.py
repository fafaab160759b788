"""The real small model, and mixed requests as an engine meets them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from restill.models.checkpoint.load import Checkpoint, load_decoder
from restill.models.config import DecoderConfig
from restill.models.decoder import forward
from restill.models.engine import shapes
from restill.models.engine.request import Request, Sampling
from restill.models.errors import RestillError

GRAMMAR = 'start: "Action: " /[a-z]{1,8}/ " {" /[0-9]{2}/ "}"'


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    try:
        return load_decoder("smollm2-135m")
    except RestillError as error:
        pytest.skip(f"the weights cannot be had here: {error}")


@pytest.fixture(scope="session")
def full_pass() -> Callable[..., np.ndarray]:
    """Logits ``[L, V]`` of L tokens without a cache: ``(config, params, tokens)``. Padding after them changes none."""
    run = jax.jit(forward, static_argnums=0)

    def logits(config: DecoderConfig, params: Any, tokens: Sequence[int]) -> np.ndarray:
        padded = np.zeros((1, -(-len(tokens) // 64) * 64), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(config, params, padded))[0, : len(tokens)]

    return logits


@pytest.fixture(scope="session")
def random_request() -> Callable[..., Request]:
    """A request of any kind: ``(rng, longest prompt, adapters, vocab)``; prompts share prefixes."""

    def make(rng: random.Random, longest: int, adapters: list[str], vocab: int = 256) -> Request:
        family = random.Random(rng.randrange(3))
        shared = [family.randrange(vocab) for _ in range(rng.choice((0, 20, longest // 2)))]
        own = [rng.randrange(vocab) for _ in range(rng.randrange(1, rng.choice((10, 60, longest // 2))))]
        kinds: list[dict[str, Any]] = [
            {},
            {"temperature": 1.0},
            {"temperature": 0.7, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 5, "min_p": 0.1},
            {"repetition_penalty": 1.3},
        ]
        return Request(
            prompt=(*shared, *own),
            sampling=Sampling(max_tokens=rng.choice((1, 3, 12)), **rng.choice(kinds)),
            seed=rng.randrange(1 << 20),
            stop=rng.choice(((), (), ("ab",))),
            grammar=rng.choice((None, None, None, GRAMMAR)),
            adapter=rng.choice((None, *adapters)),
            deadline=rng.choice((None,) * 9 + (time.monotonic() + 0.05,)),
        )

    return make


@pytest.fixture(scope="module")
def short_segments() -> Iterator[None]:
    """So that short requests cross from one segment of the cache into the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_REACHES", (40,))
        patch.setattr(shapes, "_HALVED", 40)  # 20, 40, and the rest
        yield
