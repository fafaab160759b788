"""Sampled teacher targets: unbiased, kept once, and the same however often the sampling was killed."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restill.models.checkpoint.load import Checkpoint
from restill.models.decoder import forward
from restill.models.errors import RestillError
from restill.models.testing import tiny_checkpoint
from restill.models.vocabulary import prune_vocabulary
from restill.selftrain import teacher as module
from restill.selftrain.loss import Head, cross_entropy
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.teacher import TeacherTargets, draw, sample_targets

P = np.array([0.5, 0.25, 0.125, 0.125])


def _loss(hidden: jax.Array, kernel: jax.Array, ids: np.ndarray, shares: np.ndarray) -> jax.Array:
    head = Head(tied=True, trained=True)
    return cross_entropy(head, hidden, kernel, jnp.asarray(ids), jnp.asarray(shares), jnp.ones(1), jnp.int32(1))


def test_the_expected_target_and_gradient_are_those_of_the_whole_distribution() -> None:
    keys = jax.random.split(jax.random.key(0))
    hidden, kernel = jax.random.normal(keys[0], (1, 3)), jax.random.normal(keys[1], (4, 3))
    gradient = jax.jit(jax.grad(_loss, (0, 1)))
    dense = gradient(hidden, kernel, np.arange(4)[None], P[None].astype(np.float32))

    def kernel_gradient(target: np.ndarray) -> tuple[jax.Array, jax.Array]:
        ids = np.argsort(target == 0, kind="stable")[None]  # as stored: the drawn ones, then entries with share 0
        return gradient(hidden, kernel, ids, target[ids].astype(np.float32))

    target, total = np.zeros(4), [jnp.zeros((1, 3)), jnp.zeros((4, 3))]
    for outcome in itertools.product(range(4), repeat=3):  # every way to draw three tokens
        chance, counts = P[list(outcome)].prod(), np.bincount(outcome, minlength=4) / 3
        target += chance * counts
        total = [t + chance * g for t, g in zip(total, kernel_gradient(counts), strict=True)]
    np.testing.assert_allclose(target, P, atol=1e-12)
    for expected, got in zip(dense, total, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    top = np.where(P >= 0.25, P, 0) / 0.75  # the likeliest two, renormalised: another target, another gradient
    assert np.abs(kernel_gradient(top)[1] - dense[1]).max() > 0.05


def test_tokens_are_drawn_with_their_probabilities() -> None:
    ids, counts = draw(np.array([0.0, 4.0, 0.0, 2.0, 1.0, 1.0, 0.0]), (np.arange(8) + 0.5) / 8)
    assert ids.tolist() == [1, 3, 4, 5] and counts.tolist() == [4, 2, 1, 1]
    ends, _ = draw(np.array([0.0, 0.3, 0.7, 0.0]), np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert ends.tolist() == [1, 2]  # never a token without probability


@pytest.fixture(scope="module")
def guide() -> Checkpoint:
    return tiny_checkpoint()


def _mixture(guide: Checkpoint, count: int = 7) -> Mixture:
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        tokens = rng.integers(3, 400, 6 + i)
        made.append(Example(tokens=tuple(tokens.tolist()), weights=(0.0, 0.0, *[1.0] * (3 + i), 0.0)))
    return Mixture.of(made)


def test_many_samples_approach_the_teacher_restricted_to_the_students_tokens(guide: Checkpoint, tmp_path: Path) -> None:
    mixture = _mixture(guide, 2)
    vocabulary = prune_vocabulary(guide.tokenizer, [t for e in mixture for t in e.tokens])
    found = sample_targets(guide, mixture, out=tmp_path / "t.safetensors", vocabulary=vocabulary, samples=60_000)
    for number, example in enumerate(mixture):
        logits = forward(
            guide.config, {n: jnp.asarray(p) for n, p in guide.params.items()}, jnp.asarray([example.tokens])
        )
        expected = np.asarray(jax.nn.softmax(logits[0][:, vocabulary.shared]))
        for place in range(2, len(example.tokens) - 1):
            ids, shares = found.at(np.array([number]), np.array([place]))
            dense = np.zeros(len(vocabulary.ids))
            np.add.at(dense, ids[0], shares[0])
            # Five standard errors of a share of 60,000 draws, at most 0.0102.
            np.testing.assert_allclose(dense[: len(vocabulary.shared)], expected[place - 1], atol=0.0102)
    assert np.diff(found.offsets)[[0, 1, len(mixture[0].tokens) - 1]].tolist() == [0, 0, 0]


def test_a_killed_sampling_goes_on_to_the_same_file(
    guide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = _mixture(guide)
    monkeypatch.setattr(module, "GROUP", 2)
    whole = sample_targets(guide, mixture, out=tmp_path / "whole.safetensors", samples=16, row_length=8, seed=3)
    save, saved = TeacherTargets.save, []

    def dying(self: TeacherTargets, path: Path) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path)

    monkeypatch.setattr(TeacherTargets, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        sample_targets(guide, mixture, out=tmp_path / "killed.safetensors", samples=16, row_length=8, seed=3)
    stamps = [path.stat().st_mtime_ns for path in saved]
    monkeypatch.setattr(TeacherTargets, "save", save)
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # so that the parts can be looked at
    sample_targets(guide, mixture, out=tmp_path / "killed.safetensors", samples=16, row_length=8, seed=3)
    assert [path.stat().st_mtime_ns for path in saved] == stamps
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    loaded = TeacherTargets.load(tmp_path / "whole.safetensors")
    assert loaded.fingerprint == whole.fingerprint
    assert loaded.counts[: loaded.offsets[-1]].sum() == 16 * (np.diff(loaded.offsets) > 0).sum()


def test_targets_of_something_else_are_refused(guide: Checkpoint, tmp_path: Path) -> None:
    mixture, out = _mixture(guide), tmp_path / "t.safetensors"
    found = sample_targets(guide, mixture, out=out, samples=4, row_length=8)
    found.check(mixture, 8)
    with pytest.raises(RestillError, match="8 tokens that the teacher read"):
        found.check(mixture, 9)
    with pytest.raises(RestillError, match="another mixture"):
        found.check(_mixture(guide, 3), 8)
    with pytest.raises(RestillError, match="another mixture, teacher or seed"):
        sample_targets(guide, mixture, out=out, samples=4, row_length=8, seed=1)
    with pytest.raises(RestillError, match="samples=0"):
        sample_targets(guide, mixture, out=tmp_path / "u", samples=0)
    out.write_bytes(b"torn")
    with pytest.raises(RestillError, match="no teacher targets"):
        TeacherTargets.load(out)
