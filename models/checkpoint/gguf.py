"""GGUF files (llama.cpp): shape, tokenizer, and weights dequantised to f32.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
READABLE = ("F32", "F16", "Q8_0", "Q4_1")

_LAYER = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_TOP = {"token_embd": "embed", "output_norm": "norm", "output": "lm_head"}


class GgufFile:
    """An open GGUF file. Opening parses the header (about 2 s for a vocabulary of 50,000 tokens).

    Raises:
        RestillError: no such file, or no GGUF file.
    """

    def __init__(self, path: str | Path) -> None:
        from gguf import GGUFReader

        self.path = Path(path)
        if not self.path.is_file():
            raise RestillError(f"no such file: {self.path}; give the path of a .gguf file")
        try:
            self._reader = GGUFReader(self.path)
        except Exception as error:  # ValueError, IndexError, UnicodeError ... by where the file is cut
            message = f"{self.path} is not a readable GGUF file ({error}); download it again"
            raise RestillError(message) from error

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value under ``key`` as plain Python, or ``default``."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise RestillError(f"{self.path} lacks the metadata key {key!r}; it is no language model")
        return value

    @cached_property
    def config(self) -> DecoderConfig:
        """The decoder's shape.

        Raises:
            RestillError: another architecture than llama, or rope scaling.
        """
        arch = self["general.architecture"]
        if arch != "llama":
            raise RestillError(f"general.architecture={arch!r} in {self.path} is not supported; use 'llama'")
        scaling = self.get("llama.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self._tensors:
            raise RestillError(f"{self.path} scales its rotary positions ({scaling}), which is not supported")
        hidden, heads = int(self["llama.embedding_length"]), int(self["llama.attention.head_count"])
        return DecoderConfig(
            vocab_size=int(self._tensors["token_embd.weight"].shape[1]),
            hidden_size=hidden,
            num_layers=int(self["llama.block_count"]),
            num_heads=heads,
            num_kv_heads=int(self.get("llama.attention.head_count_kv", heads)),
            head_dim=int(self.get("llama.attention.key_length", hidden // heads)),
            intermediate_size=int(self["llama.feed_forward_length"]),
            rope_theta=float(self.get("llama.rope.freq_base", 10_000.0)),
            # stored as f32: 1e-5 comes back as 9.99999974e-06
            rms_norm_eps=float(f"{self['llama.attention.layer_norm_rms_epsilon']:.6g}"),
            max_positions=int(self["llama.context_length"]),
            tie_embeddings="output.weight" not in self._tensors,
        )

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def params(self) -> dict[str, np.ndarray]:
        """All weights as f32 under the canonical names: matmuls as (in, out), rotary rows in half rotation.

        Raises:
            RestillError: a quantisation other than `READABLE`, an unknown or a missing tensor.
        """
        config = self.config
        params = {}
        for name, tensor in self._tensors.items():
            key = _canonical(name, self.path)
            value = _dequantise(tensor, self.path)
            leaf = key.rpartition(".")[2]
            if leaf in ("q", "k"):
                value = _unpermute(value, config.num_heads if leaf == "q" else config.num_kv_heads)
            if value.ndim == 2 and leaf != "embed":
                value = value.T
            params[key] = np.ascontiguousarray(value)
        return params

    def tokenizer_json(self) -> str:
        """The byte-level BPE tokenizer inside, as the text of a ``tokenizer.json``.

        Raises:
            RestillError: another kind of tokenizer, or an unknown pre-tokenizer.
        """
        from tokenizers import AddedToken, Tokenizer, decoders
        from tokenizers.models import BPE

        kind = self["tokenizer.ggml.model"]
        if kind != "gpt2":
            raise RestillError(f"tokenizer.ggml.model={kind!r} is not supported; use the Hugging Face folder")
        tokens, types = self["tokenizer.ggml.tokens"], self["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in self.get("tokenizer.ggml.merges", [])]
        pre = self.get("tokenizer.ggml.pre", "default")
        whole = pre in ("llama-bpe", "llama3")  # a word that is a token is that token, as in Llama 3's own file
        tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges, fuse_unk=False, ignore_merges=whole))
        tokenizer.pre_tokenizer = _pre_tokenizer(pre)
        tokenizer.decoder = decoders.ByteLevel()
        typed = list(zip(tokens, types, strict=True))
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in typed if k == _CONTROL])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED])
        return tokenizer.to_str()


def _canonical(name: str, path: Path) -> str:
    parts = name.split(".")
    if parts[-1] == "weight":
        if len(parts) == 2 and parts[0] in _TOP:
            return _TOP[parts[0]]
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER:
            return f"layers.{parts[1]}.{_LAYER[parts[2]]}"
    raise RestillError(f"unknown tensor {name!r} in {path}; only plain Llama decoders are supported")


def _dequantise(tensor: Any, path: Path) -> np.ndarray:
    from gguf.quants import dequantize

    kind = tensor.tensor_type.name
    if kind not in READABLE:
        raise RestillError(f"tensor {tensor.name!r} of {path} is {kind}; use a file of {', '.join(READABLE)}")
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from GGUF's interleaved rotary pairs back to Hugging Face's half rotation."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _pre_tokenizer(name: str) -> Any:
    """llama.cpp's ``tokenizer.ggml.pre`` as a `tokenizers` pre-tokenizer."""
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("default", "gpt-2", "gpt2"):
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}", "llama3": r"\p{N}{1,3}"}.get(name)
    if digits is None:
        raise RestillError(f"tokenizer.ggml.pre={name!r} is not supported; use the Hugging Face folder")
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
