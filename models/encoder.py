"""Sentence embeddings: a BERT encoder with mean pooling (all-MiniLM-L6-v2), one jitted program per bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from .checkpoint.load import EncoderCheckpoint, load_encoder
from .errors import RestillError
from .home import enable_compile_cache
from .progress import progress_bar
from .text import well_formed

# Padded lengths. Each (batch size, length) is a program that takes about a second to compile: a few texts are
# embedded sooner in coarse steps, many in fine ones, which waste less on padding.
COARSE = (16, 32, 64, 128, 256, 512)
FINE = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512)
FINE_FROM = 1000
SMALL_BATCHES = (1, 8)  # queries come alone or a few together


class BertLayer(nnx.Module):
    """One post-norm transformer layer with exact GELU; q, k and v in one matmul."""

    def __init__(self, hidden: int, heads: int, intermediate: int, eps: float, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = nnx.Linear(hidden, 3 * hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, hidden, rngs=rngs)
        self.attn_norm = nnx.LayerNorm(hidden, epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.up = nnx.Linear(hidden, intermediate, rngs=rngs)
        self.down = nnx.Linear(intermediate, hidden, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(hidden, epsilon=eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x: [B, L, D]; bias: [B, 1, 1, L], added to the attention scores; returns [B, L, D]."""
        batch, length, hidden = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, hidden // self.heads)
        q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        scores = jnp.einsum("bhld,bhmd->bhlm", q, k) * (hidden // self.heads) ** -0.5 + bias
        mixed = jnp.einsum("bhlm,bhmd->bhld", jax.nn.softmax(scores, axis=-1), v)
        x = self.attn_norm(x + self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, length, hidden)))
        return self.mlp_norm(x + self.down(_gelu(self.up(x))))


