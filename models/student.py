"""Small students of a large teacher: the teacher with layers removed, a nano model, or one that has learnt before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .checkpoint.load import Checkpoint, load_decoder
from .config import DecoderConfig
from .copying import write_copying
from .decoder import param_shapes
from .errors import RestillError
from .vocabulary import PrunedVocabulary, prune_vocabulary, shared_vocabulary

HEAD_DIM = 32


@dataclass(frozen=True, kw_only=True)
class FewerLayers:
    """The teacher's weights with layers removed (see :func:`kept_layers`).

    Attributes:
        layers: how many stay.
        prune: also cut the vocabulary to what the mixture needs.
    """

    layers: int
    prune: bool = False


@dataclass(frozen=True, kw_only=True)
class Nano:
    """A small Llama over a pruned vocabulary (see :func:`nano_config`), fresh but for copying (see ``copying``).

    Attributes:
        parameters: the most it may have, its embeddings (tied) included.
    """

    parameters: int


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A model that has learnt before and goes on, with the teacher's vocabulary or one that was cut from it.

    Attributes:
        path: its folder, such as ``distill`` leaves; it is not changed.
    """

    path: str


Student = FewerLayers | Nano | Taught


def parse_student(text: str) -> Student:
    """``"nano:1.3m"``, ``"layers:10"``, ``"layers:10,pruned"`` or ``"model:FOLDER"``.

    Raises:
        RestillError: none of these.
    """
    if text.startswith("model:") and len(text) > len("model:"):
        return Taught(path=text.removeprefix("model:"))
    kind, _, rest = text.strip().lower().partition(":")
    size, _, flag = rest.partition(",")
    try:
        if kind == "nano" and not flag:
            unit = {"k": 1e3, "m": 1e6}.get(size[-1:], 1.0)
            return Nano(parameters=round(float(size.rstrip("km")) * unit))
        if kind == "layers" and flag in ("", "pruned"):
            return FewerLayers(layers=int(size), prune=bool(flag))
    except ValueError:
        pass
    raise RestillError(f"student {text!r} is unknown; write nano:1.3m, layers:10, layers:10,pruned or model:FOLDER")


def kept_layers(total: int, keep: int) -> tuple[int, ...]:
    """Which of ``total`` layers stay: the first, the last, and between them evenly spaced ones.

    The first and the last do what no other layer does (they meet the embedding and the head), and the residual
    stream tolerates gaps between neighbours (DistilBERT, 1910.01108, takes every second layer for the same reason).

    Raises:
        RestillError: ``keep`` is not between 2 and ``total``.
    """
    if not 2 <= keep <= total:
        raise RestillError(f"cannot keep {keep} of {total} layers; keep between 2 and {total}")
    return tuple(round(i * (total - 1) / (keep - 1)) for i in range(keep))


def nano_config(vocab_size: int, parameters: int, *, max_positions: int = 4096) -> DecoderConfig:
    """The Llama of at most ``parameters`` parameters: as wide as it goes at a depth of width / 32, then deeper.

    The width is a multiple of 32 (one head each), the feed-forward 8/3 as wide, embeddings are tied; all heads share
    one key-value head (Shazeer 1911.02150), because the engine's time with so small a model goes into reading the
    cache. At least 2 layers: copying from the context takes two (see ``copying``). With this rotary base more
    than half of the frequencies turn by less than a radian or so in 400 tokens, for what is looked up by content alone.

    Raises:
        RestillError: the smallest such model has more parameters.
    """

    def shape(width: int, layers: int) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_layers=layers,
            num_heads=width // HEAD_DIM,
            num_kv_heads=1,
            head_dim=HEAD_DIM,
            intermediate_size=-(-8 * width // (3 * 32)) * 32,
            rope_theta=1e6,
            max_positions=max_positions,
        )

    def fits(width: int, layers: int) -> bool:
        return parameter_count(shape(width, layers)) <= parameters

    width, layers = HEAD_DIM, 2
    if not fits(width, layers):
        least = parameter_count(shape(width, layers))
        raise RestillError(f"no model over {vocab_size} tokens has {parameters} parameters; the smallest has {least}")
    while fits(width + HEAD_DIM, max(2, (width + HEAD_DIM) // 32)):
        width += HEAD_DIM
    layers = max(2, width // 32)
    while fits(width, layers + 1):
        layers += 1
    return shape(width, layers)


def parameter_count(config: DecoderConfig) -> int:
    """Weights of a decoder of this shape."""
    return sum(int(np.prod(shape)) for shape in param_shapes(config).values())


def make_student(
    teacher: Checkpoint, student: Student, seen: Iterable[int], *, seed: int = 0
) -> tuple[Checkpoint, PrunedVocabulary | None]:
    """The student before training, and its vocabulary where that is not the teacher's.

    Args:
        seen: the teacher's ids that a pruned vocabulary must hold.
        seed: of a nano model's weights.
    """
    if isinstance(student, Taught):
        taught = load_decoder(student.path)
        same = taught.tokenizer.hf_json == teacher.tokenizer.hf_json
        return taught, None if same else shared_vocabulary(teacher.tokenizer, taught.tokenizer)
    if isinstance(student, FewerLayers):
        config, params = _without_layers(teacher, student.layers)
        if not student.prune:
            return Checkpoint(teacher.name, config, params, teacher.tokenizer, ""), None
        vocabulary = prune_vocabulary(teacher.tokenizer, seen)
        size = len(vocabulary.ids)
        params["embed"] = _rows(params["embed"], vocabulary)
        if "lm_head" in params:
            params["lm_head"] = np.ascontiguousarray(_rows(params["lm_head"].T, vocabulary).T)
        return Checkpoint(teacher.name, replace(config, vocab_size=size), params, vocabulary.tokenizer, ""), vocabulary
    vocabulary = prune_vocabulary(teacher.tokenizer, seen)
    config = nano_config(len(vocabulary.ids), student.parameters, max_positions=teacher.config.max_positions)
    params = fresh_params(config, seed)
    write_copying(config, params, np.random.default_rng(seed))
    return Checkpoint("nano", config, params, vocabulary.tokenizer, ""), vocabulary


def _without_layers(teacher: Checkpoint, keep: int) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    params = {name: leaf for name, leaf in teacher.params.items() if not name.startswith("layers.")}
    for new, old in enumerate(kept_layers(teacher.config.num_layers, keep)):
        prefix = f"layers.{old}."
        for name, leaf in teacher.params.items():
            if name.startswith(prefix):
                params[f"layers.{new}.{name.removeprefix(prefix)}"] = leaf
    return replace(teacher.config, num_layers=keep), params


def _rows(table: np.ndarray, vocabulary: PrunedVocabulary) -> np.ndarray:
    """The teacher's rows; bytes that it lacks start as the mean row."""
    rows = np.asarray(table, np.float32)[vocabulary.shared]
    new = np.repeat(rows.mean(0, keepdims=True), len(vocabulary.ids) - len(rows), 0)
    return np.concatenate([rows, new])


def fresh_params(config: DecoderConfig, seed: int) -> dict[str, np.ndarray]:
    """Normal with deviation 0.02, what each block adds to the residual smaller by sqrt(2 layers) (GPT-2's rule)."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in param_shapes(config).items():
        scale = 0.02 / (2 * config.num_layers) ** 0.5 if name.split(".")[-1] in ("o", "down") else 0.02
        fresh = np.ones(shape) if len(shape) == 1 else rng.normal(scale=scale, size=shape)
        params[name] = fresh.astype(np.float32)
    return params
