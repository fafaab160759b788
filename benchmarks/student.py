"""A student a hundred times smaller: SmolLM2 learns a World's questions, a nano model learns from what it then does.

    python benchmarks/student.py --out runs/student

The teacher is SmolLM2-135M, trained on a scripted expert. Its right trajectories teach a nano model that has read
one-hop questions of other Worlds: once the tokens themselves, once 256 tokens drawn from the teacher's distribution at
each position. The first of these then goes through one generation of its own. All answer the same held-out questions
over the same index within the same budgets; OUT/cells.jsonl says which of them each has right. Killed at any time, the
same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from ablation_setup import NANO, PARENT, QUICK_NANO, SMOLLM2, Lab, Scale, bits
from rich.console import Console
from rich.table import Table

from restill import EvalReport, JaxChatModel, Question, ReST, SearchAgent, distill, improve, rollout
from restill.agents.evaluate import evaluate
from restill.models.student import Taught, parameter_count
from restill.selftrain.feedback import GoldRanker, RandomRanker
from restill.selftrain.mixture import Mixture
from restill.selftrain.pilot import Pilot
from restill.selftrain.selection import select

STUDENT = dataclasses.replace(
    NANO, parameters=1_300_000, hops={1: 0.5, 2: 0.5}, train=400, pilot=400, grown=3,
    steps=16, step_tokens=64, context=1024,
)  # fmt: skip
TIMED = 64
"""Questions of which tokens are counted by the second."""


class Lessons:
    """Teacher and students, over one World.

    Args:
        scale: of the student; the teacher's differs in the model and how it is trained.
    """

    def __init__(self, out: Path, scale: Scale, quick: bool) -> None:
        self.out, self.quick = out, quick
        tune = dataclasses.replace(SMOLLM2.tune, precision="bf16")
        self.lab = Lab(out, dataclasses.replace(scale, model=PARENT, tune=tune))
        self.nursery = Lab(out, scale)

    def teacher(self) -> Path:
        """The teacher's adapter: what a scripted expert taught it."""
        lab = self.lab
        agent = lab.agent(lab.model(PARENT), lab.search)
        method = ReST(generations=0, train=lab.scale.tune, start="base", pilot=Pilot(questions=lab.scale.pilot))
        report = improve(agent, lab.train, out=self.out / "teacher", method=method, deadline=None, progress=True)
        agent.model.close()
        assert report.adapter is not None
        return Path(report.adapter)

    def lessons(self, adapter: Path) -> Mixture:
        """What the teacher did right, by itself, over the training questions."""
        lab = self.lab
        agent = lab.agent(lab.model(PARENT, adapter), lab.search).replace(temperature=0.7, samples=1)
        out, grown = self.out / "taught", lab.scale.grown
        run = rollout(agent, lab.train, out=out, samples=grown, deadline=None, progress=True)
        agent.model.close()
        kept = select(RandomRanker() if self.quick else GoldRanker(), lab.train, run, keep_per_question=grown)
        return Mixture.from_trajectories(t for k in kept if (t := run.get(k.key)))

    def grown(self, student: Path) -> Path:
        """A student that has learnt from its own right trajectories over the same questions."""
        lab = self.nursery
        agent = lab.agent(lab.model(str(student)), lab.search)
        keep, samples = (RandomRanker(), 1) if self.quick else (GoldRanker(), 4)
        method = ReST(
            samples=samples, ranker=keep, keep_per_question=samples, start="base", train=lab.scale.tune, pilot=None
        )
        report = improve(agent, lab.train, out=self.out / "grown", method=method, deadline=None, progress=True)
        agent.model.close()
        assert report.adapter is not None
        return Path(report.adapter)

    def asked(self, name: str, model: JaxChatModel) -> tuple[EvalReport, float]:
        """The held-out score, and tokens a second over some questions, asked twice (the first time compiles)."""
        agent = self.lab.agent(model, self.lab.search)
        report = evaluate(agent, self.lab.held_out, out=self.out / "eval" / name, seed=0, deadline=None, progress=True)
        speed = _speed(agent, self.lab.held_out[:TIMED], self.out / "timed" / name)
        model.close()
        return report, speed


def _speed(agent: SearchAgent, questions: Sequence[Question], out: Path) -> float:
    number = len(list(out.parent.glob(f"{out.name}-*")))  # what is finished would not be asked again
    for again in range(2):
        started = time.monotonic()
        run = rollout(agent, questions, out=out.with_name(f"{out.name}-{number + again}"), deadline=None)
        seconds = time.monotonic() - started
    return sum(t.usage.generated for t in run) / seconds


def main(
    out: Annotated[Path, typer.Option(help="Folder of the jobs.")] = Path("runs/student"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: does it run? The numbers mean nothing.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train teacher and students, and print the table of size, score and speed."""
    out = out.with_name(out.name + "-quick") if quick else out
    scale = dataclasses.replace(QUICK_NANO, grown=1) if quick else STUDENT
    school = Lessons(out, scale, quick)
    adapter = school.teacher()
    mixture = school.lessons(adapter)
    base = school.nursery.base(seen={token for e in mixture for token in e.tokens})
    models = {"teacher": school.lab.model(PARENT, adapter)}
    for name, logits in {"student, tokens": False, "student, 256 drawn": True}.items():
        folder = distill(
            PARENT, mixture, student=Taught(path=base), adapter=adapter, logits=logits, train=scale.tune,
            out=out / name.replace(", ", "-").replace(" ", "-"), progress=True,
        )  # fmt: skip
        models[name] = school.nursery.model(str(folder))
        if not logits:
            models[f"{name}, one generation"] = school.nursery.model(str(school.grown(folder)))
    models["student before"] = school.nursery.model(base)
    shown = Table(title=f"{len(school.lab.held_out)} held-out questions; {len(mixture)} trajectories of the teacher")
    for column in ("model", "parameters", "smaller by", "EM %", "of the teacher's", "tokens/s"):
        shown.add_column(column, justify="left" if column == "model" else "right")
    measures, cells, first = dict[str, float](), list[dict[str, Any]](), None
    for name, model in models.items():
        report, speed = school.asked(name, model)
        size = parameter_count(model.checkpoint.config)
        first = first or (size, report.em)
        share = report.em / first[1] if first[1] else 0.0
        shown.add_row(
            name,
            f"{size:,}",
            f"{first[0] / size:.0f}",
            f"{100 * report.em:.1f}",
            f"{100 * share:.0f} %",
            f"{speed:.0f}",
        )
        measures |= {f"{name}: parameters": size, f"{name}: em": report.em, f"{name}: tokens/s": speed}
        right = bits([row.em for row in report.rows])
        cells.append({"model": name, "parameters": size, "right": right, "speed": speed})
    (out / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    Console(width=120).print(shown)
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


if __name__ == "__main__":
    typer.run(main)
