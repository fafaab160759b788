"""Dequantised GGUF weights kept on disk: reading the header and unpacking take seconds, reading them back does not.

``home()/converted/<SHA-256 of the GGUF file>/`` holds the canonical f32 tree and the tokenizer. Everything in it can
be made again, so the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError
from ..home import home
from ..tokenizer import Tokenizer

LARGEST = 2 << 30
"""Bytes of f32 weights up to which they are kept."""
_VERSION = 1  # of what is written here

Opened = tuple[DecoderConfig, dict[str, np.ndarray], Tokenizer]


def read_converted(source: str) -> Opened | None:
    """What was kept of the file with SHA-256 ``source``, or None: nothing there, damaged, or of another version."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from .pull import sha256_of

    try:
        folder = _folder(source)
        weights = folder / "weights.safetensors"
        facts = json.loads((folder / "converted.json").read_text(encoding="utf-8"))
        if facts["version"] != _VERSION or facts["sha256"] != sha256_of(weights):
            return None
        return DecoderConfig(**facts["config"]), load_file(weights), Tokenizer.from_dir(folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RestillError):
        return None


def write_converted(source: str, config: DecoderConfig, params: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> None:
    """Keep a model that was read from the file with SHA-256 ``source``; a full or read-only disk is no error."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from .pull import sha256_of

    if sum(leaf.nbytes for leaf in params.values()) > LARGEST:
        return
    with contextlib.suppress(OSError, SafetensorError):
        folder = _folder(source)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            save_file(dict(params), made / "weights.safetensors")
            (made / "tokenizer.json").write_text(tokenizer.hf_json, encoding="utf-8")
            (made / "tokenizer_config.json").write_text(json.dumps(tokenizer.hf_config()), encoding="utf-8")
            sha256 = sha256_of(made / "weights.safetensors")
            facts = {"version": _VERSION, "sha256": sha256, "config": dataclasses.asdict(config)}
            (made / "converted.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)


def _folder(source: str) -> Path:
    return home() / "converted" / source
