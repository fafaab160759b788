"""The shape of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import RestillError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Llama-family decoder (Llama, SmolLM2): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Hashable, so that it can be a static argument: every field is part of the compiled program.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise RestillError(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}; "
                "grouped-query attention needs equal groups"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a Hugging Face ``config.json`` of ``model_type: llama``.

        Raises:
            RestillError: another architecture, or a feature this decoder does not have.
        """
        kind = config.get("model_type")
        if kind != "llama":
            raise RestillError(f"model_type={kind!r} is not supported; this decoder reads 'llama' checkpoints")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise RestillError(f"rope_type={scaling!r} is not supported; use a checkpoint without rope scaling")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise RestillError(f"hidden_act={config['hidden_act']!r} is not supported; use a checkpoint with 'silu'")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise RestillError("attention_bias/mlp_bias=true is not supported; use a checkpoint without biases")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate_size=config["intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            max_positions=config.get("max_position_embeddings", 2048),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The Hugging Face ``config.json`` of this shape, readable by transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }
