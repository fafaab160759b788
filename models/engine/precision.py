"""What the engine computes in: one switch, and the parameters in that form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import DecoderConfig
from ..decoder import fuse, param_shapes
from ..errors import RestillError
from ..int8 import int8_matmul
from ..mixed import NARROW
from ..quantise import CALIBRATION, quantise
from ..tokenizer import Tokenizer

Precision = Literal["auto", "f32", "w8a8", "bf16", "int8"]
"""``w8a8``: int8 weights and activations, f32 between them (CPU). ``int8``: int8 weights, bf16 activations. ``bf16``:
bf16 throughout, on CPU mixed (``mixed``): bf16 factors of the weights' products, f32 for all else."""


def resolve(precision: Precision) -> Precision:
    """``auto`` as what it stands for: f32 on CPU (few have bf16 instructions), else bf16.

    ``w8a8`` becomes f32 where this backend's int8 product is not exact.

    Raises:
        RestillError: unknown precision.
    """
    if precision not in get_args(Precision):
        choices = ", ".join(map(repr, get_args(Precision)))
        raise RestillError(f"unknown precision {precision!r}; choose one of {choices}")
    if precision == "auto":
        return "f32" if jax.default_backend() == "cpu" else "bf16"
    return "f32" if precision == "w8a8" and not _int8_is_exact() else precision


def dtype_of(precision: Precision) -> Any:
    """The dtype of activations and of the KV cache."""
    return jnp.bfloat16 if precision in ("bf16", "int8") and not _mixed(precision) else jnp.float32


def _mixed(precision: Precision) -> bool:
    return precision == "bf16" and jax.default_backend() == "cpu"


def serving_params(
    config: DecoderConfig, params: Mapping[str, Any], tokenizer: Tokenizer, precision: Precision
) -> dict[str, Array]:
    """Parameters on the device in a resolved precision."""
    dtype = dtype_of(precision)
    if precision in ("w8a8", "int8"):
        tree = quantise(config, params, [i for i in tokenizer.encode(CALIBRATION) if i < config.vocab_size])
        keep = {name for name in tree if name.endswith(".scale")}
        cast = {k: v if k in keep or v.dtype == jnp.int8 else v.astype(dtype) for k, v in tree.items()}
    else:
        narrow = NARROW if _mixed(precision) else dtype
        cast = {name: jnp.asarray(leaf, narrow if leaf.ndim == 2 else dtype) for name, leaf in params.items()}
    return fuse(config, cast)


def check_shapes(config: DecoderConfig, params: Mapping[str, Any]) -> None:
    """Refuse canonical parameters that are not this model's.

    Raises:
        RestillError: a leaf is missing, unknown or of another shape.
    """
    wanted, given = param_shapes(config), {name: tuple(leaf.shape) for name, leaf in params.items()}
    for name in sorted({*wanted, *given}):
        found, right = given.get(name, "missing"), wanted.get(name, "unknown")
        if found != right:
            raise RestillError(f"{name} is {found}, in this model {right}; make a new engine for another model")


@cache
def _int8_is_exact() -> bool:
    rng = np.random.default_rng(0)
    kernel = rng.integers(-127, 128, (32, 256), dtype=np.int8)
    for rows in (1, 2, 16):
        x = rng.integers(-126, 127, (rows, 256)).astype(np.float32)
        x[:, 0] = 127.0  # the scale of each row is then 1
        y = jax.jit(int8_matmul)(jnp.asarray(x), jnp.asarray(kernel), jnp.ones(32))
        if not np.array_equal(np.asarray(y), x @ kernel.T.astype(np.float32)):
            return False
    return True
