"""GGUF files: every readable quantisation, rotary rows, and damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from tokenizers import pre_tokenizers

from restill.models.checkpoint.gguf import GgufFile
from restill.models.checkpoint.load import load_decoder
from restill.models.checkpoint.safetensors import load_decoder_folder
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_llama"
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "attn_norm": "attn_norm"}
NAMES |= {"mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
TOP = {"embed": "token_embd", "norm": "output_norm", "lm_head": "output"}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of these files does not land in the user's home."""
    monkeypatch.setenv("RESTILL_HOME", str(tmp_path / "home"))


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Half rotation to interleaved pairs, as llama.cpp's converter does."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path: Path, kind: Kind, **metadata: Any) -> dict[str, np.ndarray]:
    """Write the tiny Llama as GGUF; returns the weights it holds, in the canonical layout."""
    config, params = load_decoder_folder(TINY)
    writer = GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model(metadata.pop("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(metadata.pop("pre", "smollm"))
    writer.add_token_list([*alphabet[:253], "12", "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * 254 + [3, 3])
    if metadata.pop("merges", True):
        writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(255)
    held = {}
    for key, value in params.items():
        rows = value.T if value.ndim == 2 and key != "embed" else value
        leaf = key.rpartition(".")[2]
        name = f"blk.{key.split('.')[1]}.{NAMES[leaf]}.weight" if "." in key else f"{TOP[key]}.weight"
        heads = {"q": config.num_heads, "k": config.num_kv_heads}.get(leaf)
        as_kind = Kind.F32 if rows.ndim == 1 else kind
        packed = quantize(np.ascontiguousarray(permute(rows, heads) if heads else rows), as_kind)
        writer.add_tensor(name, packed, raw_dtype=as_kind)
        # permuting rows and quantising along rows commute
        back = dequantize(quantize(np.ascontiguousarray(rows), as_kind), as_kind)
        held[key] = back.T if value.ndim == 2 and key != "embed" else back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1])
def test_every_readable_kind_loads_exactly(tmp_path: Path, kind: Kind) -> None:
    held = write(tmp_path / "m.gguf", kind)
    checkpoint = load_decoder(tmp_path / "m.gguf")
    assert checkpoint.config == load_decoder_folder(TINY)[0]
    assert checkpoint.params.keys() == held.keys()
    for key, value in held.items():
        assert checkpoint.params[key].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.params[key], value, err_msg=key)


def test_the_tokenizer_inside_is_read(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Kind.F32)
    tokenizer = Tokenizer.from_gguf(tmp_path / "m.gguf")
    assert tokenizer.encode("<|im_end|>", special=True) == [255] == [tokenizer.eos_id]
    assert tokenizer.decode(tokenizer.encode("<|im_end|> 12")) == "<|im_end|> 12"


@pytest.mark.parametrize(("pre", "count"), [("llama-bpe", 1), ("gpt-2", 2)])
def test_a_word_that_is_a_token_is_that_token_where_the_family_has_it_so(tmp_path: Path, pre: str, count: int) -> None:
    write(tmp_path / "m.gguf", Kind.F32, pre=pre, merges=False)
    assert len(Tokenizer.from_gguf(tmp_path / "m.gguf").encode("12")) == count


BAD = {
    "BF16": ({"kind": Kind.BF16}, "is BF16"),
    "architecture": ({"kind": Kind.F32, "architecture": "gemma"}, "'gemma'"),
    "tokenizer": ({"kind": Kind.F32, "tokenizer": "llama"}, "tokenizer.ggml.model='llama'"),
    "pre-tokenizer": ({"kind": Kind.F32, "pre": "odd"}, "tokenizer.ggml.pre='odd'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named(tmp_path: Path, options: dict, message: str) -> None:
    write(tmp_path / "m.gguf", **options)
    with pytest.raises(RestillError, match=message):
        load_decoder(tmp_path / "m.gguf")


@pytest.mark.parametrize("length", [0, 3, 100, 9000])
def test_a_cut_file_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / "m.gguf", Kind.F32)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "m.gguf").read_bytes()[:length])
    with pytest.raises(RestillError, match="not a readable GGUF file"):
        load_decoder(cut)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")


def test_a_second_open_reads_what_the_first_unpacked_and_equals_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "m.gguf", Kind.Q8_0)
    first = load_decoder(tmp_path / "m.gguf")
    monkeypatch.setattr(GgufFile, "params", lambda self: pytest.fail("the GGUF was unpacked again"))
    again = load_decoder(tmp_path / "m.gguf")
    assert (again.config, again.fingerprint) == (first.config, first.fingerprint)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert all(np.array_equal(again.params[name], leaf) for name, leaf in first.params.items())


@pytest.mark.parametrize("name", ["weights.safetensors", "converted.json", "tokenizer.json"])
def test_a_damaged_unpacked_copy_is_made_again(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m.gguf", Kind.Q8_0)
    first = load_decoder(tmp_path / "m.gguf")
    kept = next((tmp_path / "home" / "converted").glob(f"*/{name}"))
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    again = load_decoder(tmp_path / "m.gguf")
    assert all(np.array_equal(again.params[key], leaf) for key, leaf in first.params.items())
    assert kept.read_bytes() == whole


def test_a_full_disk_costs_the_unpacked_copy_not_the_model(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Kind.Q8_0)
    (tmp_path / "home").write_text("no folder can be made here")
    assert load_decoder(tmp_path / "m.gguf").config.num_layers == 2
