"""``improve`` with TRICE or one of its baselines: base, pilot, one long training on what the model draws, scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..models.errors import RestillError
from ..models.memory import trim
from .baselines import DRAWS
from .checks import trained_on
from .digests import digest, weights_hash
from .em import Maximisation
from .files import hash_json, read_json, write_json
from .lab import Lab
from .latent_method import LatentMethod
from .mixture_phases import MixturePhases
from .phases import release
from .policy import Policy
from .report import Report


class LatentImprovement(MixturePhases[LatentMethod]):
    """The flow of one job."""

    def run(self, baseline: bool) -> Report:
        """Go through all phases, and write the report."""
        method, agent = self.method, self.agent
        self.score_base(baseline)
        own = agent.model.adapter
        start = None if own is None or method.start == "base" else Path(own.path)
        if method.pilot is not None:
            mixture = self.pilot_mixture(method.pilot)
            release(agent)
            start = self.fit("pilot", mixture, start, method.pilot.train or method.train)
            agent = self.equip(start, agent)
            self.score("pilot", "pilot", agent, start, mixture.trajectories)
            start = None if method.start == "base" else start
        release(agent)
        trained = self.maximise(method, start)
        agent = self.equip(trained, agent)
        self.score(method.arm, method.arm, agent, trained, len(self.train))
        release(agent)
        return self.report(trained)

    def maximise(self, method: LatentMethod, start: Path | None) -> Path:
        """Train on latents from ``start`` (or the base model); the guide's runs and the last state stay beside it."""
        home = self.job.out / method.arm
        folder, work = home / "adapter", home / "adapter.training"
        model, trainer = self.agent.model, self._trainer(method.train, start)
        inputs: dict[str, Any] = {
            "method": {k: v for k, v in method.knobs().items() if k not in ("train", "pilot")},
            "recipe": method.train.recipe(),
            "agent": self.agent.fingerprint,
            "questions": digest(self.train),
            "held_out": digest(self.held_out) if method.eval_every else None,
            "start": None if start is None else weights_hash(start),
            "seed": self.seed,
        }

        def discard() -> None:
            for path in (folder, work, home / "guide"):
                shutil.rmtree(path, ignore_errors=True)
            (home / DRAWS).unlink(missing_ok=True)

        def draw_and_train() -> dict[str, Any]:
            if folder.is_dir():  # killed between the end of the training and that of the phase
                made = read_json(home / "result.json")
                if made is None or made["inputs"] != hash_json(inputs):
                    raise RestillError(f"{folder} was trained with other settings; move it away, or use another out")
                return {"hash": weights_hash(folder), **made["result"]}
            each = f" of {method.minibatch} questions" if method.online else ""
            self.job.say(f"{method.arm}: {method.steps} steps{each}")
            policy = Policy(
                self.checkpoint, slots=method.slots, max_context=min(method.max_context, model.max_context)
            )  # fmt: skip
            lab = Lab(
                self.agent, policy, self.train, method, seed=self.seed, folder=home,
                held_out=self.held_out if method.eval_every else (),
            )  # fmt: skip
            try:
                job = Maximisation(trainer, lab, method, work, {"inputs": hash_json(inputs)})
                leaves, summary = job.run(progress=self.options["progress"])
            finally:
                policy.close()
            facts = {
                "base": str(model.name),
                "base_fingerprint": str(model.fingerprint),
                "protocol": self.agent.plan.protocol,
                "few_shot": 0,
                "arm": method.arm,
                "recipe": self.method.knobs(),
                "train_question_hashes": sorted(
                    {q.key for q in self.train} | trained_on(start) | trained_on(self.checkpoint.folder)
                ),
                "begun": read_json(work / "begun.json"),
                **summary,
            }
            write_json(home / "state.json", job.final_state)
            result = {**summary, "shares": lab.shares(), "checker_errors": lab.checker_errors}
            write_json(home / "result.json", {"inputs": hash_json(inputs), "result": result})
            trainer.export(leaves, folder, work, facts)
            trim()
            return {"hash": weights_hash(folder), **result}

        made = self.job.phase(
            f"{method.arm}/train", inputs, draw_and_train, outputs=[folder / "manifest.json"], discard=discard
        )
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in made["shares"].items())
        self.job.say(f"{method.arm}: wall time: {shares}")
        return folder
