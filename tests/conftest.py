"""Fixtures every package's tests share: a byte-level tokenizer and a tiny random model, both real, both instant."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # before JAX starts; xdist's workers and subprocesses inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED = tempfile.mkdtemp(prefix="restill-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
else:
    _COMPILED = None

import jax
import pytest
import tokenizers
from hypothesis import settings
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers.models import BPE

from restill.models.config import DecoderConfig
from restill.models.decoder import init_params
from restill.models.tokenizer import Tokenizer

settings.register_profile("restill", deadline=None)  # how long an example takes on a busy machine is no property
settings.load_profile("restill")


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """What imports and compiled programs made stays; no collection need look at it again (a job makes many)."""
    yield
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What was compiled for this run goes with it: a later run starts as fresh as this one."""
    if _COMPILED:
        shutil.rmtree(_COMPILED, ignore_errors=True)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """One token per byte, two control tokens and ChatML turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    full = tokenizers.Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    full.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    full.decoder = decoders.ByteLevel()
    full.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return Tokenizer(full.to_str(), eos="<|im_end|>", pad=None, chat_template=CHATML, variables={})


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: Tokenizer) -> DecoderConfig:
    """Two layers, 32 wide."""
    return DecoderConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_positions=4096,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config: DecoderConfig) -> dict[str, jax.Array]:
    """Random f32 parameters, spread out enough that greedy choices are clear."""
    return init_params(tiny_config, jax.random.key(0), scale=0.3)
