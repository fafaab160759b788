"""Open a model by registry name, Hugging Face folder or GGUF file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError
from ..tokenizer import Tokenizer
from .converted import read_converted, write_converted
from .gguf import GgufFile
from .pull import REGISTRY, Progress, pull, sha256_of
from .safetensors import load_decoder_folder, read_json, read_tensors, save_decoder_folder, weight_files


@dataclass(frozen=True)
class Checkpoint:
    """A decoder: shape, canonical f32 parameters, tokenizer, a SHA-256 of the files that all this comes from, and the
    folder that holds them, if it is one."""

    name: str
    config: DecoderConfig
    params: dict[str, np.ndarray] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    fingerprint: str
    folder: Path | None = None


@dataclass(frozen=True)
class EncoderCheckpoint:
    """A BERT encoder: its ``config.json``, f32 parameters under their Hugging Face names, and its folder."""

    name: str
    config: dict[str, Any]
    params: dict[str, np.ndarray] = field(repr=False)
    folder: Path
    fingerprint: str


def load_decoder(name_or_path: str | Path, *, progress: Progress | None = None) -> Checkpoint:
    """Open a decoder.

    Args:
        name_or_path: a name of `REGISTRY` ("smollm2-135m"), a Hugging Face folder, or a ``.gguf`` file.
        progress: told about downloads.

    Raises:
        RestillError: unknown name, missing or damaged files, an unsupported architecture.
    """
    path = _locate(name_or_path, "decoder", progress)
    if path.is_dir():
        config, params = load_decoder_folder(path)
        tokenizer = Tokenizer.from_dir(path)
        fingerprint = _fingerprint([*weight_files(path), path / "config.json"], tokenizer.fingerprint)
    else:
        config, params, tokenizer, fingerprint = _load_gguf(path)
    _check(config, params, path)
    folder = path.absolute() if path.is_dir() else None
    return Checkpoint(str(name_or_path), config, params, tokenizer, fingerprint, folder)


def load_encoder(name_or_path: str | Path, *, progress: Progress | None = None) -> EncoderCheckpoint:
    """Open a BERT encoder: a name of `REGISTRY` ("minilm") or a Hugging Face folder.

    Raises:
        RestillError: unknown name, missing or damaged files, an unsupported architecture.
    """
    folder = _locate(name_or_path, "encoder", progress)
    if not folder.is_dir():
        raise RestillError(f"{folder} is a file; an encoder is a Hugging Face folder with model.safetensors")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "bert":
        kind = config.get("model_type")
        raise RestillError(f"model_type={kind!r} in {folder} is not supported; use a 'bert' encoder")
    params = {name.removeprefix("bert."): value for name, value in read_tensors(folder)}
    return EncoderCheckpoint(str(name_or_path), config, params, folder, _fingerprint(weight_files(folder)))


def save_decoder_hf(path: str | Path, config: DecoderConfig, params: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write a Hugging Face folder that transformers and `load_decoder` can open.

    Args:
        path: the folder, created if missing.
        config: the shape.
        params: the canonical tree, numpy or jax arrays; written as f32.
        tokenizer: written as ``tokenizer.json`` and ``tokenizer_config.json``.
    """
    path = Path(path)
    save_decoder_folder(path, config, params)
    (path / "tokenizer.json").write_text(tokenizer.hf_json, encoding="utf-8")
    text = json.dumps(tokenizer.hf_config(), indent=2, ensure_ascii=False)
    (path / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _load_gguf(path: Path) -> tuple[DecoderConfig, dict[str, np.ndarray], Tokenizer, str]:
    if not path.is_file():
        raise RestillError(f"no such file: {path}; give the path of a .gguf file")
    fingerprint = _fingerprint([path])
    kept = read_converted(fingerprint)
    if kept is not None:
        return *kept, fingerprint
    gguf = GgufFile(path)
    config, params, tokenizer = gguf.config, gguf.params(), Tokenizer.from_gguf(gguf)
    write_converted(fingerprint, config, params, tokenizer)
    return config, params, tokenizer, fingerprint


def _locate(name_or_path: str | Path, kind: Literal["decoder", "encoder"], progress: Progress | None) -> Path:
    """A folder or a GGUF file."""
    source = REGISTRY.get(str(name_or_path))
    if source is not None:
        if source.kind != kind:
            names = sorted(n for n, s in REGISTRY.items() if s.kind == kind)
            raise RestillError(f"{name_or_path!r} is no {kind} but of kind {source.kind}; use {', '.join(names)}")
        folder = pull(source.name, progress=progress)
        return folder / source.weights.name if source.weights.name.endswith(".gguf") else folder
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    names = sorted(n for n, s in REGISTRY.items() if s.kind == kind)
    raise RestillError(
        f"unknown model {str(name_or_path)!r}: no such name and no such path; known names: {', '.join(names)}"
    )


def _check(config: DecoderConfig, params: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuse a tree whose names or shapes are not those of the config, naming the first that differs."""
    c, d, f = config, config.hidden_size, config.intermediate_size
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    layer = {
        "attn_norm": (d,), "q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d),
        "mlp_norm": (d,), "gate": (d, f), "up": (d, f), "down": (f, d),
    }  # fmt: skip
    want = {f"layers.{i}.{name}": shape for i in range(c.num_layers) for name, shape in layer.items()}
    want |= {"embed": (c.vocab_size, d), "norm": (d,)}
    if not c.tie_embeddings:
        want["lm_head"] = (d, c.vocab_size)
    for key in sorted(want.keys() | params.keys()):
        have = params[key].shape if key in params else None
        if have != want.get(key):
            raise RestillError(f"weight {key!r} of {path} has shape {have}, the config says {want.get(key)}")


def _fingerprint(files: list[Path], *others: str) -> str:
    hashes = [*map(sha256_of, files), *others]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
