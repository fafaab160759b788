"""The M-step of TRICE and of its baselines: a training loop whose data are drawn from the model as it is now.

A checkpoint is the parameters, the optimiser and the source's state (TRICE's memories) of one step, or it is none: the
state is written first, and counts once the parameters of the same step are there. All else is a function of the seed
and the step, so that a job killed anywhere ends with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..models.errors import RestillError
from ..models.home import enable_compile_cache
from ..models.lora import merge
from .checkpoint import Checkpoints
from .files import read_json, write_json
from .lab import PARTS, Lab
from .latent_method import LatentMethod, Term
from .loss_log import LossLog
from .pack import micro_batch, pack
from .progress import Meter
from .steps import Sums, TrainSteps
from .trainer import Trainer


@jax.jit
def _both(first: Any, second: Any) -> tuple[Any, Any]:
    """Sum of two gradients, and the squared length of their difference."""
    off = jax.tree.map(jnp.subtract, first, second)
    return jax.tree.map(jnp.add, first, second), optax.tree.norm(off) ** 2


class Maximisation:
    """One training job.

    Args:
        trainer: initial parameters and how the result is written.
        method: the knobs; its source says what each step learns from.
        work: the folder of the unfinished state.
        identity: what decides the result; a folder of another job is refused.
    """

    def __init__(
        self, trainer: Trainer, lab: Lab, method: LatentMethod, work: Path, identity: Mapping[str, Any]
    ) -> None:
        self.trainer, self.lab, self.method, self.work = trainer, lab, method, work
        if (saved := read_json(work / "identity.json")) is not None and saved != dict(identity):
            raise RestillError(f"{work} was begun with other settings; delete it, or give another out")
        write_json(work / "identity.json", dict(identity))
        enable_compile_cache()
        self.initial, self.frozen, self.params = trainer.initial()
        self.steps = TrainSteps(trainer.config, trainer.train, self.params, self.frozen, total=method.steps)
        self.saves = Checkpoints(work / "checkpoints")
        self.log, self.times = LossLog(work / "train_log.jsonl"), LossLog(work / "times.jsonl")
        self.curve = LossLog(work / "curve.jsonl")
        self.trained_tokens = 0
        self.final_state: Any = None

    def run(self, *, progress: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The trained leaves (frozen low-rank ones among them), and a summary without times.
        """
        method, lab, train = self.method, self.lab, self.method.train
        source, state = method.source(), self.steps.init(self.initial)
        trained = dict(self.initial)
        done = max((s for s in self.saves.steps() if self._state(s).is_file()), default=0)
        if done:
            trained, state = self.saves.load(done, trained, state)
            saved = read_json(self._state(done))
            source.restore(saved["source"])
            lab.sampled, self.trained_tokens = saved["sampled"], saved["trained"]
            lab.seconds |= {
                k: v for row in self.times.rows() if row["step"] == done for k, v in row.items() if k in PARTS
            }
        for log in (self.log, self.times, self.curve):
            log.cut(done)
        lab.begin_at(done or -1)
        trained, state = self.steps.place(trained), self.steps.place(state)
        self._push(trained)
        if not done:
            begun = source.begin(lab)
            write_json(self.work / "begun.json", begun)
            self._measure(0, always=True)
        saved_at = time.monotonic()
        with Meter(method.arm, total=method.steps, done=done, show=progress) as meter:
            for step in range(done, method.steps):
                if self._spent():
                    break
                lab.at = step
                terms = source.step(lab, step)
                if terms.reset:
                    trained, state = self.steps.place(self.initial), self.steps.place(self.steps.init(self.initial))
                row: dict[str, Any] = {"step": step + 1, **terms.facts}
                if not terms.void:
                    with lab.timed("gradient"):
                        sums, spread = self._gradient(trained, terms.terms)
                        trained, state, loss, norm = self.steps.update(
                            trained, state, self._rate_step(step, terms.progress), sums
                        )
                    row |= {"surrogate": loss, "grad_norm": norm, "grad_variance": spread}
                if not terms.void or terms.reset:
                    self._push(trained)
                row |= {"terms": len(terms.terms), "sampled": lab.sampled, "trained": self.trained_tokens}
                self.log.append(row)
                self.times.append({"step": step + 1, **{k: round(v, 3) for k, v in lab.seconds.items()}})
                self._measure(step + 1)
                meter.advance(f"right {row['right']:.2f}" if "right" in row else "")
                now = time.monotonic()
                due = train.checkpoint_steps and (step + 1) % train.checkpoint_steps == 0
                if due or now - saved_at > train.checkpoint_seconds:
                    self._save(step + 1, trained, state, source.state())
                    saved_at = now
        self._measure(len(self.log.rows()), always=True)
        self.final_state = source.state()
        final = {name: np.asarray(leaf) for name, leaf in trained.items()}
        return final | self.frozen, self._summary()

    # -- one step

    def _gradient(self, trained: Mapping[str, Any], terms: list[Term]) -> tuple[Sums, float]:
        """The signed sum over the terms, and an estimate of its variance (the trace of its covariance).

        The minibatch's halves are as good as independent, and their expected gradients are alike: the squared length
        of the difference is what the sum varies by.
        """
        train, halves = self.method.train, []
        for half in (0, 1):
            examples = [e for t in terms if t.half == half for e in t.latent.weighted(t.weight)]
            self.trained_tokens += sum(e.targets for e in examples)
            rows = pack(examples, train.row_length) if examples else ()
            for at in range(0, len(rows), train.rows):
                part = np.arange(at, min(at + train.rows, len(rows)), dtype=np.int32)
                batch = micro_batch(rows, part, train.rows)  # pyright: ignore[reportArgumentType]
                self.steps.accumulate(trained, self.steps.lower(batch), batch)
            halves.append(self.steps.take(trained))
        gradient, spread = _both(halves[0].gradient, halves[1].gradient)
        return Sums(gradient, halves[0].loss + halves[1].loss, np.float32(1)), float(spread)

    def _push(self, trained: Mapping[str, Any]) -> None:
        with self.lab.timed("push"):
            leaves = {name: np.asarray(leaf) for name, leaf in trained.items()}
            if self.trainer.train.method == "full":
                params = {**self.params, **leaves}
            else:
                params = merge(self.params, {**self.frozen, **leaves}, alpha=self.trainer.train.alpha)
            self.lab.policy.push(params)

    def _rate_step(self, step: int, progress: float | None) -> float:
        """Where the schedule of the rate stands: by steps, or by tokens where they end the job sooner."""
        method = self.method
        if progress is not None:
            return progress * method.steps
        spent = [step / method.steps]
        spent += [self.trained_tokens / method.trained_tokens] if method.trained_tokens else []
        spent += [self.lab.sampled / method.sampled_tokens] if method.sampled_tokens and method.online else []
        return min(1.0, max(spent)) * method.steps

    def _spent(self) -> bool:
        method = self.method
        trained = method.trained_tokens and self.trained_tokens >= method.trained_tokens
        return bool(trained or (method.online and method.sampled_tokens and self.lab.sampled >= method.sampled_tokens))

    def _measure(self, step: int, *, always: bool = False) -> None:
        """A point of the learning curve, where one is due and not there yet."""
        every = self.method.eval_every
        due = every and self.lab.held_out and (always or step % every == 0)
        if due and all(row["step"] != step for row in self.curve.rows()):
            self.curve.append({**self.lab.accuracy(step), "trained": self.trained_tokens})

    # -- what stays

    def _state(self, step: int) -> Path:
        return self.work / "states" / f"{step}.json"

    def _save(self, step: int, trained: Mapping[str, Any], state: Any, source: Any) -> None:
        saved = {"source": source, "sampled": self.lab.sampled, "trained": self.trained_tokens}
        write_json(self._state(step), saved)
        self.saves.save(step, trained, state)
        for file in self._state(step).parent.glob("*.json"):
            if int(file.stem) not in self.saves.steps():
                file.unlink()

    def _summary(self) -> dict[str, Any]:
        rows = self.log.rows()
        kept = ("accepted", "right", "solved", "turnover", "age", "grad_variance")
        last = rows[-max(1, len(rows) // 5) :]
        means = {k: [float(row[k]) for row in last if k in row] for k in kept}
        return {
            "steps": len(rows),
            "sampled_tokens": self.lab.sampled,
            "trained_tokens": self.trained_tokens,
            "void_steps": sum("surrogate" not in row for row in rows),
            "zero_steps": sum("surrogate" in row and not row["terms"] for row in rows),
            **{f"last_{k}": float(np.mean(v)) for k, v in means.items() if v},
        }
