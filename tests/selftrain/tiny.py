"""Tiny things to train on and to ask about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from restill.models.config import DecoderConfig
from restill.models.decoder import param_shapes
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.world import World

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, intermediate_size=24
)


@cache
def small_world() -> World:
    """A small World, made once."""
    return World.generate(entities=100, seed=3, train=30, heldout=20)


def examples(count: int, *, seed: int = 0, longest: int = 24) -> list[Example]:
    """Random sequences; about a third of the tokens carry a weight, some of it negative."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        length = int(rng.integers(4, longest))
        weights = rng.choice([0.0, 0.0, 1.0, 0.5, -0.25], size=length)
        weights[0], weights[-1] = 0.0, 1.0
        tokens = rng.integers(0, CONFIG.vocab_size, length).tolist()
        made.append(Example(tokens=tuple(tokens), weights=tuple(weights.tolist()), provenance={"i": i}))
    return made


def mixture(count: int = 12, *, seed: int = 0) -> Mixture:
    """A mixture of random sequences."""
    return Mixture.of(examples(count, seed=seed))


def random_params(seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters of ``CONFIG``."""
    rng = np.random.default_rng(seed)
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(scale=0.25, size=shape).astype(np.float32)
        for name, shape in param_shapes(CONFIG).items()
    }


def padded(listed: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and weights one example a row, zeros behind: the plain, unpacked form."""
    length = max(len(e.tokens) for e in listed)
    tokens = np.array([[*e.tokens, *[0] * (length - len(e.tokens))] for e in listed], np.int32)
    weights = np.array([[*e.weights, *[0.0] * (length - len(e.tokens))] for e in listed], np.float32)
    return tokens, weights
