"""``improve``: one resumable job that takes an agent and questions and ends with a better agent and a report.

::

    job/job.json                    every knob, written first
    job/questions.json              keys of the training and held-out questions
    job/base/eval/                  a run directory
    job/pilot/{rollout/, mixture.jsonl, kept.jsonl, adapter/, eval/}
    job/gen1/{rollout/, mixture.jsonl, kept.jsonl, adapter/, eval/}
    job/control/{mixture.jsonl, kept.jsonl, adapter/, eval/}
    job/<phase>.done.json           what a phase made; delete it to run the phase again
    job/report.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..agents.evaluate import EvalReport, evaluate
from ..agents.protocol import PROTOCOL
from ..agents.question import Question
from ..agents.react import ReActAgent
from ..agents.rollout import rollout
from ..agents.run import Run
from ..agents.trajectory import Trajectory
from ..models.errors import RestillError
from ..models.memory import trim
from .checks import refuse
from .feedback import GoldRanker
from .files import hash_json, read_json, write_atomic, write_json
from .job import Job
from .mixture import Mixture
from .pilot import Pilot, grounded
from .report import Arm, Report, differences
from .rest import Kept, ReST, select, select_random
from .trainer import TrainConfig, Trainer


def improve(
    agent: ReActAgent,
    questions: Iterable[Question],
    *,
    out: str | os.PathLike[str],
    method: ReST | None = None,
    eval: Iterable[Question] | None = None,
    eval_samples: int = 1,
    seed: int = 0,
    control: bool = False,
    concurrency: int = 32,
    deadline: float | None = 120.0,
    progress: bool = False,
) -> Report:
    """Train ``agent``'s model on its own trajectories; killed at any time, the same call goes on.

    The arms base, pilot, generation 1, ... answer the same held-out questions. Trained agents are asked
    without few-shot examples, as they were trained.

    Args:
        questions: to train on.
        out: the job's folder.
        eval: held-out questions with answers; ``None``: no arm is scored.
        control: also train the same start on as many trajectories of generation 1, drawn at random.
        concurrency, deadline: of the rollouts; they may change between calls.

    Raises:
        RestillError: a model without local weights, a held-out question that is also a training question,
            a folder of a job with other settings, or a generation that keeps nothing.
    """
    train, held_out = _unique(questions), _unique(eval or ())
    method = method or ReST()
    refuse(agent, train, held_out, method)
    settings = {
        "method": method.knobs(),
        "seed": seed,
        "eval_samples": eval_samples,
        "control": control,
        "agent": {"hash": agent.fingerprint, **agent.config},
        "train_questions": _digest(train),
        "eval_questions": _digest(held_out),
    }
    job = Job(Path(out), settings)
    with job.lock():
        write_json(job.out / "questions.json", {"train": [q.key for q in train], "eval": [q.key for q in held_out]})
        options = {"concurrency": concurrency, "deadline": deadline, "progress": progress}
        return _Improvement(job, agent, train, held_out, method, seed, eval_samples, options).run(control)


class _Improvement:
    """The flow of one job."""

    def __init__(
        self,
        job: Job,
        agent: ReActAgent,
        train: list[Question],
        held_out: list[Question],
        method: ReST,
        seed: int,
        eval_samples: int,
        options: dict[str, Any],
    ) -> None:
        self.job, self.agent, self.method, self.seed = job, agent, method, seed
        self.train, self.held_out, self.eval_samples, self.options = train, held_out, eval_samples, options
        self.checkpoint = agent.model.checkpoint
        self.scored: list[tuple[str, EvalReport]] = []
        self.arms: list[Arm] = []
        self.latest: Path | None = None  # what the newest arm was trained to

    def run(self, control: bool) -> Report:
        method, agent = self.method, self.agent
        self._evaluate("base", "base", agent)
        own = agent.model.adapter
        previous = None if own is None or method.start == "base" else Path(own.path)
        pilot: Mixture | None = None
        if method.pilot is not None:
            pilot = self._pilot_mixture(method.pilot)
            _release(agent)
            previous = self.latest = self._train("pilot", pilot, previous, method.pilot.train or method.train)
            agent = self._equip(previous)
            self._evaluate("pilot", "pilot", agent, previous, len(pilot))
        pairs = [("pilot", "base")] if pilot is not None else []
        before = "base" if pilot is None else "pilot"
        for generation in range(1, method.generations + 1):
            name, arm = f"gen{generation}", f"generation {generation}"
            run, content = self._rollout(
                name, agent.replace(temperature=method.temperature), self.train, method.samples
            )
            replayed = pilot if method.replay else None
            mixture = self._mixture(name, run, content, lambda ts, a=agent: self._select(a, ts), replayed)
            start = previous if method.start == "previous" else None
            _release(agent)
            trained = self.latest = self._train(name, mixture, start, method.train)
            agent = self._equip(trained)
            self._evaluate(name, arm, agent, trained, len(mixture))
            pairs += [(arm, "base"), (arm, before)] if before != "base" else [(arm, "base")]
            if control and generation == 1:
                if self.held_out:
                    pairs.append((arm, "control"))
                _release(agent)
                self._control(run, content, len(mixture) - len(replayed or ()), start, replayed)
            previous, before = trained, arm
        _release(agent)
        report = Report(
            out=str(self.job.out),
            questions=len(self.train),
            held_out=len(self.held_out),
            method=method.knobs(),
            arms=self.arms,
            deltas=differences(self.scored, pairs) if self.scored else [],
            adapter=None if self.latest is None else str(self.latest),
            phases=self.job.phases,
        )
        report.save()
        return report

    # -- phases

    def _pilot_mixture(self, pilot: Pilot) -> Mixture:
        chosen = pilot.choose(self.train, self.seed)
        run, content = self._rollout("pilot", pilot.guided(self.agent, chosen), chosen, pilot.samples)

        def right(trajectories: list[Trajectory]) -> list[Kept]:
            read = filter(grounded, trajectories)
            return select(GoldRanker(), chosen, read, keep_per_question=pilot.samples)[: pilot.most]

        return self._mixture("pilot", run, content, right, None)

    def _control(self, run: Run, content: str, count: int, start: Path | None, replayed: Mixture | None) -> None:
        def blindly(trajectories: list[Trajectory]) -> list[Kept]:
            return select_random(trajectories, count, seed=self.seed)

        mixture = self._mixture("control", run, f"{content}/{count}", blindly, replayed)
        trained = self._train("control", mixture, start, self.method.train)
        agent = self._equip(trained)
        self._evaluate("control", "control", agent, trained, len(mixture))
        _release(agent)

    def _select(self, agent: ReActAgent, trajectories: list[Trajectory]) -> list[Kept]:
        method, ranker = self.method, self.method.ranker
        bind = getattr(ranker, "bind", None)
        ranker = ranker if bind is None else bind(agent.model)
        return select(
            ranker,
            self.train,
            trajectories,
            keep_per_question=method.keep_per_question,
            keep_share=method.keep_share,
        )

    def _rollout(self, name: str, agent: ReActAgent, questions: Sequence[Question], samples: int) -> tuple[Run, str]:
        folder, seed = self.job.out / name / "rollout", _seed(self.seed, name)
        inputs = {
            "agent": agent.fingerprint,
            "questions": _digest(questions),
            "samples": samples,
            "seed": seed,
        }

        def work() -> dict[str, Any]:
            self._say(f"{name}: rolling out {len(questions)} questions, {samples} each")
            run = rollout(agent, questions, out=folder, samples=samples, seed=seed, **self.options)
            found = sorted(run.filter(agent=agent.fingerprint), key=lambda t: t.key)
            content = hash_json([[*t.key, t.status, t.answer, t.token_ids()] for t in found])
            return {"agent": agent.fingerprint, "trajectories": len(found), "content": content}

        done = self.job.phase(f"{name}/rollout", inputs, work, outputs=[folder / "run.json"])
        return Run.open(folder), done["content"]

    def _mixture(
        self,
        name: str,
        run: Run,
        content: str,
        choose: Callable[[list[Trajectory]], list[Kept]],
        replayed: Mixture | None,
    ) -> Mixture:
        path, ranking = self.job.out / name / "mixture.jsonl", self.job.out / name / "kept.jsonl"
        inputs = {
            "rollout": content,
            "method": {k: v for k, v in self.method.knobs().items() if k not in ("train", "generations")},
            "replayed": None if replayed is None else replayed.fingerprint,
        }

        def work() -> dict[str, Any]:
            kept = choose(list(run))
            rows = [{"trajectory": k.trajectory.id, "key": list(k.trajectory.key), "score": k.score} for k in kept]
            mixture = Mixture.from_trajectories([k.trajectory for k in kept], scores=[k.score for k in kept])
            if not mixture:
                raise RestillError(
                    f"{name}: none of the {len(run)} trajectories in {run.path} is worth keeping; "
                    f"look at them with `restill show {run.path}`, then raise samples, "
                    "or begin with a (larger) pilot"
                )
            kept_questions = len({k.trajectory.question_key for k in kept})
            if replayed is not None:
                mixture = Mixture.of([*mixture, *replayed])
            mixture.save(path)
            write_atomic(ranking, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            return {
                "rolled_out": len(run),
                "kept": len(kept),
                "kept_questions": kept_questions,
                "examples": len(mixture),
                "tokens": mixture.tokens,
                "targets": mixture.targets,
                "sha256": mixture.fingerprint,
            }

        self.job.phase(f"{name}/mixture", inputs, work, outputs=[path])
        return Mixture.load(path)

    def _train(self, name: str, mixture: Mixture, start: Path | None, train: TrainConfig) -> Path:
        folder = self.job.out / name / "adapter"
        trainer, model = self._trainer(train, start), self.agent.model
        manifest = {
            "base": str(model.name),
            "base_fingerprint": str(model.fingerprint),
            "protocol": PROTOCOL,
            "few_shot": 0,
            "arm": name,
            "recipe": self.method.knobs(),
            "train_question_hashes": sorted({str(e.provenance["question_key"]) for e in mixture}),
        }
        inputs = {
            "mixture": mixture.fingerprint,
            "recipe": train.recipe(),
            "base": str(model.fingerprint),
            "start": None if start is None else _weights_hash(start),
        }

        def discard() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_name("adapter.training"), ignore_errors=True)

        def work() -> dict[str, Any]:
            self._say(f"{name}: training on {len(mixture)} trajectories, {mixture.tokens} tokens")
            trainer.fit(mixture, out=folder, manifest=manifest, progress=self.options["progress"])
            trim()
            facts = read_json(folder / "manifest.json")
            return {"hash": _weights_hash(folder), "steps": facts["steps"], "loss": facts["loss"]}

        self.job.phase(f"{name}/train", inputs, work, outputs=[folder / "manifest.json"], discard=discard)
        return folder

    def _evaluate(
        self,
        name: str,
        arm: str,
        agent: ReActAgent,
        adapter: Path | None = None,
        trajectories: int | None = None,
    ) -> None:
        if not self.held_out:
            return
        folder, path = self.job.out / name / "eval", self.job.out / name / "eval.json"
        inputs = {
            "agent": agent.fingerprint,
            "questions": _digest(self.held_out),
            "samples": self.eval_samples,
            "seed": self.seed,
        }

        def work() -> dict[str, Any]:
            self._say(f"{arm}: evaluating on {len(self.held_out)} questions")
            scored = evaluate(
                agent, self.held_out, out=folder, samples=self.eval_samples, seed=self.seed, **self.options
            )
            write_atomic(path, scored.model_dump_json(indent=1) + "\n")
            scores = {
                "em": scored.em,
                "em_interval": scored.em_interval,
                "f1": scored.f1,
                "forced": scored.forced,
            }
            if adapter is not None:
                facts = read_json(adapter / "manifest.json") or {}
                write_json(adapter / "manifest.json", {**facts, "scores": {"questions": scored.questions, **scores}})
            return scores

        self.job.phase(f"{name}/eval", inputs, work, outputs=[path])
        scored = EvalReport.model_validate_json(path.read_bytes())
        self.scored.append((arm, scored))
        seconds = sum(p["seconds"] for n, p in self.job.phases.items() if n.split("/")[0] == name)
        where = None if adapter is None else str(adapter)
        self.arms.append(Arm.of(arm, scored, trajectories=trajectories, adapter=where, seconds=round(seconds, 1)))

    # -- models

    def _trainer(self, train: TrainConfig, start: Path | None) -> Trainer:
        checkpoint = self.checkpoint
        if train.method == "full" and start is not None and not (start / "adapter_config.json").is_file():
            from ..models.checkpoint.load import load_decoder

            checkpoint, start = load_decoder(str(start)), None
        return Trainer(checkpoint.config, checkpoint.params, train, start=start, tokenizer=checkpoint.tokenizer)

    def _equip(self, trained: Path) -> ReActAgent:
        """The agent with what training made."""
        model = self.agent.model
        if (trained / "adapter_config.json").is_file():
            return self.agent.replace(model=model.with_adapter(trained), few_shot=0)
        whole = type(model).from_pretrained(trained, precision=model.precision, max_context=model.max_context)
        return self.agent.replace(model=whole, few_shot=0)

    def _say(self, text: str) -> None:
        if self.options["progress"]:
            from rich.console import Console

            Console(stderr=True).print(text, style="bold", highlight=False)


def _release(agent: ReActAgent) -> None:
    """Stop the engine: training needs its memory. It starts again when it is used."""
    close = getattr(agent.model, "close", None)
    if close is not None:
        close()
    trim()


def _unique(questions: Iterable[Question]) -> list[Question]:
    return list({q.key: q for q in map(Question.of, questions)}.values())


def _digest(questions: Sequence[Question]) -> dict[str, Any]:
    return {"count": len(questions), "sha256": hash_json([q.model_dump(mode="json") for q in questions])}


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def _weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
