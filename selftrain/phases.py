"""The phases of a job: roll out, build a mixture, train, evaluate; each done once, from its inputs to a file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..agents.agent import Agent
from ..agents.evaluate import EvalReport, score_run
from ..agents.question import Question
from ..agents.rollout import rollout
from ..agents.run import Run
from ..agents.shards import in_shard
from ..models.errors import RestillError
from ..models.memory import trim
from .checks import trained_on
from .digests import digest, phase_seed, weights_hash
from .files import hash_json, read_json, write_atomic, write_json
from .job import Job
from .latent_method import LatentMethod
from .mixture import Mixture
from .report import Arm, Report, comparisons, differences
from .rest import ReST
from .selection import said
from .trainer import TrainConfig, Trainer

AnyMethod = TypeVar("AnyMethod", bound=ReST | LatentMethod)
MOST_FAILED = 0.1
"""Share of a phase's runs that may fail (the model gave no reply): one bad request must not stop a job for ever."""


class Phases(Generic[AnyMethod]):
    """What one job can do, and what it has scored so far.

    Attributes:
        scored: each arm's name and evaluation, in order.
        arms: the same for the report.
    """

    def __init__(
        self,
        job: Job,
        agent: Agent,
        train: list[Question],
        held_out: list[Question],
        method: AnyMethod,
        seed: int,
        eval_samples: int,
        options: dict[str, Any],
    ) -> None:
        self.job, self.agent, self.method, self.seed = job, agent, method, seed
        self.train, self.held_out, self.eval_samples, self.options = train, held_out, eval_samples, options
        self.checkpoint = agent.model.checkpoint
        self.scored: list[tuple[str, EvalReport]] = []
        self.arms: list[Arm] = []

    def roll_out(self, name: str, agent: Agent, questions: Sequence[Question], samples: int) -> tuple[Run, str]:
        """The run of ``agent`` over ``questions``, and a hash of what came out."""
        folder, seed = self.job.out / name / "rollout", phase_seed(self.seed, name)
        inputs = {
            "agent": agent.fingerprint,
            "questions": digest(questions),
            "samples": samples,
            "seed": seed,
        }

        def part() -> None:
            self.job.say(f"{name}: rolling out {len(questions)} questions, {samples} each")
            self._ask(agent, questions, folder, samples=samples, seed=seed)

        def work() -> dict[str, Any]:
            run = Run.open(folder)
            mine, worked = agent.fingerprint, run.stats(agent.fingerprint)
            keys = sorted(key for key in run.keys() if key.agent == mine)
            found = (t for t in map(run.get, keys) if t is not None)
            content = hash_json([hash_json([*t.key, t.status, t.answer, said(t)]) for t in found])
            occupancy = {} if worked is None else {"occupancy": worked.occupancy}
            return {"agent": mine, "trajectories": len(keys), "content": content, **occupancy}

        def discard() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        outputs = [folder / "run.json"]
        done = self.job.phase(f"{name}/rollout", inputs, work, part=part, outputs=outputs, discard=discard)
        return Run.open(folder), done["content"]

    def _ask(self, agent: Agent, questions: Sequence[Question], folder: Path, *, samples: int, seed: int) -> None:
        """Do this worker's runs, those that have failed before included.

        Raises:
            RestillError: more than a tenth failed, as when a server is away: such a phase is not done.
        """
        shard = self.job.shard
        run = rollout(agent, questions, out=folder, samples=samples, seed=seed, shard=shard, retry=True, **self.options)
        mine = agent.fingerprint
        count = sum(key.agent == mine and in_shard(key.question, shard) for key in run.keys())
        failed = [t.error for t in run.filter(status="error", agent=mine) if in_shard(t.question_key, shard)]
        told = f"{len(failed)} of {count} runs in {folder} failed, such as with: {failed[0]}" if failed else ""
        if len(failed) > MOST_FAILED * count:
            raise RestillError(f"{told}; mend that and call again: it asks only these once more")
        if told:
            self.job.say(told)

    def fit(self, name: str, mixture: Mixture, start: Path | None, train: TrainConfig) -> Path:
        """Train the base model, or what ``start`` holds, on ``mixture``; returns the folder of the result."""
        folder = self.job.out / name / "adapter"
        trainer, model = self._trainer(train, start), self.agent.model
        manifest = {
            "base": str(model.name),
            "base_fingerprint": str(model.fingerprint),
            "protocol": self.agent.plan.protocol,
            "few_shot": 0,
            "arm": name,
            "recipe": self.method.knobs(),
            "train_question_hashes": sorted(  # the weights know them all
                {str(e.provenance["question_key"]) for e in mixture}
                | trained_on(start)
                | trained_on(self.checkpoint.folder)
            ),
        }
        inputs = {
            "mixture": mixture.fingerprint,
            "recipe": train.recipe(),
            "base": str(model.fingerprint),
            "start": None if start is None else weights_hash(start),
        }

        def discard() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_name("adapter.training"), ignore_errors=True)

        def work() -> dict[str, Any]:
            self.job.say(f"{name}: training on {mixture.trajectories} trajectories, {mixture.tokens} tokens")
            trainer.fit(mixture, out=folder, manifest=manifest, progress=self.options["progress"])
            trim()
            facts = read_json(folder / "manifest.json")
            if facts["truncated"]:
                self.job.say(
                    f"{name}: {facts['truncated']} of {len(mixture)} examples are longer than a row and lose what is "
                    f"beyond token {train.row_length}; raise row_length"
                )
            told = {key: facts[key] for key in ("steps", "loss", "truncated")}
            return {"hash": weights_hash(folder), **told}

        self.job.phase(f"{name}/train", inputs, work, outputs=[folder / "manifest.json"], discard=discard)
        return folder

    def score_base(self, baseline: bool) -> None:
        """Score the agent as it is, unless it is left out and was not scored before."""
        if baseline or (self.job.out / "base" / "eval.json").exists():
            self.score("base", "base", self.agent)

    def score(
        self,
        name: str,
        arm: str,
        agent: Agent,
        adapter: Path | None = None,
        trajectories: int | None = None,
    ) -> None:
        """Ask ``agent`` the held-out questions, if there are any, and keep the scores as those of ``arm``.

        Args:
            adapter: what the agent was trained to; the scores are written into its manifest.
            trajectories: how many it was trained on.
        """
        if not self.held_out:
            return
        folder, path = self.job.out / name / "eval", self.job.out / name / "eval.json"
        asked = {"samples": self.eval_samples, "seed": self.seed}
        inputs = {
            "agent": agent.fingerprint,
            "questions": digest(self.held_out),
            **asked,
        }

        def part() -> None:
            self.job.say(f"{arm}: evaluating on {len(self.held_out)} questions")
            self._ask(agent, self.held_out, folder, **asked)

        def work() -> dict[str, Any]:
            scored = score_run(Run.open(folder), self.held_out, agent=agent.fingerprint, samples=self.eval_samples)
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

        self.job.phase(f"{name}/eval", inputs, work, part=part, outputs=[path])
        scored = EvalReport.model_validate_json(path.read_bytes())
        self.scored.append((arm, scored))
        seconds = sum(p["seconds"] for n, p in self.job.phases.items() if n.split("/")[0] == name)
        where = None if adapter is None else str(adapter)
        self.arms.append(Arm.of(arm, scored, trajectories=trajectories, adapter=where, seconds=round(seconds, 1)))

    def report(self, adapter: Path | None) -> Report:
        """Write the job's report.

        Args:
            adapter: what the job came to.
        """
        report = Report(
            out=str(self.job.out),
            questions=len(self.train),
            held_out=len(self.held_out),
            method=self.method.knobs(),
            arms=self.arms,
            deltas=differences(self.scored, comparisons([name for name, _ in self.scored])),
            adapter=None if adapter is None else str(adapter),
            phases=self.job.phases,
        )
        if self.job.leads:
            report.save()
        return report

    def _trainer(self, train: TrainConfig, start: Path | None) -> Trainer:
        checkpoint = self.checkpoint
        if train.method == "full" and start is not None and not (start / "adapter_config.json").is_file():
            from ..models.checkpoint.load import load_decoder

            checkpoint, start = load_decoder(str(start)), None
        return Trainer(checkpoint.config, checkpoint.params, train, start=start, tokenizer=checkpoint.tokenizer)

    def equip(self, trained: Path, agent: Agent) -> Agent:
        """The agent with what training made, served by the engine of ``agent`` if that rests and has the same base."""
        model = agent.model if agent.model.checkpoint is self.checkpoint else self.agent.model
        if (trained / "adapter_config.json").is_file():
            return self.agent.replace(model=model.with_adapter(trained), few_shot=0)
        whole = agent.model.with_weights(trained)
        return self.agent.replace(model=whole, few_shot=0)


def release(agent: Agent) -> None:
    """Let the engine rest: training needs its memory. It goes on when it is used."""
    rest = getattr(agent.model, "rest", None)
    if rest is not None:
        rest()
    trim()
