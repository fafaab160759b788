"""``distill``: one resumable job that trains a small student on what a large teacher did (docs/distil.md).

::

    job/job.json               every knob, written first
    job/student/               the student before training: a Hugging Face folder, teacher_ids.json beside it
    job/mixture.jsonl          the mixture in the student's ids
    job/teacher.safetensors    sampled teacher tokens, with logits=True
    job/model/                 the trained student: JaxChatModel.from_pretrained("job/model")
    job/<phase>.done.json      what a phase made; delete it to run the phase again
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.run import Run
from ..models.checkpoint.load import Checkpoint, load_decoder, save_decoder_hf
from ..models.engine.shapes import LIGHT
from ..models.errors import RestillError
from ..models.lora import find_adapter, load_peft, merge
from ..models.memory import trim
from ..models.student import Nano, Student, Taught, make_student, parameter_count, parse_student
from ..models.vocabulary import PrunedVocabulary
from .checks import trained_on
from .files import hash_json, write_json
from .job import Job
from .mixture import Example, Mixture
from .teacher import TeacherTargets, sample_targets
from .trainer import TrainConfig, Trainer

Data = Mixture | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def default_recipe(student: Student) -> TrainConfig:
    """How to train a student unless told otherwise: all its weights."""
    if isinstance(student, Nano):
        return TrainConfig(method="full", embeddings=True, lr=3e-3, epochs=20)
    if isinstance(student, Taught):
        light = parameter_count(load_decoder(student.path).config) <= LIGHT
        return TrainConfig(method="full", embeddings=light, lr=1e-3 if light else 3e-4, epochs=3)
    return TrainConfig(method="full", embeddings=student.prune, lr=3e-4, epochs=4)


def distill(
    teacher: str | os.PathLike[str] | Checkpoint,
    data: Data,
    *,
    student: Student | str,
    out: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    logits: bool = False,
    samples: int = 256,
    context_weight: float = 0.0,
    texts: Iterable[str] = (),
    train: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Train ``student`` on the teacher's trajectories; killed at any time, the same call goes on.

    Args:
        teacher: a model's name, folder or weights; its tokenizer made the mixture.
        data: a mixture, or files of mixtures and run directories (all their trajectories).
        student: ``Nano(parameters=...)``, ``FewerLayers(layers=...)``, ``Taught(path=...)``, or as text
            (``parse_student``).
        out: the job's folder; the model lies in ``out/model``.
        adapter: the teacher's LoRA adapter.
        logits: learn at each position from ``samples`` tokens drawn from the teacher's distribution instead of from
            the one token that stands there. Tokens with a negative weight then teach nothing.
        context_weight: weight of the tokens that the teacher only read (prompts, observations); a model from scratch
            learns the language and to copy from them.
        texts: what the student shall be able to write in whole tokens beside the mixture, such as the documents; a
            student that has learnt before keeps its vocabulary.
        seed: of a nano model's weights and of the draws; the order of training has ``train.seed``.

    Returns:
        The folder of the trained student.

    Raises:
        RestillError: a folder of a job with other settings, an empty mixture, a student that does not fit.
    """
    kind = parse_student(student) if isinstance(student, str) else student
    if not 0 <= context_weight <= 1:
        raise RestillError(f"context_weight={context_weight}: give a weight from 0 to 1")
    guide, mixture = _teacher(teacher, adapter), _weighted(_mixture(data), logits, context_weight)
    if not mixture:
        raise RestillError("the mixture has no token to learn from; keep more trajectories")
    extra = sorted({token for text in texts for token in guide.tokenizer.encode(text)})
    train = train or default_recipe(kind)
    if train.method != "full":
        raise RestillError(f"method={train.method!r}: a student is trained whole; use TrainConfig(method='full')")
    settings = {
        "teacher": guide.fingerprint,
        "mixture": mixture.fingerprint,
        "student": _described(kind),
        "samples": samples if logits else None,
        "extra_tokens": hash_json(extra),
        "train": train.recipe(),
        "seed": seed,
    }
    job = Job(Path(out), settings)
    with job.lock():
        return _Distillation(job, guide, mixture, kind, extra, train, seed, progress).run(samples if logits else None)


