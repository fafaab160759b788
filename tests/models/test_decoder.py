"""The decoder equals Hugging Face transformers, with and without a cache, with and without LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restill.models.config import DecoderConfig
from restill.models.decoder import forward, init_params, param_shapes
from restill.models.engine import shapes
from restill.models.engine.model import CachedModel
from restill.models.engine.slots import Fork, Swap
from restill.models.errors import RestillError
from restill.models.lora import CONFIG, WEIGHTS, find_adapter, init_lora, load_peft, merge, save_peft

run = jax.jit(forward, static_argnums=0)

TINY = DecoderConfig(
    vocab_size=96, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
)


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    return init_params(TINY, jax.random.key(0), scale=0.3)


def test_chunked_prefill_and_decode_equal_the_full_pass_at_every_position(
    params: dict[str, jax.Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (40,), 0, TINY.vocab_size))
    reference = np.asarray(jax.nn.log_softmax(run(TINY, params, jnp.asarray(tokens[None])))[0])
    monkeypatch.setattr(shapes, "_REACHES", (36, 60))
    monkeypatch.setattr(shapes, "_HALVED", 36)
    grid, slot = shapes.Shapes(6, 100), 2  # in the second group
    model = CachedModel(TINY, params, grid, jnp.float32)
    cache = model.cache
    for start, end in ((0, 10), (10, 18), (18, 21)):  # padded to 16, the second across the end of a segment
        model.chunk(slot, start, tokens[start:end].tolist(), 16)
    cache.move(Swap(slot, 5, 21))
    cache.move(Fork(5, slot, 21))
    model.chunk(slot, 18, [3, 1, 4], 16)
    cache.move(Fork(5, slot, 21, kept=18))  # what has changed since
    for position in range(21, 39):
        fed, lengths = np.zeros(6, np.int32), np.full(6, -1, np.int32)
        fed[slot], lengths[slot] = tokens[position], position
        logits = model.step(jnp.zeros(6, jnp.int32), fed, lengths)
        np.testing.assert_allclose(jax.nn.log_softmax(logits[slot, 0]), reference[position], atol=1e-4)


def test_packed_segments_do_not_see_each_other(params: dict[str, jax.Array]) -> None:
    a, b = jnp.arange(7), jnp.arange(20, 31)
    packed = run(
        TINY, params, jnp.concatenate([a, b])[None], jnp.concatenate([jnp.arange(7), jnp.arange(11)])[None],
        jnp.array([[0] * 7 + [1] * 11]),
    )  # fmt: skip
    alone = jnp.concatenate([run(TINY, params, a[None])[0], run(TINY, params, b[None])[0]])
    np.testing.assert_allclose(packed[0], alone, atol=1e-5)


def test_merged_lora_equals_applied_lora(params: dict[str, jax.Array]) -> None:
    lora = init_lora(TINY, rank=4, key=jax.random.key(3), layers=[1, 2])
    lora = {k: v + 0.1 for k, v in lora.items()}
    tokens = jnp.arange(12)[None]
    applied = run(TINY, params, tokens, lora=lora, lora_scale=8 / 4)
    merged = run(TINY, {k: jnp.asarray(v) for k, v in merge(params, lora, alpha=8).items()}, tokens)
    np.testing.assert_allclose(applied, merged, atol=2e-4)


def test_adapter_folder_round_trips(tmp_path, params: dict[str, jax.Array]) -> None:  # type: ignore[no-untyped-def]
    lora = init_lora(TINY, rank=4, key=jax.random.key(3), layers=[2])
    save_peft(tmp_path / "mine", lora, TINY, alpha=8, manifest={"base": "tiny"})
    adapter = load_peft(find_adapter(tmp_path / "mine"))
    assert adapter.alpha == 8 and adapter.rank == 4 and adapter.info.manifest["base"] == "tiny"
    assert adapter.leaves.keys() == lora.keys()
    for name, leaf in lora.items():
        np.testing.assert_array_equal(adapter.leaves[name], leaf)
    save_peft(tmp_path / "stronger", lora, TINY, alpha=64, manifest={"base": "tiny"})
    assert load_peft(tmp_path / "stronger").info.hash != adapter.info.hash


def test_an_adapter_that_means_something_else_is_read_as_it_means_or_refused(tmp_path: Path) -> None:
    lora = init_lora(TINY, rank=4, key=jax.random.key(3), layers=[2])
    save_peft(tmp_path, lora, TINY, alpha=8, manifest={})
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "use_rslora": True}))
    assert load_peft(tmp_path).alpha == 16  # alpha / sqrt(4) is 16 / 4
    (tmp_path / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 4}}))
    with pytest.raises(RestillError, match="no plain LoRA .*alpha_pattern"):
        load_peft(tmp_path)
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
        with pytest.raises(RestillError, match="is damaged"):
            load_peft(tmp_path)


def test_unknown_adapter_is_named() -> None:
    with pytest.raises(RestillError, match="no-such-adapter"):
        find_adapter("no-such-adapter")


def test_config_reads_what_it_writes_and_refuses_other_families() -> None:
    assert DecoderConfig.from_hf(TINY.to_hf()) == DecoderConfig(**{**TINY.__dict__})
    with pytest.raises(RestillError, match="gpt2"):
        DecoderConfig.from_hf({"model_type": "gpt2"})
    for other in ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"hidden_act": "gelu"}):
        with pytest.raises(RestillError, match="'(linear|gelu)' is not supported"):
            DecoderConfig.from_hf({**TINY.to_hf(), "rope_parameters": None, **other})


def test_every_leaf_has_a_shape(params: dict[str, jax.Array]) -> None:
    assert {name: leaf.shape for name, leaf in params.items()} == param_shapes(TINY)
