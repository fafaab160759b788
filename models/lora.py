"""LoRA leaves: made, merged, saved and found (Hu et al. 2106.09685).

An adapter is a folder: ``adapter_model.safetensors`` and ``adapter_config.json`` in PEFT's layout, so that
other tools open it, and ``manifest.json`` with what it was trained on and how it scored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .config import DecoderConfig
from .decoder import MATMULS, param_shapes
from .errors import RestillError
from .home import home

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
_HF_NAMES = {name: f"self_attn.{name}_proj" for name in "qkvo"} | {m: f"mlp.{m}_proj" for m in ("gate", "up", "down")}


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What a model says of the adapter it carries."""

    name: str
    path: Path
    hash: str
    manifest: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Low-rank leaves ``"layers.i.q.a" [in, rank]`` and ``".b" [rank, out]`` with their alpha."""

    leaves: Mapping[str, np.ndarray]
    alpha: float
    info: AdapterInfo

    @property
    def rank(self) -> int:
        """Inner width, equal in all leaves."""
        return next(leaf.shape[1] for name, leaf in self.leaves.items() if name.endswith(".a"))


def init_lora(
    config: DecoderConfig,
    *,
    rank: int,
    key: Array,
    targets: Iterable[str] = MATMULS,
    layers: Iterable[int] | None = None,
) -> dict[str, Array]:
    """Fresh leaves: ``a`` normal with variance 1/in, ``b`` zero, so the adapter starts as the identity."""
    shapes, leaves = param_shapes(config), {}
    names = [f"layers.{i}.{t}" for i in (range(config.num_layers) if layers is None else layers) for t in targets]
    for name, sub in zip(names, jax.random.split(key, len(names)), strict=True):
        width, out = shapes[name]
        leaves[f"{name}.a"] = jax.random.normal(sub, (width, rank)) * width**-0.5
        leaves[f"{name}.b"] = jax.numpy.zeros((rank, out))
    return leaves


def merge(params: Mapping[str, Any], leaves: Mapping[str, Any], *, alpha: float) -> dict[str, Any]:
    """Parameters with ``alpha/rank * a @ b`` added to each adapted kernel; unadapted leaves are shared, not copied."""
    merged = dict(params)
    for name, a in leaves.items():
        if name.endswith(".a"):
            kernel = name.removesuffix(".a")
            delta = (alpha / a.shape[1]) * (np.asarray(a, np.float32) @ np.asarray(leaves[f"{kernel}.b"], np.float32))
            merged[kernel] = np.asarray(params[kernel]) + delta
    return merged


def save_peft(
    path: Path, leaves: Mapping[str, Any], config: DecoderConfig, *, alpha: float, manifest: Mapping[str, Any]
) -> None:
    """Write an adapter folder that PEFT can open (``a`` and ``b`` transposed to its ``[out, in]`` layout)."""
    path.mkdir(parents=True, exist_ok=True)
    tensors, targets, rank = {}, set(), 0
    for name, leaf in leaves.items():
        _, layer, matmul, side = name.split(".")
        hf = f"base_model.model.model.layers.{layer}.{_HF_NAMES[matmul]}.lora_{side.upper()}.weight"
        tensors[hf] = np.ascontiguousarray(np.asarray(leaf, np.float32).T)
        targets.add(_HF_NAMES[matmul].split(".")[1])
        rank = leaf.shape[1] if side == "a" else rank
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "target_modules": sorted(targets),
        "base_model_name_or_path": manifest.get("base", ""),
    }  # fmt: skip
    layers = sorted({int(name.split(".")[1]) for name in leaves})
    if layers != list(range(config.num_layers)):
        peft["layers_to_transform"] = layers
    save_file(tensors, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(peft, indent=1))
    (path / MANIFEST).write_text(json.dumps(dict(manifest), indent=1, ensure_ascii=False))


def load_peft(path: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        RestillError: a file is missing or damaged, or the adapter is no plain LoRA.
    """
    for name in (WEIGHTS, CONFIG):
        if not (path / name).is_file():
            raise RestillError(
                f"{path} is no adapter: {name} is missing; give a folder that holds {WEIGHTS} and {CONFIG}"
            )
    try:
        config, tensors = json.loads((path / CONFIG).read_text()), load_file(path / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise RestillError(f"the adapter in {path} is damaged ({error}); copy or train it again") from None
    other = [name for name in ("use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("peft_type") != "LORA" or other:
        told = ", ".join([f"peft_type={config.get('peft_type')!r}", *other])
        raise RestillError(f"{path / CONFIG} describes no plain LoRA ({told}); export one")
    ours = {hf: name for name, hf in _HF_NAMES.items()}
    leaves: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        parts = name.split(".layers.")[-1].split(".")  # i, self_attn|mlp, x_proj, lora_A|lora_B, weight
        try:
            matmul, side = ours[".".join(parts[1:3])], {"lora_A": "a", "lora_B": "b"}[parts[3]]
        except (KeyError, IndexError):
            raise RestillError(f"{path / WEIGHTS} holds {name!r}, which is no LoRA leaf of a Llama decoder") from None
        leaves[f"layers.{int(parts[0])}.{matmul}.{side}"] = np.ascontiguousarray(tensor.T)
    manifest = json.loads((path / MANIFEST).read_text()) if (path / MANIFEST).is_file() else {}
    alpha = float(config["lora_alpha"])
    if config.get("use_rslora"):  # scaled by alpha / sqrt(r) (Kalajdzievski 2312.03732)
        alpha *= math.sqrt(config["r"])
    digest = hashlib.sha256((path / WEIGHTS).read_bytes() + f"alpha {alpha}".encode()).hexdigest()
    info = AdapterInfo(name=path.name, path=path, hash=digest, manifest=manifest)
    return Adapter(leaves=leaves, alpha=alpha, info=info)


def find_adapter(name_or_path: str | Path) -> Path:
    """The folder of an adapter: a path, a name that ships with restill, or one under ``$RESTILL_HOME/adapters``.

    Raises:
        RestillError: there is none; the message lists those that exist.
    """
    shelves = [Path(__file__).parent.parent / "adapters", home() / "adapters"]
    for candidate in [Path(name_or_path), *(shelf / str(name_or_path) for shelf in shelves)]:
        if (candidate / WEIGHTS).is_file():
            return candidate
    known = sorted({p.parent.name for shelf in shelves if shelf.is_dir() for p in shelf.glob(f"*/{WEIGHTS}")})
    raise RestillError(
        f"unknown adapter {str(name_or_path)!r}; give a folder with {WEIGHTS}"
        + (f" or one of: {', '.join(known)}" if known else "")
    )
