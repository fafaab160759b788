"""Models so small that tests and examples run the whole engine in seconds. Their weights are random."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from .checkpoint.load import Checkpoint, save_decoder_hf
from .config import DecoderConfig
from .decoder import param_shapes
from .tokenizer import Tokenizer

_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the tokenizer's merges are learnt from, so that an agent's prompt stays a few hundred tokens long.
_TEXT = (
    "Answer the question with the tools. Think, then act. Use search to find passages, then finish with a "
    "short answer and the numbers of the passages it rests on. "
    "Question: Who founded the firm that built the engine? "
    'Thought: I need to find who built it.\nAction: search {"query": "who built the engine"}\n'
    "Observation: [1] The engine: It was built in the town by the firm that he founded in the year.\n"
    'Thought: Now I know the answer.\nAction: finish {"answer": "the founder", "citations": [1, 2]}\n'
)


@cache
def tiny_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer with ChatML turns and ``vocab_size`` entries."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=_CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([_TEXT], trainer)
    return Tokenizer(fast.to_str(), eos="<|im_end|>", pad="<|endoftext|>", chat_template=_TEMPLATE, variables={})


def tiny_checkpoint(*, seed: int = 0, layers: int = 2, hidden: int = 32, max_positions: int = 4096) -> Checkpoint:
    """A random Llama with 4 heads over 2 key-value heads; equal arguments give equal weights."""
    tokenizer = tiny_tokenizer()
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=hidden // 4,
        intermediate_size=2 * hidden,
        max_positions=max_positions,
    )
    rng = np.random.default_rng(seed)
    params = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.normal(scale=shape[-1 if name == "embed" else 0] ** -0.5, size=shape).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }
    name = json.dumps([seed, layers, hidden, max_positions])
    return Checkpoint("tiny", config, params, tokenizer, f"tiny-{name}")


def save_tiny(path: str | Path, *, seed: int = 0, layers: int = 2) -> Path:
    """Write :func:`tiny_checkpoint` as a Hugging Face folder, for code that opens models by path."""
    checkpoint = tiny_checkpoint(seed=seed, layers=layers)
    save_decoder_hf(path, checkpoint.config, checkpoint.params, checkpoint.tokenizer)
    return Path(path)


def save_tiny_encoder(path: str | Path, *, seed: int = 0, hidden: int = 32, positions: int = 256) -> Path:
    """Write a random one-layer BERT as a Hugging Face folder; its tokens are characters."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, normalizers, pre_tokenizers, processors

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    fast = Fast(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "vocab_size": len(pieces),
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": positions,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in _bert_shapes(config).items():
        fresh = np.ones(shape) if name.endswith("LayerNorm.weight") else rng.normal(scale=0.2, size=shape)
        tensors[name] = fresh.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _bert_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, inner, layer = config["hidden_size"], config["intermediate_size"], "encoder.layer.0"
    linears = {f"{layer}.attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
    linears |= {
        f"{layer}.attention.output.dense": (hidden, hidden),
        f"{layer}.intermediate.dense": (inner, hidden),
        f"{layer}.output.dense": (hidden, inner),
    }
    norms = ["embeddings", f"{layer}.attention.output", f"{layer}.output"]
    return {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{f"{name}.LayerNorm.{part}": (hidden,) for name in norms for part in ("weight", "bias")},
    }
