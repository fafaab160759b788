"""Parameters in W8A8 form: int8 weights per output channel, for the products of ``int8.py``.

Weights lose next to nothing this way; activations do, because a few input channels are far larger than the rest.
Their scale is migrated into the weights once, at load (SmoothQuant, Xiao et al. 2211.10438, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .config import DecoderConfig
from .decoder import MATMULS, Decoder, attention, causal_mask

_MIGRATION = 0.65
"""How much of the input's range moves into the weights (alpha of SmoothQuant)."""
CALIBRATION = (
    "The harbour town had two bridges, built in 1874 and 1931. Question: who designed the older one? To find out, one "
    "reads about the bridges first: \"The stone bridge was planned by Maria Lindqvist, an engineer from Oslo; it cost "
    "41,500 crowns.\" So the answer is Maria Lindqvist [1]. In 2008 the council (nine members, five of them farmers) "
    "voted on a tunnel, yet nothing came of it. Action: search {\"query\": \"tunnel plans of the council\"}\n"
    "Observation: - The river freezes in some winters; ships then unload at Varna, 60 km to the south-east.\n"
    "def area(width, height):\n    return width * height  # square metres\n"
    "Light rain fell all week, the baker wrote, and nobody bought ices. Why should they? It was 7 degrees!"
)  # fmt: skip
"""Text whose activations show which channels are large; any prose will do."""


def quantise(config: DecoderConfig, params: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Array]:
    """The W8A8 form of f32 parameters: int8 kernels ``[out, in]`` with ``.scale`` leaves and ``head``, the rest f32.

    Args:
        params: canonical f32 leaves.
        tokens: text to calibrate on, see ``CALIBRATION``.
    """
    ranges = {
        name: np.asarray(value) for name, value in _input_ranges(config, dict(params), jnp.asarray(tokens)).items()
    }
    tree = _migrate(config, {name: np.asarray(leaf, np.float32) for name, leaf in params.items()}, ranges)
    out: dict[str, Array] = {}
    for name, leaf in tree.items():
        if name.rpartition(".")[2] in MATMULS:
            out[name], out[f"{name}.scale"] = _channels_to_int8(leaf.T)
        elif name != "lm_head":
            out[name] = jnp.asarray(leaf)
    out["head"], out["head.scale"] = _channels_to_int8(tree["embed"] if config.tie_embeddings else tree["lm_head"].T)
    return out


def _channels_to_int8(kernel: np.ndarray) -> tuple[Array, Array]:
    """``[out, in]`` as int8 and the scales ``[out]``."""
    scale = np.maximum(np.abs(kernel).max(axis=1), 1e-30) / 127
    return jnp.asarray(np.rint(kernel / scale[:, None]).astype(np.int8)), jnp.asarray(scale.astype(np.float32))


@partial(jax.jit, static_argnums=0)
def _input_ranges(config: DecoderConfig, params: Mapping[str, Array], tokens: Array) -> dict[str, Array]:
    """Largest magnitude of every input channel of every matmul over ``tokens [L]``, by the matmul's name."""
    ranges: dict[str, Array] = {}

    def watched(name: str, linear: Any) -> Any:
        def call(x: Array) -> Array:
            ranges[name] = jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1)))
            return linear(x)

        return call

    model = Decoder(config, params)
    for block in model.layers:
        for name in MATMULS:
            setattr(block, name, watched(f"layers.{block.index}.{name}", getattr(block, name)))
    mask = causal_mask(jnp.zeros((1, tokens.shape[0]), jnp.int32))
    model(tokens[None], jnp.arange(tokens.shape[0])[None], lambda _, q, k, v: attention(q, k, v, mask))
    return ranges


def _migrate(config: DecoderConfig, tree: dict[str, np.ndarray], ranges: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Divide inputs and multiply weights by the same factor per channel; the model computes what it did before.

    The division costs nothing at run time: a norm's scale takes it for q, k, v, gate and up, the value projection
    for the output projection (heads that share values share factors). ``down`` stays: its inputs come out of a
    product, and moving their range into ``up`` costs more there than it saves.
    """
    groups, dim = config.num_heads // config.num_kv_heads, config.head_dim
    tree = dict(tree)
    for i in range(config.num_layers):
        at = f"layers.{i}."
        for norm, names in (("attn_norm", ("q", "k", "v")), ("mlp_norm", ("gate", "up"))):
            weight = np.max([np.abs(tree[at + name]).max(axis=1) for name in names], axis=0)
            factor = _factor(ranges[at + names[0]], weight)
            tree[at + norm] = tree[at + norm] / factor
            for name in names:
                tree[at + name] = tree[at + name] * factor[:, None]
        shared = (config.num_kv_heads, groups, dim)
        weight = np.abs(tree[at + "o"]).max(axis=1).reshape(shared).max(axis=1)
        factor = _factor(ranges[at + "o"].reshape(shared).max(axis=1), weight)
        tree[at + "v"] = tree[at + "v"] / factor.reshape(-1)
        tree[at + "o"] = tree[at + "o"] * np.repeat(factor[:, None], groups, axis=1).reshape(-1)[:, None]
    return tree


def _factor(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    factor = np.maximum(inputs, 1e-5) ** _MIGRATION / np.maximum(weights, 1e-5) ** (1 - _MIGRATION)
    return np.clip(factor / np.exp(np.log(factor).mean()), 1e-2, 1e2)