class _Distillation:
    """The flow of one job."""

    def __init__(
        self,
        job: Job,
        teacher: Checkpoint,
        mixture: Mixture,
        student: Student,
        extra: list[int],
        train: TrainConfig,
        seed: int,
        progress: bool,
    ) -> None:
        self.job, self.teacher, self.mixture, self.kind = job, teacher, mixture, student
        self.extra, self.train, self.seed, self.progress = extra, train, seed, progress

    def run(self, samples: int | None) -> Path:
        student, vocabulary = self._student()
        mapped = self._mapped(vocabulary)
        targets = None if samples is None else self._targets(vocabulary, samples)
        return self._train(student, mapped, targets)

    def _student(self) -> tuple[Checkpoint, PrunedVocabulary | None]:
        seen = {token for example in self.mixture for token in example.tokens} | set(self.extra)
        student, vocabulary = make_student(self.teacher, self.kind, seen, seed=self.seed)
        folder = self.job.out / "student"

        def work() -> dict[str, Any]:
            part = folder.with_name("student.part")
            shutil.rmtree(part, ignore_errors=True)
            save_decoder_hf(part, student.config, student.params, student.tokenizer)
            if vocabulary is not None:
                (part / "teacher_ids.json").write_text(json.dumps(vocabulary.ids.tolist()))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
            return {"parameters": parameter_count(student.config), "vocabulary": student.config.vocab_size}

        self.job.phase("student", {"settings": "job"}, work, outputs=[folder / "config.json"])
        return student, vocabulary

    def _mapped(self, vocabulary: PrunedVocabulary | None) -> Mixture:
        if vocabulary is None:
            mapped = self.mixture
        else:
            mapped = Mixture(tuple(replace(e, tokens=vocabulary.map(e.tokens)) for e in self.mixture))
        path = self.job.out / "mixture.jsonl"

        def work() -> dict[str, Any]:
            mapped.save(path)
            return {"examples": len(mapped), "tokens": mapped.tokens, "targets": mapped.targets}

        self.job.phase("mixture", {"mixture": mapped.fingerprint}, work, outputs=[path])
        return mapped

    def _targets(self, vocabulary: PrunedVocabulary | None, samples: int) -> TeacherTargets:
        path = self.job.out / "teacher.safetensors"

        def work() -> dict[str, Any]:
            found = sample_targets(
                self.teacher,
                self.mixture,
                out=path,
                vocabulary=vocabulary,
                samples=samples,
                row_length=self.train.row_length,
                seed=self.seed,
                progress=self.progress,
            )
            trim()
            positions = int((np.diff(found.offsets) > 0).sum())
            return {"positions": positions, "entries": len(found.ids), "sha256": found.fingerprint}

        self.job.phase("teacher", {"settings": "job"}, work, outputs=[path])
        return TeacherTargets.load(path)

    def _train(self, student: Checkpoint, mapped: Mixture, targets: TeacherTargets | None) -> Path:
        folder = self.job.out / "model"
        known = trained_on(Path(self.kind.path)) if isinstance(self.kind, Taught) else set[str]()
        sizes = {"student": parameter_count(student.config), "teacher": parameter_count(self.teacher.config)}
        manifest = {
            "teacher": self.teacher.name,
            "teacher_fingerprint": self.teacher.fingerprint,
            "student": _described(self.kind),
            "parameters": sizes,
            "learns_from": "tokens" if targets is None else f"{targets.facts['samples']} sampled teacher tokens",
            "protocol": mapped.protocol,
            "few_shot": 0,
            "train_question_hashes": sorted({str(e.provenance.get("question_key")) for e in mapped} | known),
        }

        def work() -> dict[str, Any]:
            trainer = Trainer(student.config, student.params, self.train, tokenizer=student.tokenizer)
            trainer.fit(mapped, out=folder, teacher=targets, manifest=manifest, progress=self.progress)
            trim()
            facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            return {"steps": facts["steps"], "loss": facts["loss"]}

        inputs = {"mixture": mapped.fingerprint, "teacher": None if targets is None else targets.fingerprint}
        self.job.phase("train", inputs, work, outputs=[folder / "manifest.json"])
        write_json(self.job.out / "distill.json", {"model": str(folder), "parameters": sizes, **self.job.phases})
        return folder


def _described(student: Student) -> dict[str, Any]:
    """A student in a manifest; one that has learnt is known by its weights, wherever they lie."""
    named = {"fingerprint": load_decoder(student.path).fingerprint} if isinstance(student, Taught) else asdict(student)
    return {"kind": type(student).__name__, **named}


def _teacher(teacher: str | os.PathLike[str] | Checkpoint, adapter: str | os.PathLike[str] | None) -> Checkpoint:
    checkpoint = teacher if isinstance(teacher, Checkpoint) else load_decoder(os.fspath(teacher))
    if adapter is None:
        return checkpoint
    loaded = load_peft(find_adapter(os.fspath(adapter)))
    params = merge(checkpoint.params, loaded.leaves, alpha=loaded.alpha)
    name, fingerprint = f"{checkpoint.name}+{loaded.info.name}", f"{checkpoint.fingerprint}+{loaded.info.hash}"
    return Checkpoint(name, checkpoint.config, params, checkpoint.tokenizer, fingerprint)


def _mixture(data: Data) -> Mixture:
    if isinstance(data, Mixture):
        return data
    found: list[Example] = []
    for path in map(Path, [data] if isinstance(data, str | os.PathLike) else data):
        found += Mixture.from_trajectories(Run.open(path)) if path.is_dir() else Mixture.load(path)
    return Mixture.of(found)


def _weighted(mixture: Mixture, logits: bool, context: float) -> Mixture:
    """The mixture as the student shall weigh it."""

    def weight(w: float) -> float:
        return max(w, 0.0) if logits else w

    return Mixture.of(
        replace(e, weights=(0.0, *(weight(w) if w else context for w in e.weights[1:]))) if e.weights else e
        for e in mixture
    )
