"""The decoder: one ``flax.nnx`` module for the Llama family.

Parameters travel as a flat dict of leaves (``"layers.3.q"``), so that nothing of nnx crosses the jit
boundary; the module is assembled from them inside the traced function, which costs nothing at run time.
How keys and values are kept is the caller's business: the decoder hands each layer's queries, keys and
values to ``attend`` and continues with what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from .config import DecoderConfig
from .int8 import TWO_TERMS, int8_matmul
from .layers import Linear, RMSNorm, rope_angles, rotate
from .mixed import ROWS, product

Params = Mapping[str, Array]
"""Flat canonical parameters; matmul kernels are ``[in, out]``."""

MATMULS = ("q", "k", "v", "o", "gate", "up", "down")
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Matmuls over the same input, which serving does as one (``fuse``)."""
NEG_INF = -1e30


class Attend(Protocol):
    """Attention of one layer, with its cache: ``q [B, L, H, D]``, ``k, v [B, L, KV, D]`` to ``[B, L, H, D]``."""

    def __call__(self, layer: int, q: Array, k: Array, v: Array, /) -> Array: ...


class Block(nnx.Module):
    """Attention and SwiGLU feed-forward, each behind an RMSNorm and added to the residual."""

    def __init__(self, config: DecoderConfig, params: Params, index: int, lora: Params, scale: float | Array) -> None:
        prefix = f"layers.{index}."

        def linear(name: str) -> Linear:
            a, key = lora.get(f"{prefix}{name}.a"), prefix + name
            return Linear(
                params[key],
                None if a is None else (a, lora[f"{key}.b"]),
                scale,
                channels=params.get(f"{key}.scale"),
                two_terms=name in TWO_TERMS,
            )

        self.config, self.index = config, index
        self.attn_norm = RMSNorm(params[prefix + "attn_norm"], config.rms_norm_eps)
        self.mlp_norm = RMSNorm(params[prefix + "mlp_norm"], config.rms_norm_eps)
        for fused, names in FUSED.items():
            for name in (fused,) if prefix + fused in params else names:
                setattr(self, name, linear(name))
        self.o, self.down = linear("o"), linear("down")

    def __call__(self, x: Array, angles: tuple[Array, Array], attend: Attend) -> Array:
        """``x [B, L, hidden]`` to the same shape."""
        config, heads = self.config, (*x.shape[:-1], -1, self.config.head_dim)
        widths = [n * config.head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        q, k, v = (part.reshape(heads) for part in self._project("qkv", self.attn_norm(x), widths))
        out = attend(self.index, rotate(q, angles), rotate(k, angles), v)
        x = x + self.o(out.reshape(*x.shape[:-1], -1))
        gate, up = self._project("gate_up", self.mlp_norm(x), [config.intermediate_size] * 2)
        return x + self.down(jax.nn.silu(gate) * up)

    def _project(self, fused: str, h: Array, widths: list[int]) -> list[Array]:
        if hasattr(self, fused):
            return jnp.split(getattr(self, fused)(h), np.cumsum(widths)[:-1].tolist(), axis=-1)
        return [getattr(self, name)(h) for name in FUSED[fused]]


class Decoder(nnx.Module):
    """A Llama-family decoder assembled from flat parameters.

    Args:
        params: canonical leaves (see ``param_shapes``), or their W8A8 form (``quantise.quantise``).
        lora: leaves ``"layers.i.q.a"``/``".b"``; layers without leaves have none.
        lora_scale: ``alpha / rank``, or ``[B, n]`` for n adapters (see ``Linear``).
    """

    def __init__(
        self, config: DecoderConfig, params: Params, lora: Params | None = None, lora_scale: float | Array = 1.0
    ) -> None:
        self.config = config
        self.embed = nnx.Param(params["embed"])
        self.layers = nnx.List([Block(config, params, i, lora or {}, lora_scale) for i in range(config.num_layers)])
        self.norm = RMSNorm(params["norm"], config.rms_norm_eps)
        self.lm_head = nnx.data(nnx.Param(params["lm_head"]) if "lm_head" in params else None)
        quantised = (nnx.Param(params["head"]), nnx.Param(params["head.scale"])) if "head" in params else None
        self.head = nnx.data(quantised)

    def __call__(self, tokens: Array, positions: Array, attend: Attend) -> Array:
        """Final hidden states ``[B, L, hidden]`` (normed) of ``tokens``, ``positions`` ``[B, L]``."""
        x = self.embed[...][tokens].astype(self.norm.scale[...].dtype)
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            x = layer(x, angles, attend)
        return self.norm(x)

    def logits(self, hidden: Array) -> Array:
        """Next-token logits ``[..., vocab]`` in f32 of normed hidden states ``[..., hidden]``."""
        if self.head is not None:
            kernel, scale = self.head
            return int8_matmul(hidden, kernel[...], scale[...], two_terms="head" in TWO_TERMS)
        rows = hidden.reshape(-1, hidden.shape[-1])
        lm_head = self.lm_head
        logits = product(rows, self.embed[...], ROWS) if lm_head is None else product(rows, lm_head[...])
        return logits.reshape(*hidden.shape[:-1], -1)


def fuse(config: DecoderConfig, params: Params) -> dict[str, Array]:
    """The same parameters, also quantised ones, with one kernel for each of ``FUSED``: fewer, larger matmuls."""
    out = dict(params)
    for i in range(config.num_layers):
        for fused, names in FUSED.items():
            for suffix in ("", ".scale"):
                parts = [out.pop(key) for name in names if (key := f"layers.{i}.{name}{suffix}") in out]
                if parts:
                    axis = 0 if parts[0].dtype == jnp.int8 else -1
                    out[f"layers.{i}.{fused}{suffix}"] = jnp.concatenate(parts, axis)
    return out


def param_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every canonical leaf and its shape: the one definition that loaders, tests and sharding share."""
    d, f, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    block = {
        "attn_norm": (d,), "q": (d, heads), "k": (d, kv), "v": (d, kv), "o": (heads, d),
        "mlp_norm": (d,), "gate": (d, f), "up": (d, f), "down": (f, d),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, d)}
    for i in range(config.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    shapes["norm"] = (d,)
    if not config.tie_embeddings:
        shapes["lm_head"] = (d, config.vocab_size)
    return shapes


def init_params(config: DecoderConfig, key: Array, scale: float = 0.02) -> dict[str, Array]:
    """Random f32 parameters (normal, norms at one), for tests and for training from scratch."""
    shapes = param_shapes(config)
    keys = jax.random.split(key, len(shapes))
    return {
        name: jnp.ones(shape) if len(shape) == 1 else scale * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Grouped-query attention over whole sequences, softmax in f32.

    Args:
        q: ``[B, L, H, D]``. k, v: ``[B, T, KV, D]``. mask: ``[B, L, T]``, true where a query may look.
    """
    batch, length, heads, dim = q.shape
    groups = q.reshape(batch, length, k.shape[2], -1, dim)
    scores = jnp.einsum("blkgd,btkd->bkglt", groups, k, preferred_element_type=jnp.float32) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, NEG_INF), axis=-1)
    return jnp.einsum("bkglt,btkd->blkgd", weights.astype(v.dtype), v).reshape(batch, length, heads, dim)


def causal_mask(segments: Array) -> Array:
    """``[B, L, L]`` mask: look back within one's own segment only (``segments [B, L]``; packed rows)."""
    length = segments.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal & (segments[:, :, None] == segments[:, None, :])


def forward(
    config: DecoderConfig,
    params: Params,
    tokens: Array,
    positions: Array | None = None,
    segments: Array | None = None,
    lora: Params | None = None,
    lora_scale: float = 1.0,
) -> Array:
    """Logits ``[B, L, vocab]`` of whole (packed) sequences ``tokens [B, L]``, without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    mask = causal_mask(jnp.zeros_like(tokens) if segments is None else segments)
    model = Decoder(config, params, lora, lora_scale)
    return model.logits(model(tokens, positions, lambda _, q, k, v: attention(q, k, v, mask)))