def _gelu(x: jax.Array) -> jax.Array:
    """Exact GELU through erf: on CPU five times as fast as jax.nn.gelu's erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


class Bert(nnx.Module):
    """A BERT encoder of one segment, from a Hugging Face ``config.json``."""

    def __init__(self, config: Mapping[str, Any], rngs: nnx.Rngs) -> None:
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nnx.Embed(config["vocab_size"], hidden, rngs=rngs)
        # The segment embedding is the same everywhere, so loading adds it to the positions.
        self.positions = nnx.Embed(config["max_position_embeddings"], hidden, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden, epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.layers = nnx.List(
            BertLayer(hidden, config["num_attention_heads"], config["intermediate_size"], eps, rngs)
            for _ in range(config["num_hidden_layers"])
        )

    def __call__(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """Sentence vectors of unit length.

        Args:
            ids: int32 [B, L], padded on the right with anything.
            lengths: int32 [B], the tokens that count, each at least 1.

        Returns:
            f32 [B, D].
        """
        mask = jnp.arange(ids.shape[1]) < lengths[:, None]
        mean = (self.hidden(ids, lengths) * mask[..., None]).sum(1) / lengths[:, None]
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def hidden(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """The last layer's states f32 [B, L, D]; those beyond ``lengths`` mean nothing."""
        bias = jnp.where(jnp.arange(ids.shape[1]) < lengths[:, None], 0.0, -1e9)[:, None, None, :]
        x = self.norm(self.words(ids) + self.positions(jnp.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x, bias)
        return x


@partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, leaves: nnx.State, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    return nnx.merge(graph, leaves)(ids, lengths)


@partial(jax.jit, static_argnums=0)
def _embed_tokens(graph: nnx.GraphDef, leaves: nnx.State, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    states = nnx.merge(graph, leaves).hidden(ids, lengths)
    return states / jnp.linalg.norm(states, axis=-1, keepdims=True)


class TextEncoder:
    """Texts to unit vectors.

    Args:
        checkpoint: what `load_encoder` gives.

    Recompiles for each new (batch size, padded length): a batch has 1, 8 or ``batch_size`` rows, and lengths
    are `COARSE` steps, or `FINE` ones for `FINE_FROM` texts and more.
    """

    def __init__(self, checkpoint: EncoderCheckpoint) -> None:
        config = checkpoint.config
        for key, value in {"hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
            if config.get(key, value) != value:
                raise RestillError(f"{key}={config[key]!r} in {checkpoint.folder} is not supported; use {value!r}")
        enable_compile_cache()
        self.name: str = checkpoint.name
        self.fingerprint: str = checkpoint.fingerprint
        self.dim: int = config["hidden_size"]
        self._positions: int = config["max_position_embeddings"]
        self.max_tokens: int = min(_max_tokens(checkpoint.folder), self._positions)
        self._json = checkpoint.folder / "tokenizer.json"
        model = nnx.eval_shape(lambda: Bert(config, nnx.Rngs(0)))
        graph, shapes = nnx.split(model)
        values = _leaves(checkpoint)
        self._graph = graph
        self._state = nnx.from_flat_state(
            (path, _fill(path, variable, values, checkpoint.folder)) for path, variable in nnx.to_flat_state(shapes)
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "minilm") -> TextEncoder:
        """Open a registry name or a Hugging Face folder.

        Raises:
            RestillError: unknown name, missing or damaged files, another architecture than BERT.
        """
        return cls(load_encoder(name_or_path))

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Embed texts; what lies beyond `max_tokens` is cut off.

        Args:
            texts: any strings.
            batch_size: texts per program run; a last batch that is smaller is padded.
            progress: show a bar on the terminal.

        Returns:
            f32 [N, dim], rows of unit length: dot products are cosine similarities.
        """
        out = np.empty((len(texts), self.dim), np.float32)
        if not len(texts):
            return out
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast([well_formed(t) for t in texts])]
        pending: list[tuple[list[int], jax.Array]] = []
        with progress_bar("embedding", len(texts), show=progress) as advance:
            for rows, ids, lengths in self._batches(encoded, batch_size):
                pending.append((rows, _embed(self._graph, self._state, ids, lengths)))
                if len(pending) > 1:  # one batch ahead: the host pads while the device works
                    advance(_store(out, *pending.pop(0)))
            for item in pending:
                advance(_store(out, *item))
        return out

    def encode_tokens(self, texts: Sequence[str], *, batch_size: int = 32) -> list[np.ndarray]:
        """A unit vector for each token of each text, for late interaction (ColBERT, arXiv 2004.12832).

        The framing tokens ([CLS], [SEP]) are left out; what lies beyond `max_tokens` is cut off.

        Args:
            texts: any strings.
            batch_size: texts per program run, as in `encode`.

        Returns:
            one f32 [tokens, dim] for each text.
        """
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast([well_formed(t) for t in texts])]
        out: list[np.ndarray] = [np.empty((0, self.dim), np.float32)] * len(texts)
        for rows, ids, lengths in self._batches(encoded, batch_size):
            states = np.asarray(_embed_tokens(self._graph, self._state, ids, lengths))
            for j, row in enumerate(rows):
                out[row] = states[j, 1 : len(encoded[row]) - 1].copy()  # a view would keep the padding alive
        return out

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, the two that frame it included: up to `max_tokens` nothing is cut off."""
        return len(self._whole.encode(well_formed(text)).ids)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character offsets [start, end) of all tokens of ``text``, uncut, without the framing ones."""
        return self._whole.encode(well_formed(text), add_special_tokens=False).offsets

    def _batches(self, encoded: list[list[int]], batch_size: int) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Rows of similar length together, longest first, so that memory peaks at the start."""
        steps = FINE if len(encoded) >= FINE_FROM else COARSE
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            longest = len(encoded[rows[0]])
            length = min(next((n for n in steps if n >= longest), self.max_tokens), self._positions)
            size = next((n for n in SMALL_BATCHES if len(rows) <= n < batch_size), batch_size)
            ids, lengths = np.zeros((size, length), np.int32), np.ones(size, np.int32)
            for j, row in enumerate(rows):
                ids[j, : len(encoded[row])] = encoded[row]
                lengths[j] = len(encoded[row])
            yield rows, ids, lengths

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_file(str(self._json))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_file(str(self._json))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer


def _leaves(checkpoint: EncoderCheckpoint) -> dict[tuple, np.ndarray]:
    """Hugging Face's BERT parameters under the paths of `Bert`."""

    def get(name: str) -> np.ndarray:
        if name not in checkpoint.params:
            raise RestillError(f"weight {name!r} is missing in {checkpoint.folder}; it is no BERT encoder")
        return checkpoint.params[name]

    def linear(path: tuple, *names: str) -> dict[tuple, np.ndarray]:
        kernel = np.concatenate([get(f"{n}.weight").T for n in names], axis=1)
        return {(*path, "kernel"): kernel, (*path, "bias"): np.concatenate([get(f"{n}.bias") for n in names])}

    def norm(path: tuple, name: str) -> dict[tuple, np.ndarray]:
        return {(*path, "scale"): get(f"{name}.weight"), (*path, "bias"): get(f"{name}.bias")}

    segment = get("embeddings.token_type_embeddings.weight")[0]
    out = {
        ("words", "embedding"): get("embeddings.word_embeddings.weight"),
        ("positions", "embedding"): get("embeddings.position_embeddings.weight") + segment,
        **norm(("norm",), "embeddings.LayerNorm"),
    }
    for i in range(checkpoint.config["num_hidden_layers"]):
        at, name = ("layers", i), f"encoder.layer.{i}"
        out |= linear((*at, "qkv"), *(f"{name}.attention.self.{n}" for n in ("query", "key", "value")))
        out |= linear((*at, "out"), f"{name}.attention.output.dense")
        out |= norm((*at, "attn_norm"), f"{name}.attention.output.LayerNorm")
        out |= linear((*at, "up"), f"{name}.intermediate.dense")
        out |= linear((*at, "down"), f"{name}.output.dense")
        out |= norm((*at, "mlp_norm"), f"{name}.output.LayerNorm")
    return out


def _fill(path: tuple, variable: Any, values: Mapping[tuple, np.ndarray], folder: Path) -> Any:
    value, shape = values[path], variable.get_value().shape
    if value.shape != shape:
        raise RestillError(f"weight {path} of {folder} has shape {value.shape}, the config says {shape}")
    return variable.replace(jnp.asarray(value))


def _max_tokens(folder: Path) -> int:
    """What sentence-transformers cuts at: the folder may say so, 256 otherwise."""
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_text())["max_seq_length"] if path.is_file() else 256


def _store(out: np.ndarray, rows: list[int], vectors: jax.Array) -> int:
    out[rows] = np.asarray(vectors)[: len(rows)]
    return len(rows)
