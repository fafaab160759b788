"""Hugging Face folders: read as transformers writes them, written as transformers reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from restill.models.checkpoint.load import load_decoder, save_decoder_hf
from restill.models.checkpoint.safetensors import load_decoder_folder, save_decoder_folder
from restill.models.decoder import forward
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny_llama"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def test_logits_of_a_folder_equal_transformers() -> None:
    config, params = load_decoder_folder(TINY)
    reference = np.load(FIXTURES / "tiny_llama.npz")
    logits = forward(config, params, jnp.asarray(reference["ids"]))
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


def test_bfloat16_weights_become_f32() -> None:
    _, params = load_decoder_folder(TINY)
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    config, params = load_decoder_folder(TINY)
    save_decoder_folder(tmp_path, config, params)
    config_again, again = load_decoder_folder(tmp_path)
    assert config_again == config and again.keys() == params.keys()
    for key, value in params.items():
        np.testing.assert_array_equal(again[key], value)
    theirs, ours = load_file(TINY / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value.astype(np.float32))


def test_a_saved_checkpoint_opens_with_its_tokenizer(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    config, params = load_decoder_folder(TINY)
    save_decoder_hf(tmp_path, config, params, tiny_tokenizer)
    checkpoint = load_decoder(tmp_path)
    assert checkpoint.config == config and len(checkpoint.fingerprint) == 64
    assert checkpoint.tokenizer.fingerprint == tiny_tokenizer.fingerprint


def test_shards_are_read_together(folder: Path) -> None:
    _, whole = load_decoder_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    weight_map = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _, again = load_decoder_folder(folder)
    assert again.keys() == whole.keys()
    (folder / "b.safetensors").unlink()
    with pytest.raises(RestillError, match="b.safetensors, which is missing"):
        load_decoder_folder(folder)


def test_a_cut_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RestillError, match="not a readable safetensors file"):
        load_decoder_folder(folder)


def test_another_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(RestillError, match="gpt2"):
        load_decoder_folder(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(RestillError, match=f"no {missing}"):
        load_decoder_folder(folder)


def test_unknown_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    save_file(tensors | bias, folder / "model.safetensors")
    with pytest.raises(RestillError, match=r"q_proj\.bias"):
        load_decoder_folder(folder)
