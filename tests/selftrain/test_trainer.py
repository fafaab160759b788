"""Training: what moves, what stays, and that a killed run ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from restill.models.checkpoint.safetensors import load_decoder_folder
from restill.models.decoder import forward
from restill.models.errors import RestillError
from restill.models.lora import WEIGHTS, load_peft
from restill.selftrain.checkpoint import Checkpoints
from restill.selftrain.loss_log import LossLog
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.pack import micro_batch, pack
from restill.selftrain.steps import TrainSteps
from restill.selftrain.trainer import TrainConfig, Trainer

from .tiny import CONFIG, mixture, padded, random_params

QUICK = TrainConfig(rank=2, alpha=4.0, lr=0.02, epochs=2, rows=2, row_length=32, frozen_layers=1)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    return random_params()


def _with(**changes: object) -> TrainConfig:
    return TrainConfig(**{**QUICK.recipe(), **changes})


def _losses(adapter: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (adapter / "train_log.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_and_leaves_one_finished_folder(params: dict, tmp_path: Path) -> None:
    data = Mixture.of(Example(tokens=(1, *range(i, i + 12)), weights=(0.0, 0.0, *[1.0] * 11)) for i in range(20))
    out = Trainer(CONFIG, params, _with(epochs=20, lr=0.05)).fit(data, out=tmp_path / "a", manifest={"base": "tiny"})
    losses = _losses(out)
    assert losses[-1] < 0.7 * losses[0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["base"] == "tiny" and manifest["examples"] == 20 and manifest["steps"] == len(losses)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_lower_layers_get_no_leaves_and_the_base_is_unchanged(params: dict, tmp_path: Path) -> None:
    before = {n: leaf.copy() for n, leaf in params.items()}
    out = Trainer(CONFIG, params, QUICK).fit(mixture(), out=tmp_path / "a")
    adapter = load_peft(out)
    assert {int(name.split(".")[1]) for name in adapter.leaves} == {1}
    assert all((adapter.leaves[n] != 0).any() for n in adapter.leaves)
    assert all((params[n] == before[n]).all() for n in before)


def test_frozen_layers_of_an_adapter_to_continue_from_stay_as_they_are(params: dict, tmp_path: Path) -> None:
    first = Trainer(CONFIG, params, _with(frozen_layers=0)).fit(mixture(), out=tmp_path / "a")
    second = Trainer(CONFIG, params, QUICK, start=first).fit(mixture(seed=1), out=tmp_path / "b")
    old, new = load_peft(first).leaves, load_peft(second).leaves
    assert set(old) == set(new)
    for name in old:
        same = (old[name] == new[name]).all()
        assert same == name.startswith("layers.0."), name


def test_full_training_moves_only_the_upper_layers_and_opens_as_a_model(tmp_path: Path) -> None:
    from restill.models.checkpoint.load import load_decoder
    from restill.models.testing import tiny_checkpoint

    base = tiny_checkpoint()
    trainer = Trainer(base.config, base.params, _with(method="full", lr=1e-3), tokenizer=base.tokenizer)
    trained = load_decoder(str(trainer.fit(mixture(), out=tmp_path / "model")))
    moved = {n for n in base.params if not np.array_equal(base.params[n], trained.params[n])}
    assert moved == {n for n in base.params if n.startswith("layers.1.")} | {"norm"}


@pytest.mark.parametrize("tied", [True, False])
def test_training_the_embeddings_has_the_gradient_of_the_whole_model(params: dict, tmp_path: Path, tied: bool) -> None:
    from restill.models.testing import tiny_tokenizer

    config, data = replace(CONFIG, tie_embeddings=tied), mixture(6)
    if not tied:
        params = {**params, "lm_head": np.random.default_rng(5).normal(size=(16, 96)).astype(np.float32)}
    train = _with(method="full", embeddings=True, frozen_layers=0, epochs=1, rows=8)
    out = Trainer(config, params, train, tokenizer=tiny_tokenizer()).fit(data, out=tmp_path / "model")
    tokens, weights = padded(data)

    def loss(params: dict) -> jax.Array:
        logp = jax.nn.log_softmax(forward(config, params, tokens))[:, :-1]
        picked = jax.numpy.take_along_axis(logp, tokens[:, 1:, None], axis=2)[..., 0]
        return -(picked * weights[:, 1:]).sum() / np.abs(weights).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in gradient.values()))
    (row,) = LossLog(out / "train_log.jsonl").rows()
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    trained = load_decoder_folder(out)[1]
    assert params.keys() == trained.keys()
    assert all(not np.array_equal(params[name], trained[name]) for name in params)


def test_caching_the_frozen_layers_changes_nothing_that_matters(params: dict, tmp_path: Path) -> None:
    kept = Trainer(CONFIG, params, QUICK).fit(mixture(), out=tmp_path / "a")
    anew = Trainer(CONFIG, params, _with(cache_gb=0.0)).fit(mixture(), out=tmp_path / "b")
    for name, leaf in load_peft(kept).leaves.items():
        np.testing.assert_allclose(leaf, load_peft(anew).leaves[name], atol=1e-4)


def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(params: dict, tmp_path: Path) -> None:
    whole = Trainer(CONFIG, params, _with(rows=4, accumulate=1)).fit(mixture(24), out=tmp_path / "a")
    parts = Trainer(CONFIG, params, _with(rows=1, accumulate=4)).fit(mixture(24), out=tmp_path / "b")
    np.testing.assert_allclose(_losses(whole), _losses(parts), rtol=1e-3)


def test_the_loss_is_the_weighted_mean_of_the_base_model(params: dict, tmp_path: Path) -> None:
    data = mixture(4)
    out = Trainer(CONFIG, params, _with(rows=8, accumulate=1, epochs=1, row_length=24)).fit(data, out=tmp_path / "a")
    tokens, weights = padded(data)
    logp = jax.nn.log_softmax(jax.jit(lambda p, t: forward(CONFIG, p, t))(params, tokens))
    picked = np.take_along_axis(np.asarray(logp)[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    expected = -(picked * weights[:, 1:]).sum() / np.abs(weights).sum()
    assert _losses(out)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_mixed_precision_has_nearly_the_gradient_of_f32(params: dict, method: str, tied: bool) -> None:
    config, data = replace(CONFIG, tie_embeddings=tied), pack(mixture(6), 32)
    if not tied:
        params = {**params, "lm_head": np.random.default_rng(5).normal(size=(16, 96)).astype(np.float32)}
    gradients: dict[str, dict] = {}
    for precision in ("f32", "bf16"):
        train = _with(method=method, embeddings=method == "full", frozen_layers=0, precision=precision)
        trained = dict(params) if method == "full" else Trainer(config, params, train).initial()[0]
        trained = {n: leaf + np.float32(0.1) if n.endswith(".b") else leaf for n, leaf in trained.items()}
        steps = TrainSteps(config, train, params, {}, total=1)
        batch = micro_batch(data, np.arange(len(data)), len(data))
        steps.accumulate(trained, steps.lower(batch), batch)
        gradients[precision] = steps.take(trained).gradient
    for name, wanted in gradients["f32"].items():
        found = gradients["bf16"][name]
        assert found.dtype == np.float32
        assert 0 < np.linalg.norm(found - wanted) < 0.08 * np.linalg.norm(wanted), name


def test_a_finished_folder_is_returned_and_another_recipe_refused(params: dict, tmp_path: Path) -> None:
    out = Trainer(CONFIG, params, QUICK).fit(mixture(), out=tmp_path / "a")
    stamp = (out / WEIGHTS).stat().st_mtime_ns
    assert Trainer(CONFIG, params, QUICK).fit(mixture(), out=out) == out
    assert (out / WEIGHTS).stat().st_mtime_ns == stamp
    with pytest.raises(RestillError, match="recipe.lr"):
        Trainer(CONFIG, params, _with(lr=0.5)).fit(mixture(), out=out)
    with pytest.raises(RestillError, match="recipe.precision"):
        Trainer(CONFIG, params, _with(precision="bf16")).fit(mixture(), out=out)
    with pytest.raises(RestillError, match="mixture"):
        Trainer(CONFIG, params, QUICK).fit(mixture(seed=9), out=out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_layers": 2}, "frozen_layers=2"),
        ({"rank": 0}, "rank=0"),
        ({"method": "dora"}, "dora"),
        ({"precision": "f16"}, "use 'f32' or 'bf16'"),
        ({"method": "full"}, "tokenizer"),
        ({"embeddings": True}, "embeddings=True"),
        ({"embeddings": True, "method": "full"}, "frozen_layers=1"),
    ],
)
def test_bad_settings_are_named(params: dict, changes: dict, message: str) -> None:
    with pytest.raises(RestillError, match=message):
        Trainer(CONFIG, params, _with(**changes))


def test_an_adapter_of_another_rank_is_refused(params: dict, tmp_path: Path) -> None:
    first = Trainer(CONFIG, params, QUICK).fit(mixture(), out=tmp_path / "a")
    with pytest.raises(RestillError, match="rank=2"):
        Trainer(CONFIG, params, _with(rank=3), start=first)


def test_checkpoints_keep_the_newest_and_every_bit(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path / "c")
    leaves = {"layers.0.q.a": np.float32([[1e-30, -0.0], [np.pi, 3e38]])}
    state = ({"mu": np.float32([0.1])}, np.int32(7))
    for step in (1, 5, 12):
        saves.save(step, leaves, state)
    assert saves.steps() == [5, 12]
    got, got_state = saves.load(12, leaves, state)
    assert np.asarray(got["layers.0.q.a"]).tobytes() == leaves["layers.0.q.a"].tobytes()
    assert int(got_state[1]) == 7


def test_a_torn_log_is_cut_back(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.cut(2)
    log.append({"step": 3, "loss": 0.5})
    assert [(r["step"], r["loss"]) for r in log.rows()] == [(1, 1.0), (2, 1.0), (3, 0.5)]


_SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import numpy as np
from restill.models.config import DecoderConfig
from restill.selftrain.mixture import Mixture
from restill.selftrain.trainer import TrainConfig, Trainer
where = Path(sys.argv[1])
config = DecoderConfig(**json.loads((where / "config.json").read_text()))
train = TrainConfig(**json.loads((where / "train.json").read_text()), checkpoint_steps=3)
params = dict(np.load(where / "params.npz"))
Trainer(config, params, train).fit(Mixture.load(where / "mixture.jsonl"), out=where / "killed")
"""


def test_training_killed_at_random_steps_ends_with_the_same_bytes(params: dict, tmp_path: Path) -> None:
    train = _with(epochs=40)
    mixture(20).save(tmp_path / "mixture.jsonl")
    np.savez(tmp_path / "params.npz", **params)
    (tmp_path / "config.json").write_text(json.dumps(asdict(CONFIG)))
    (tmp_path / "train.json").write_text(json.dumps(train.recipe()))
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), *sys.path]
    environment = {**os.environ, "RESTILL_HOME": str(tmp_path / "home")}
    log, rng, hit = LossLog(tmp_path / "killed.training" / "train_log.jsonl"), random.Random(0), [0]
    for _ in range(2):
        wanted = hit[-1] + rng.randint(4, 30)
        process = subprocess.Popen(command, env=environment)
        until = time.monotonic() + 120
        while len(log.rows()) < wanted and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        hit.append(len(log.rows()))
        assert Checkpoints(log.path.parent / "checkpoints").steps()
    subprocess.run(command, env=environment, check=True)
    whole = Trainer(CONFIG, params, train).fit(mixture(20), out=tmp_path / "whole")
    for name in (WEIGHTS, "train_log.jsonl", "manifest.json"):
        assert (whole / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), (name, hit)
