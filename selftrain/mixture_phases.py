"""The phases of a job between rolling out and training: keep, rank, mix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..agents.agent import Agent
from ..agents.run import Run
from ..agents.search.agent import SearchAgent
from ..agents.trajectory import Key, Trajectory
from ..models.errors import RestillError
from .files import hash_json, write_atomic
from .mixture import Mixture
from .phases import AnyMethod, Phases
from .pilot import Pilot
from .plain import models, plain
from .rerank import Rankings, load_rankings, rerank
from .selection import Kept
from .step_rankers import StepRanker

_AFTER_KEEPING = ("generations", "step_ranker", "mode", "start", "replay", "train")
"""Knobs of the method that do not decide what is kept of a run."""


class MixturePhases(Phases[AnyMethod]):
    """From a run to what the model is trained on."""

    def keep(self, name: str, run: Run, content: str, choose: Callable[[], list[Kept]]) -> list[Kept]:
        """Which trajectories of a run to learn from.

        Args:
            content: the run's hash, and what else ``choose`` depends on besides the method.

        Raises:
            RestillError: nothing is worth keeping, or the file of an earlier call is damaged.
        """
        path = self.job.out / name / "kept.jsonl"
        settings = {k: v for k, v in self.method.knobs().items() if k not in _AFTER_KEEPING}

        def work() -> dict[str, Any]:
            if not (kept := choose()):
                raise _nothing(name, run)
            rows = [{"trajectory": k.key.id, "key": list(k.key), "score": k.score} for k in kept]
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            return {"kept": len(kept), "kept_questions": len({k.key.question for k in kept})}

        self.job.phase(f"{name}/keep", {"rollout": content, "method": settings}, work, outputs=[path])
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [Kept(Key(*row["key"]), row["score"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise RestillError(f"{path} does not say what was kept ({error}); delete it and call again") from None

    def rank(self, name: str, run: Run, kept: Sequence[Kept], agent: Agent, ranker: StepRanker) -> Rankings:
        """The ranker's orders over the steps of what is kept, which stay beside the run; the phase tells how they
        agree.

        Args:
            agent: what made the run, as far as its prompts and actions go.
        """
        others, keys = models(ranker), {k.key for k in kept}
        settings = {"ranker": plain(ranker), "model": others.pop("model", None), "kept": _hash(kept)}
        settings |= {"models": others} if others else {}
        path = run.path / "rankings" / "steps.jsonl"

        def rankings(shard: tuple[int, int] | None = None) -> Rankings:
            return rerank(
                run, ranker, self.train, name="steps", settings=settings, tokenizer=agent.model.tokenizer,
                read=agent.read if isinstance(agent, SearchAgent) else None, among=keys, shard=shard,
            )  # fmt: skip

        def part() -> None:
            self.job.say(f"{name}: ranking the samples of {len(keys)} trajectories")
            if self.job.shard[1] > 1:
                rankings(self.job.shard)

        def discard() -> None:
            for file in (path, *path.parent.glob("steps-*.part")):
                file.unlink(missing_ok=True)

        self.job.phase(
            f"{name}/rank", settings, lambda: dict(rankings().stats), part=part, outputs=[path], discard=discard
        )
        return load_rankings(path)

    def mix(
        self,
        name: str,
        run: Run,
        kept: Sequence[Kept],
        replayed: Mixture | None,
        *,
        rankings: Rankings | None = None,
        told: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory,
    ) -> Mixture:
        """What is kept of a run, and all that is ``replayed``, as training examples.

        Args:
            rankings: of its steps, which decide what each of them teaches.
            told: how a trajectory is told to the learner.

        Raises:
            RestillError: there is nothing in it to learn, or the run lost a trajectory.
        """
        path = self.job.out / name / "mixture.jsonl"
        inputs = {
            "kept": _hash(kept),
            "mode": self.method.mode,
            "replayed": None if replayed is None else replayed.fingerprint,
            "rankings": None if rankings is None else rankings.fingerprint,
        }

        def taught() -> Iterator[Trajectory]:
            for k in kept:
                if (found := run.get(k.key)) is None:
                    raise RestillError(f"{run.path} lost {k.key.id}; delete {name}/rollout.done.json and call again")
                yield told(found if rankings is None else rankings.of(found))

        def work() -> dict[str, Any]:
            mixture = Mixture.from_trajectories(taught(), scores=[k.score for k in kept], mode=self.method.mode)
            if not mixture:
                raise _nothing(name, run)
            if replayed is not None:
                mixture = Mixture.of([*mixture, *replayed])
            mixture.save(path)
            return {
                "rolled_out": len(run),
                "kept": len(kept),
                "kept_questions": len({k.key.question for k in kept}),
                "examples": len(mixture),
                "tokens": mixture.tokens,
                "targets": mixture.targets,
                "sha256": mixture.fingerprint,
            }

        self.job.phase(f"{name}/mixture", inputs, work, outputs=[path])
        return Mixture.load(path)

    def pilot_mixture(self, pilot: Pilot) -> Mixture:
        """What the pilot is trained on: its guided runs, as examples."""
        chosen = pilot.choose(self.train, self.seed)
        run, content = self.roll_out("pilot", pilot.guided(self.agent, chosen), chosen, pilot.samples)
        kept = self.keep("pilot", run, content, lambda: pilot.keep(self.agent, run, chosen))
        return self.mix("pilot", run, kept, None, told=lambda found: pilot.told(self.agent, found))


def _hash(kept: Sequence[Kept]) -> str:
    return hash_json([[*k.key, k.score] for k in kept])


def _nothing(name: str, run: Run) -> RestillError:
    return RestillError(
        f"{name}: none of the {len(run)} trajectories in {run.path} is worth keeping; look at them with "
        f"`restill show {run.path}`, then raise samples, or begin with a (larger) pilot"
    )
