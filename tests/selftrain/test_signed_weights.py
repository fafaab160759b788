"""Signed weights: a step's gradient is the weighted sum of the gradients of whole sequences' log-probabilities."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restill.models.decoder import forward
from restill.selftrain.mixture import Example
from restill.selftrain.pack import micro_batch, pack
from restill.selftrain.steps import Sums, TrainSteps
from restill.selftrain.trainer import TrainConfig, Trainer

from .tiny import CONFIG, examples, padded, random_params

LORA = TrainConfig(rank=2, alpha=4.0, lr=0.01, rows=2, row_length=40, warmup=0.0)
SIGNED = (1.0, -0.375, 2.5, -1.25, 0.0625)


def sequences() -> list[Example]:
    """Sequences whose later half is the model's own."""
    return [
        replace(e, weights=tuple(float(i >= len(e.tokens) // 2) for i in range(len(e.tokens))))
        for e in examples(len(SIGNED), seed=3)
    ]


def of_training(train: TrainConfig, params: dict, trained: dict, listed: list[Example]) -> Sums:
    """What the trainer's own steps add up."""
    steps, rows = TrainSteps(CONFIG, train, params, {}, total=10), pack(listed, train.row_length)
    placed = steps.place(trained)
    for at in range(0, len(rows), train.rows):
        part = np.arange(at, min(at + train.rows, len(rows)), dtype=np.int32)
        batch = micro_batch(rows, part, train.rows)
        steps.accumulate(placed, steps.lower(batch), batch)
    return steps.take(placed)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_signed_weights_give_the_gradient_of_plain_jax(method: str) -> None:
    params, rng = random_params(), np.random.default_rng(1)
    train = replace(LORA, method=method, embeddings=method == "full")
    trained = dict(params)
    if method == "lora":
        fresh, _, _ = Trainer(CONFIG, params, train).initial()
        trained = {name: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32) for name, leaf in fresh.items()}
    listed = sequences()
    tokens, weights = padded(listed)
    signs = jnp.asarray(SIGNED)[:, None]

    base: dict[str, jax.Array] = jax.tree.map(jnp.asarray, params)

    def objective(trained: dict[str, jax.Array]) -> jax.Array:
        lora = trained if method == "lora" else None
        logits = forward(CONFIG, base if lora else trained, jnp.asarray(tokens), lora=lora, lora_scale=2.0)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
        return -(signs * weights[:, 1:] * logp).sum()

    value, gradient = jax.jit(jax.value_and_grad(objective))(trained)
    sums = of_training(train, params, trained, [e.scaled(s) for e, s in zip(listed, SIGNED, strict=True)])
    assert float(sums.loss) == pytest.approx(float(value), rel=1e-5)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(sums.gradient[name], leaf, atol=3e-5, rtol=1e-4, err_msg=name)


def test_opposite_weights_of_one_sequence_cancel() -> None:
    params = random_params()
    trained, _, _ = Trainer(CONFIG, params, LORA).initial()
    one = sequences()[:1]
    sums = of_training(LORA, params, trained, [one[0].scaled(0.7), one[0].scaled(-0.7)])
    assert float(sums.loss) == pytest.approx(0, abs=1e-5) and float(sums.denominator) > 0
    assert all(np.abs(leaf).max() < 1e-5 for leaf in sums.gradient.values())


def test_an_update_divides_by_the_denominator_it_is_given() -> None:
    params = random_params()
    trained, _, _ = Trainer(CONFIG, params, LORA).initial()
    sums = of_training(LORA, params, trained, [e.scaled(-2.0) for e in sequences()])
    norm = float(np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in sums.gradient.values())))
    steps = TrainSteps(CONFIG, LORA, params, {}, total=10)
    for denominator in (1.0, 8.0):
        given = sums._replace(denominator=np.float32(denominator))
        *_, loss, found = steps.update(steps.place(trained), steps.init(trained), 0, given)
        assert found == pytest.approx(norm / denominator, rel=1e-5)
        assert loss == pytest.approx(float(sums.loss) / denominator, rel=1e-5)


def test_nothing_accumulated_is_a_gradient_of_zero() -> None:
    params = random_params()
    trained, _, _ = Trainer(CONFIG, params, LORA).initial()
    steps = TrainSteps(CONFIG, LORA, params, {}, total=10)
    sums = steps.take(steps.place(trained))
    moved, _, loss, norm = steps.update(
        steps.place(trained), steps.init(trained), 0, sums._replace(denominator=np.float32(1))
    )
    assert loss == norm == 0
    assert all(np.array_equal(moved[name], trained[name]) for name in trained)
