"""``improve``: one resumable job that takes an agent and questions and ends with a better agent and a report.

::

    job/job.json                    every knob, written first
    job/questions.json              keys of the training and held-out questions
    job/base/eval/                  a run directory
    job/pilot/{rollout/, kept.jsonl, mixture.jsonl, adapter/, eval/}
    job/gen1/{rollout/, kept.jsonl, mixture.jsonl, adapter/, eval/}
    job/control/{kept.jsonl, mixture.jsonl, adapter/, eval/}
    job/TRICE/{guide/, state.json, adapter/, eval/}    with method=TRICE(...): instead of generations
    job/<phase>.done.json           what a phase made; delete it to run the phase again
    job/worker-i-of-n.lock          held by worker i of n, 0 of 1 unless several share the job
    job/report.json
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..agents.agent import Agent
from ..agents.question import Question
from ..agents.run import Run
from ..models.errors import RestillError
from .checks import refuse
from .digests import digest
from .files import write_json
from .job import Job
from .latent_method import LatentMethod
from .mixture import Mixture
from .mixture_phases import MixturePhases
from .phases import release
from .plain import models
from .progress import teller
from .report import Report
from .rest import ReST
from .selection import Kept, select, select_random


def improve(
    agent: Agent,
    questions: Iterable[Question],
    *,
    out: str | os.PathLike[str],
    method: ReST | LatentMethod | None = None,
    eval: Iterable[Question] | None = None,
    eval_samples: int = 1,
    seed: int = 0,
    control: bool = False,
    baseline: bool = True,
    concurrency: int | None = None,
    deadline: float | None = 120.0,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
) -> Report:
    """Train ``agent``'s model on its own trajectories; killed at any time, the same call goes on.

    The arms base, pilot, generation 1, ... answer the same held-out questions. Trained agents are asked
    without few-shot examples, as they were trained.

    Args:
        questions: to train on.
        out: the job's folder.
        method: :class:`ReST`, :class:`TRICE` or one of its baselines (:mod:`restill.selftrain.baselines`).
        eval: held-out questions with answers; ``None``: no arm is scored.
        control: also train the same start on as many trajectories of generation 1, drawn at random.
        baseline: also score the model as it is. One that does not know the format runs to its budget on every
            question; it may take longer than any arm. May change between calls, but is alike for all workers; a score
            that is there is shown.
        concurrency, deadline: of the rollouts; they may change between calls.
        shard: (i, n): be worker i of n that work in ``out`` at the same time, each called with the same arguments
            otherwise, in one process or host each. Rollouts, evaluations and rankings are shared out by question;
            the rest is worker 0's. All return the same report. A worker that died is called again.

    Raises:
        RestillError: a model without local weights, a held-out question that is also a training question or has no
            answer, a folder of a job with other settings, or a generation that keeps nothing.
    """
    train, held_out = _unique(questions), _unique(eval or ())
    method = method or ReST()
    refuse(agent, train, held_out, method)
    if control and isinstance(method, LatentMethod):
        raise RestillError(f"control=True compares ReST with a random mixture; {type(method).__name__} has none")
    if isinstance(method, LatentMethod) and shard is not None and shard[1] > 1:
        raise RestillError(f"shard={shard}: {type(method).__name__} is one worker's work; leave shard out")
    settings = {
        "method": method.knobs(),
        "models": models(method),
        "seed": seed,
        "eval_samples": eval_samples,
        "control": control,
        "agent": {"hash": agent.fingerprint, **agent.settled},
        "train_questions": digest(train),
        "eval_questions": digest(held_out),
    }
    job = Job(Path(out), settings, shard=shard, say=teller(progress))
    with job.lock():
        if job.leads:
            write_json(job.out / "questions.json", {"train": [q.key for q in train], "eval": [q.key for q in held_out]})
        options = {"concurrency": concurrency, "deadline": deadline, "progress": progress}
        if isinstance(method, LatentMethod):
            from .latent_job import LatentImprovement

            return LatentImprovement(job, agent, train, held_out, method, seed, eval_samples, options).run(baseline)
        return _Improvement(job, agent, train, held_out, method, seed, eval_samples, options).run(control, baseline)


class _Improvement(MixturePhases[ReST]):
    """The flow of one job."""

    latest: Path | None = None
    """What the newest arm was trained to."""

    def run(self, control: bool, baseline: bool) -> Report:
        """Go through all phases of all generations, and write the report."""
        method, agent = self.method, self.agent
        self.score_base(baseline)
        own = agent.model.adapter
        previous = None if own is None or method.start == "base" else Path(own.path)
        pilot: Mixture | None = None
        if method.pilot is not None:
            pilot = self.pilot_mixture(method.pilot)
            release(agent)
            previous = self.latest = self.fit("pilot", pilot, previous, method.pilot.train or method.train)
            agent = self.equip(previous, agent)
            self.score("pilot", "pilot", agent, previous, pilot.trajectories)
        for generation in range(1, method.generations + 1):
            name, arm = f"gen{generation}", f"generation {generation}"
            run, content = self.roll_out(
                name, agent.replace(temperature=method.temperature), self.train, method.samples
            )
            replayed = pilot if method.replay else None
            kept = self.keep(name, run, content, lambda run=run, a=agent: self._select(a, run))
            ranked = None if method.step_ranker is None else self.rank(name, run, kept, agent, method.step_ranker)
            mixture = self.mix(name, run, kept, replayed, rankings=ranked)
            start = previous if method.start == "previous" else None
            release(agent)
            trained = self.latest = self.fit(name, mixture, start, method.train)
            agent = self.equip(trained, agent)
            self.score(name, arm, agent, trained, mixture.trajectories)
            if control and generation == 1:
                release(agent)
                self._control(agent, run, content, len(kept), start, replayed)
            previous = trained
        release(agent)
        return self.report(self.latest)

    def _control(
        self, agent: Agent, run: Run, content: str, count: int, start: Path | None, replayed: Mixture | None
    ) -> None:
        kept = self.keep("control", run, f"{content}/{count}", lambda: select_random(run, count, seed=self.seed))
        mixture = self.mix("control", run, kept, replayed)
        trained = self.fit("control", mixture, start, self.method.train)
        agent = self.equip(trained, agent)
        self.score("control", "control", agent, trained, mixture.trajectories)
        release(agent)

    def _select(self, agent: Agent, run: Run) -> list[Kept]:
        method, ranker = self.method, self.method.ranker
        bind = getattr(ranker, "bind", None)
        ranker = ranker if bind is None else bind(agent.model)
        return select(
            ranker,
            self.train,
            run,
            keep_per_question=method.keep_per_question,
            keep_share=method.keep_share,
        )


def _unique(questions: Iterable[Question]) -> list[Question]:
    return list({q.key: q for q in map(Question.of, questions)}.values())
