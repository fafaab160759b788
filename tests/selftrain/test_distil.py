"""Distillation as one job: the student opens, answers, has learnt, and a killed job ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restill.models.chat import JaxChatModel
from restill.models.checkpoint.load import load_decoder
from restill.models.errors import RestillError
from restill.models.student import FewerLayers, Nano
from restill.models.testing import save_tiny, tiny_checkpoint
from restill.selftrain.distill import distill
from restill.selftrain.loss_log import LossLog
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.trainer import TrainConfig

STUDENT = Nano(parameters=60_000)
RECIPE = TrainConfig(method="full", embeddings=True, lr=5e-3, epochs=12, rows=2, row_length=48)


def _mixture() -> Mixture:
    tokenizer, made = tiny_checkpoint().tokenizer, []
    for word in "engine firm town year founder passage".split():
        prompt = tokenizer.chat([{"role": "user", "content": f"Who built the {word}?"}])
        own = [*tokenizer.encode(f"Thought: the {word} is known"), tokenizer.eos_id]
        weights = (*[0.0] * len(prompt), *[1.0] * len(own))
        source = {"question_key": word, "protocol": "search-compact-1"}
        made.append(Example(tokens=(*prompt, *own), weights=weights, provenance=source))
    return Mixture.of(made)


def _losses(job: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (job / "model" / "train_log.jsonl").read_text().splitlines()]


def test_a_nano_student_learns_the_mixture_and_answers_through_the_engine(tmp_path: Path) -> None:
    model = distill(tiny_checkpoint(), _mixture(), student=STUDENT, out=tmp_path / "job", train=RECIPE, texts=["Zug"])
    losses = _losses(tmp_path / "job")
    assert losses[-1] < 0.6 * losses[0]
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["parameters"]["student"] <= 60_000 and "engine" in manifest["train_question_hashes"]
    assert manifest["protocol"] == "search-compact-1"
    ids = json.loads((tmp_path / "job" / "student" / "teacher_ids.json").read_text())
    assert set(tiny_checkpoint().tokenizer.encode("Zug")) <= set(ids)
    with_grammar = JaxChatModel.from_pretrained(model, precision="f32", slots=2, max_context=128)
    answer = with_grammar.invoke("Who built the firm?", grammar='start: "the firm" | "nobody"')
    with_grammar.close()
    assert answer.content in ("the firm", "nobody")


def test_the_same_call_returns_what_is_there_and_another_is_refused(tmp_path: Path) -> None:
    train = TrainConfig(**{**RECIPE.recipe(), "epochs": 1})
    first = distill(tiny_checkpoint(), _mixture(), student="nano:60k", out=tmp_path / "job", train=train)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert distill(tiny_checkpoint(), _mixture(), student=STUDENT, out=tmp_path / "job", train=train) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(RestillError, match="seed"):
        distill(tiny_checkpoint(), _mixture(), student=STUDENT, out=tmp_path / "job", train=train, seed=1)
    with pytest.raises(RestillError, match="no token"):
        distill(tiny_checkpoint(), Mixture(()), student=STUDENT, out=tmp_path / "empty")


def test_sampled_teacher_tokens_leave_a_student_that_is_the_teacher_where_it_is(tmp_path: Path) -> None:
    """The teacher itself, its vocabulary pruned, starts at its own entropy: the gradient is only sampling noise."""
    train = TrainConfig(**{**RECIPE.recipe(), "epochs": 1, "rows": 8, "embeddings": False, "lr": 1e-6})
    noise = {}
    for samples in (4, 4096):
        out = tmp_path / str(samples)
        student = FewerLayers(layers=2, prune=True)
        model = distill(
            tiny_checkpoint(), _mixture(), student=student, out=out, logits=True, samples=samples, train=train
        )
        noise[samples] = LossLog(model / "train_log.jsonl").rows()[0]["grad_norm"]
    tokens = distill(tiny_checkpoint(), _mixture(), student="layers:2,pruned", out=tmp_path / "hard", train=train)
    hard = LossLog(tokens / "train_log.jsonl").rows()[0]["grad_norm"]
    assert noise[4096] < 0.1 * noise[4] and noise[4] < hard  # the error falls as one over the root of the samples


def test_context_can_be_learnt_too(tmp_path: Path) -> None:
    train = TrainConfig(**{**RECIPE.recipe(), "epochs": 1})
    distill(
        tiny_checkpoint(), _mixture(), student=STUDENT, out=tmp_path / "job", logits=True, samples=4, train=train,
        context_weight=0.5,
    )  # fmt: skip
    for mapped, example in zip(Mixture.load(tmp_path / "job" / "mixture.jsonl"), _mixture(), strict=True):
        assert mapped.weights == (0.0, *(w or 0.5 for w in example.weights[1:]))


def test_a_student_goes_on_with_the_vocabulary_that_it_has(tmp_path: Path) -> None:
    train = TrainConfig(**{**RECIPE.recipe(), "epochs": 3})
    first = distill(tiny_checkpoint(), _mixture(), student=STUDENT, out=tmp_path / "a", train=train)
    same, some = f"model:{first}", Mixture.of(list(_mixture())[:3])
    again = distill(tiny_checkpoint(), some, student=same, out=tmp_path / "b", train=train)
    first_three = (tmp_path / "a/mixture.jsonl").read_text().splitlines()[:3]
    assert (tmp_path / "b/mixture.jsonl").read_text().splitlines() == first_three, "the same ids"
    ids = [(tmp_path / job / "student/teacher_ids.json").read_text() for job in "ab"]
    assert ids[0] == ids[1]
    whole = distill(tiny_checkpoint(), _mixture(), student=same, out=tmp_path / "c", train=train)
    assert _losses(tmp_path / "c")[0] < 1.2 * _losses(tmp_path / "a")[-1], "it begins where it had ended"
    assert load_decoder(str(again)).config == load_decoder(str(first)).config
    moved = first.rename(tmp_path / "moved")
    assert distill(tiny_checkpoint(), _mixture(), student=f"model:{moved}", out=tmp_path / "c", train=train) == whole
    lacked = next(i for i in range(tiny_checkpoint().config.vocab_size) if i not in json.loads(ids[0]))
    facts = json.loads((tmp_path / "b/model/manifest.json").read_text())
    assert facts["train_question_hashes"] == sorted({e.provenance["question_key"] for e in _mixture()})
    other = Mixture.of([Example(tokens=(0, 1, lacked), weights=(0.0, 1.0, 1.0), provenance={"question_key": "x"})])
    with pytest.raises(RestillError, match="not in the pruned vocabulary"):
        distill(tiny_checkpoint(), other, student=f"model:{moved}", out=tmp_path / "d", train=train)


_SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from restill.selftrain.distill import distill
from restill.selftrain.trainer import TrainConfig
where = Path(sys.argv[1])
train = TrainConfig(method="full", embeddings=True, epochs=40, rows=2, row_length=48, checkpoint_steps=3)
distill(where / "tiny", where / "mixture.jsonl", student="nano:60k", out=where / "killed", logits=True, samples=8,
        train=train)
"""


@pytest.mark.slow  # as long as the trainer's own, which is not
def test_a_job_killed_at_a_random_step_ends_with_the_same_bytes(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    _mixture().save(tmp_path / "mixture.jsonl")
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), *sys.path]
    environment = {**os.environ, "RESTILL_HOME": str(tmp_path / "home")}
    job = tmp_path / "killed"
    log, wanted = LossLog(job / "model.training" / "train_log.jsonl"), random.Random(0).randint(4, 60)
    process, until = subprocess.Popen(command, env=environment), time.monotonic() + 120
    while len(log.rows()) < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, env=environment, check=True)
    train = TrainConfig(method="full", embeddings=True, epochs=40, rows=2, row_length=48, checkpoint_steps=3)
    teacher = load_decoder(tmp_path / "tiny")
    whole = distill(teacher, _mixture(), student=STUDENT, out=tmp_path / "whole", logits=True, samples=8, train=train)
    for name in ("model.safetensors", "tokenizer.json", "train_log.jsonl", "manifest.json"):
        assert (job / "model" / name).read_bytes() == (whole / name).read_bytes(), name
    assert (job / "teacher.safetensors").read_bytes() == (tmp_path / "whole" / "teacher.safetensors").read_bytes()
