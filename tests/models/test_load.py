"""Opening models by name or path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from restill.models import home
from restill.models.checkpoint.load import load_decoder, load_encoder, save_decoder_hf
from restill.models.checkpoint.safetensors import load_decoder_folder
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_llama"


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    save_decoder_hf(tmp_path / "model", *load_decoder_folder(TINY), tiny_tokenizer)
    return tmp_path / "model"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RestillError, match="unknown model 'gpt5'.*smollm2-135m"):
        load_decoder("gpt5")
    with pytest.raises(RestillError, match="unknown model 'gpt5'.*minilm"):
        load_encoder("gpt5")


def test_the_wrong_kind_of_model_is_refused() -> None:
    with pytest.raises(RestillError, match="no decoder but of kind encoder; use smollm2-135m"):
        load_decoder("minilm")
    with pytest.raises(RestillError, match="no encoder but of kind decoder; use minilm"):
        load_encoder("smollm2-135m")
    with pytest.raises(RestillError, match="'llama'.*use a 'bert' encoder"):
        load_encoder(TINY)


def test_the_fingerprint_follows_all_that_decides_what_a_model_says(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    found = [load_decoder(folder).fingerprint]
    assert load_decoder(moved).fingerprint == found[0]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1)
    save_file(tensors, folder / "model.safetensors")
    found.append(load_decoder(folder).fingerprint)
    for file, key, value in (("config.json", "rope_theta", 5e5), ("tokenizer_config.json", "chat_template", "{{ 1 }}")):
        facts = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**facts, key: value}))
        found.append(load_decoder(folder).fingerprint)
    assert len(set(found)) == len(found)


def test_a_config_that_does_not_fit_names_the_weight(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(RestillError, match=r"layers\.0\.down.*\(128, 64\).*\(96, 64\)"):
        load_decoder(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(RestillError, match=r"layers\.2\.attn_norm.*None"):
        load_decoder(folder)


def test_home_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTILL_HOME", str(tmp_path / "a" / "b"))
    assert home.home() == tmp_path / "a" / "b" and home.home().is_dir()
    shutil.rmtree(tmp_path / "a")
    monkeypatch.delenv("RESTILL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home.home() == tmp_path / ".cache" / "restill"


def test_the_compile_cache_lies_at_home_unless_the_user_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    names = ("dir", "cache_min_compile_time_secs", "cache_min_entry_size_bytes")
    keys = ["jax_compilation_cache_dir", *(f"jax_persistent_{n}" for n in names[1:])]
    before = {key: getattr(jax.config, key) for key in keys}
    monkeypatch.setenv("RESTILL_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        home.enable_compile_cache()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        home.enable_compile_cache()
        assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / "xla"
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
