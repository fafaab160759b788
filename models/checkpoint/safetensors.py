"""Hugging Face folders (``config.json``, safetensors), read to and written from the canonical tree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_TOP = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "lm_head"}
_TO_HF = {ours: theirs for theirs, ours in (_LAYER | _TOP).items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a `RestillError` says which file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RestillError(f"no {path.name} in {path.parent}; give a complete Hugging Face folder") from None
    except ValueError as error:
        raise RestillError(f"{path} is not valid JSON ({error}); download it again") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that ``model.safetensors.index.json`` names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise RestillError(f"no model.safetensors in {folder}; convert the model to safetensors first")
    shards = sorted({folder / name for name in read_json(index)["weight_map"].values()})
    for shard in shards:
        if not shard.is_file():
            raise RestillError(f"{index} names {shard.name}, which is missing; download it again")
    return shards


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a folder as f32, under its Hugging Face name."""
    import ml_dtypes  # noqa: F401  (gives numpy the name bfloat16)
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    yield name, np.asarray(file.get_tensor(name)).astype(np.float32, copy=False)
        except SafetensorError as error:
            message = f"{path} is not a readable safetensors file ({error}); download it again"
            raise RestillError(message) from error


def load_decoder_folder(folder: str | Path) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    """Config and canonical f32 parameters of a Llama-family folder.

    Raises:
        RestillError: a file is missing or damaged, or the architecture is another.
    """
    folder = Path(folder)
    config = DecoderConfig.from_hf(read_json(folder / "config.json"))
    params = {}
    for name, value in read_tensors(folder):
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings):
            continue
        key = _canonical(name, folder)
        params[key] = np.ascontiguousarray(value.T if value.ndim == 2 and key != "embed" else value)
    if "embed" not in params:
        raise RestillError(f"{folder} holds no model.embed_tokens.weight; it is no language model")
    return config, params


def save_decoder_folder(folder: str | Path, config: DecoderConfig, params: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors`` (f32) so that transformers can open the folder.

    Args:
        folder: created if missing; files of these names are replaced.
        config: the shape.
        params: the canonical tree, numpy or jax arrays.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in params.items():
        array = np.asarray(value, dtype=np.float32)
        matmul = array.ndim == 2 and key != "embed"
        tensors[_hf_name(key)] = np.ascontiguousarray(array.T if matmul else array)
    partial = folder / "model.safetensors.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors creates files that only the owner may read
    os.replace(partial, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")


def _canonical(name: str, folder: Path) -> str:
    stem, _, kind = name.rpartition(".")
    if kind == "weight":
        if stem in _TOP:
            return _TOP[stem]
        head, _, rest = stem.removeprefix("model.layers.").partition(".")
        if stem.startswith("model.layers.") and rest in _LAYER:
            return f"layers.{head}.{_LAYER[rest]}"
    raise RestillError(f"unknown tensor {name!r} in {folder}; only plain Llama decoders are supported")


def _hf_name(key: str) -> str:
    if key.startswith("layers."):
        _, layer, leaf = key.split(".")
        return f"model.layers.{layer}.{_TO_HF[leaf]}.weight"
    return f"{_TO_HF[key]}.weight"
