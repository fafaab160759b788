"""Students: which layers stay, how a nano model gets its shape, and whose logits it can learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.checkpoint.load import Checkpoint, load_decoder, save_decoder_hf
from restill.models.copying import write_copying
from restill.models.decoder import forward, param_shapes
from restill.models.errors import RestillError
from restill.models.student import (
    FewerLayers,
    Nano,
    Taught,
    fresh_params,
    kept_layers,
    make_student,
    nano_config,
    parameter_count,
    parse_student,
)
from restill.models.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def teacher() -> Checkpoint:
    return tiny_checkpoint(layers=4)


def _logits(model: Checkpoint, tokens: tuple[int, ...]) -> np.ndarray:
    return np.asarray(jax.jit(lambda p, t: forward(model.config, p, t))(model.params, jnp.asarray([tokens])))[0]


@given(st.integers(2, 80).flatmap(lambda total: st.tuples(st.just(total), st.integers(2, total))))
def test_kept_layers_hold_both_ends_and_are_evenly_spaced(sizes: tuple[int, int]) -> None:
    total, keep = sizes
    kept = kept_layers(total, keep)
    gaps = np.diff(kept)
    assert len(kept) == keep and kept[0] == 0 and kept[-1] == total - 1
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 2


def test_a_student_with_fewer_layers_is_the_teacher_without_the_others(teacher: Checkpoint, tmp_path: Path) -> None:
    student, vocabulary = make_student(teacher, FewerLayers(layers=2), [])
    assert vocabulary is None and student.params.keys() == param_shapes(student.config).keys()
    assert student.params["layers.1.q"] is teacher.params["layers.3.q"]
    save_decoder_hf(tmp_path / "m", student.config, student.params, student.tokenizer)
    loaded = load_decoder(tmp_path / "m")
    assert loaded.config == student.config and np.array_equal(
        loaded.params["layers.1.up"], teacher.params["layers.3.up"]
    )


@pytest.mark.parametrize("tied", [True, False])
def test_over_a_pruned_vocabulary_the_logits_are_those_of_the_teacher(teacher: Checkpoint, tied: bool) -> None:
    if not tied:
        head = np.random.default_rng(0).normal(size=(32, teacher.config.vocab_size)).astype(np.float32)
        config = replace(teacher.config, tie_embeddings=False)
        teacher = Checkpoint("untied", config, {**teacher.params, "lm_head": head}, teacher.tokenizer, "")
    tokens = tuple(teacher.tokenizer.encode("Who founded the firm that built the engine?"))
    student, vocabulary = make_student(teacher, FewerLayers(layers=4, prune=True), tokens)
    assert vocabulary is not None and student.config.vocab_size < teacher.config.vocab_size
    ours, theirs = _logits(student, vocabulary.map(tokens)), _logits(teacher, tokens)
    np.testing.assert_allclose(ours[:, : len(vocabulary.shared)], theirs[:, vocabulary.shared], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(300, 6000), st.integers(400_000, 9_000_000))
def test_a_nano_model_uses_its_budget_and_stays_within_it(vocab_size: int, parameters: int) -> None:
    config = nano_config(vocab_size, parameters)
    layer = parameter_count(replace(config, num_layers=3)) - parameter_count(replace(config, num_layers=2))
    assert parameters - layer < parameter_count(config) <= parameters
    assert config.hidden_size % 32 == 0 and config.num_layers >= 2


@pytest.mark.parametrize("parameters", [600_000, 2_000_000])
def test_a_nano_model_copies_before_it_has_learnt_anything(parameters: int) -> None:
    config = nano_config(1500, parameters)
    plain = fresh_params(config, 0)
    copying = {name: leaf.copy() for name, leaf in plain.items()}
    write_copying(config, copying, np.random.default_rng(0))
    span = np.random.default_rng(1).permutation(1500)[:100]
    run = jax.jit(lambda params: forward(config, params, jnp.asarray([[*span, *span]])))
    right = [np.asarray(run(params))[0, 100:-1].argmax(-1) == span[1:] for params in (plain, copying)]
    assert right[0].mean() < 0.05 and right[1].mean() > 0.6


@pytest.mark.parametrize(("width", "layers"), [(32, 2), (32, 3), (64, 2)])
def test_where_there_is_little_room_the_circuit_is_smaller(width: int, layers: int) -> None:
    config = replace(nano_config(300, 100_000), hidden_size=width, num_heads=width // 32, num_layers=layers)
    params = fresh_params(config, 0)
    write_copying(config, params, np.random.default_rng(0))
    assert {name: leaf.shape for name, leaf in params.items()} == param_shapes(config)
    assert np.isfinite(np.asarray(forward(config, params, jnp.arange(40)[None]))).all()


def test_a_nano_model_has_its_own_weights_by_seed(teacher: Checkpoint) -> None:
    one, same, other = (make_student(teacher, Nano(parameters=60_000), [5], seed=seed)[0] for seed in (0, 0, 1))
    assert all(np.array_equal(one.params[n], same.params[n]) for n in one.params)
    assert not np.array_equal(one.params["embed"], other.params["embed"])
    assert {n: leaf.shape for n, leaf in one.params.items()} == param_shapes(one.config)


@pytest.mark.parametrize(
    ("text", "student"),
    [
        ("nano:1.3m", Nano(parameters=1_300_000)),
        ("nano:900k", Nano(parameters=900_000)),
        ("layers:10", FewerLayers(layers=10)),
        ("layers:10,pruned", FewerLayers(layers=10, prune=True)),
        ("model:runs/A student", Taught(path="runs/A student")),
    ],
)
def test_students_are_named_in_a_word(text: str, student: object) -> None:
    assert parse_student(text) == student


def test_bad_students_are_refused(teacher: Checkpoint) -> None:
    for text in ("nano", "nano:big", "layers:ten", "layers:10,small", "tiny:1m", "model:"):
        with pytest.raises(RestillError, match="nano:1.3m"):
            parse_student(text)
    with pytest.raises(RestillError, match="keep 5 of 4"):
        make_student(teacher, FewerLayers(layers=5), [])
    with pytest.raises(RestillError, match="the smallest has"):
        make_student(teacher, Nano(parameters=1000), [])
