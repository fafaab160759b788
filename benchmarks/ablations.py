"""ReST meets ReAct: what each part of the loop is worth. Every arm, several seeds, paired.

A nano model reads one-hop questions of 48 Worlds (the base), then learns two-hop questions of another World:
from a scripted expert that makes mistakes (the pilot), then from itself. SmolLM2 needs no such base. Arms of one seed
share the pilot and its rollouts.

    python benchmarks/ablations.py --out runs/ablations --seeds 5
    python benchmarks/ablations.py --out runs/smollm2 --smollm2 --seeds 3 --arms "filtered;unfiltered, ranker adapter"
    python benchmarks/ablations.py --out runs/ablations --table

Killed at any time, the same command goes on. Finished cells are lines of ``results.jsonl``, which ``--results`` may
point anywhere: cells that are there are not run again, so that seeds can be run on different machines.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ablation_setup import (
    LABELLED_WORLD,
    NANO,
    NOISE,
    QUICK_NANO,
    QUICK_SMOLLM2,
    SMOLLM2,
    Lab,
    Scale,
    bits,
    gain,
    rights,
    seed_list,
)
from rich.console import Console
from rich.table import Table

from restill import Question, ReST, Run, improve, rollout
from restill.agents.scores import exact_match
from restill.agents.trajectory import Trajectory
from restill.models.checkpoint.load import load_decoder
from restill.models.student import parameter_count
from restill.selftrain.choice import Choice, choices
from restill.selftrain.feedback import CompletedRanker, Ranker
from restill.selftrain.files import hash_json
from restill.selftrain.pilot import Pilot
from restill.selftrain.plain import NEWER, plain
from restill.selftrain.ranker_adapter import AdapterStepRanker, train_ranker
from restill.selftrain.step_rankers import GoldStepRanker, InvertedStepRanker, RandomStepRanker, StepRanker


@dataclass(frozen=True)
class First:
    """Another ranker, shown only the first ``count`` trajectories of a question: as if no more had been grown."""

    count: int
    ranker: Ranker

    @property
    def needs_labels(self) -> bool:
        """As the ranker within."""
        return self.ranker.needs_labels

    def rank(self, question: Question, candidates: Sequence[Trajectory]) -> list[float]:
        """Scores; the others are vetoed."""
        scores = self.ranker.rank(question, candidates)
        return [s if t.sample < self.count else float("-inf") for s, t in zip(scores, candidates, strict=True)]


@dataclass(frozen=True)
class ArmPlan:
    """What differs in an arm.

    Attributes:
        grown: how many of the trajectories grown for a question are looked at.
        filtered: keep every right one, else every completed one.
        ranker: of the samples of a step; "adapter" is trained first. margin: its margin; 0 is the paper's way.
        shares: whether pilot and rollouts of the pilot's generation are those of the first arm.
        rival: the arm that it is compared with: one that differs in a single thing.
    """

    grown: int = 4
    filtered: bool = True
    ranker: str | None = None
    margin: float = field(default=0.0, metadata={NEWER: 0.0})
    generations: int = 1
    checks: bool = True
    noise: float = NOISE
    shares: bool = True
    rival: str = "filtered"

    def recipe(self, scale: Scale) -> str:
        """A hash of all that decides its cells but the seed."""
        return hash_json([plain(scale), {k: v for k, v in plain(self).items() if k != "rival"}])[:16]


def _unfiltered(ranker: str | None = None, generations: int = 1, rival: str = "unfiltered") -> ArmPlan:
    return ArmPlan(grown=1, filtered=False, ranker=ranker, generations=generations, rival=rival)


ARMS: dict[str, ArmPlan] = {
    "filtered": ArmPlan(generations=2, shares=False),
    "filtered, two grown": ArmPlan(grown=2),
    "filtered, one grown": ArmPlan(grown=1),
    "unfiltered": _unfiltered(generations=2, rival="filtered, one grown"),
    "unfiltered, ranker gold": _unfiltered("gold"),
    "unfiltered, ranker adapter": _unfiltered("adapter", generations=2),
    "unfiltered, ranker adapter with margin": replace(_unfiltered("adapter", generations=2), margin=2.0),
    "unfiltered, ranker random": _unfiltered("random"),
    "unfiltered, ranker inverted": _unfiltered("inverted"),
    "filtered, no checks": ArmPlan(checks=False, shares=False),
    "expert without noise": ArmPlan(generations=0, noise=0.0, shares=False),
}


class Seed:
    """One seed's arms."""

    def __init__(self, lab: Lab, base: str, seed: int) -> None:
        self.lab, self.base, self.seed, self.out = lab, base, seed, lab.out / f"seed{seed}"

    def run(self, name: str) -> list[dict[str, Any]]:
        """The cells (arm, stage) of one arm: scores, one bit a held-out question, costs."""
        plan, folder = ARMS[name], self.out / name.replace(", ", "-").replace(" ", "-")
        if plan.shares:
            _inherit(self.out / "filtered", folder)
        scale, lab = self.lab.scale, self.lab
        keep = scale.reward if plan.filtered else CompletedRanker()
        method = ReST(
            ranker=First(plan.grown, keep),
            step_ranker=self._ranker(plan.ranker, plan.margin),
            generations=plan.generations,
            samples=scale.grown,
            keep_per_question=plan.grown,
            temperature=0.7,
            start="base",
            replay=scale.replay,
            train=scale.tune,
            pilot=Pilot(questions=scale.pilot, samples=scale.piloted, noise=plan.noise),
        )
        agent = lab.agent(lab.model(self.base), lab.search, checks=plan.checks)
        report = improve(
            agent, lab.train, out=folder, method=method, eval=lab.held_out, seed=self.seed,
            baseline=lab.scale.model is None,  # a real model without examples takes half an hour to answer nothing
            deadline=None, progress=True,
        )  # fmt: skip
        agent.model.close()
        stages = {"base": "base", "pilot": "pilot", "gen1": "generation 1", "gen2": "generation 2"}
        return [
            self._cell(name, stage, arm, folder / stage, report.phases)
            for stage, arm in stages.items()
            if any(a.name == arm for a in report.arms)
        ]

    def _cell(self, name: str, stage: str, arm: str, folder: Path, phases: dict[str, Any]) -> dict[str, Any]:
        run = {t.question_key: t for t in Run.open(folder / "eval")}
        asked = self.lab.held_out
        found = [run[q.key] for q in asked]
        right = [exact_match(t.answer or "", q.answers) for t, q in zip(found, asked, strict=True)]
        drafts = [t.answer if t.draft is None else t.draft for t in found]
        drafted = [exact_match(d or "", q.answers) for d, q in zip(drafts, asked, strict=True)]
        mixed, ranked = phases.get(f"{stage}/mixture", {}), phases.get(f"{stage}/rank", {})
        return {
            "arm": name, "stage": arm, "seed": self.seed, "recipe": ARMS[name].recipe(self.lab.scale),
            "right": bits(right), "draft_right": bits(drafted),
            "searches": round(statistics.mean(len(t.calls()) for t in found), 3),
            "tokens": round(statistics.mean(t.usage.generated for t in found), 1),
            "answered": round(statistics.mean(t.status == "answered" for t in found), 4),
            "kept": mixed.get("kept"), "targets": mixed.get("targets"),
            "changed": ranked.get("changed"), "gold_agreement": ranked.get("gold_agreement"),
            "base_gold_agreement": ranked.get("base_gold_agreement"),
            "seconds": round(sum(p["seconds"] for n, p in phases.items() if n.split("/")[0] == stage), 1),
        }  # fmt: skip

    def _ranker(self, name: str | None, margin: float) -> StepRanker | None:
        made: dict[str, Callable[[], StepRanker]] = {
            "gold": GoldStepRanker,
            "random": RandomStepRanker,
            "inverted": lambda: InvertedStepRanker(GoldStepRanker()),
            "adapter": lambda: self._adapter(margin),
        }
        return None if name is None else made[name]()

    def _adapter(self, margin: float) -> AdapterStepRanker:
        """A LoRA on the base, from what the pilot did in a World with labels."""
        lab, scale, out = self.lab, self.lab.scale, self.out / "ranker"
        if not (out / "manifest.json").exists():
            world = lab.make_world(LABELLED_WORLD, scale.labelled, scale.hops)
            pilot = lab.model(self.base, self.out / "filtered" / "pilot" / "adapter")
            agent = lab.agent(pilot, lab.index(world, "labelled")).replace(temperature=0.7)
            run = rollout(agent, world.train, out=self.out / "labelled", samples=2, seed=self.seed, deadline=None)
            pilot.close()
            by_key = {q.key: q for q in world.train}
            read = agent.read
            listed: list[Choice] = [
                c for t in sorted(run, key=lambda t: t.key) if t.status == "answered"
                for c in choices(t, by_key[t.question_key], read=read) if len(c.candidates) > 1
            ]  # fmt: skip
            train_ranker(load_decoder(self.base), listed, out=out, train=scale.ranker_tune, progress=True)
        return AdapterStepRanker(model=lab.model(self.base).with_adapter(out), margin=margin)


def _inherit(source: Path, job: Path) -> None:
    """What arms share: base, pilot and its rollouts. Phases whose inputs differ are done anew by ``improve``."""
    if job.exists():
        return
    part = job.with_name(job.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("base", "pilot", "gen1/rollout"):
        if (source / name).exists():
            shutil.copytree(source / name, part / name)
    if (source / "gen1/rollout.done.json").exists():
        shutil.copy(source / "gen1/rollout.done.json", part / "gen1/rollout.done.json")
    shutil.rmtree(part / "gen1/rollout/rankings", ignore_errors=True)
    part.rename(job)


def table(cells: list[dict[str, Any]]) -> Table:
    """Mean and deviation over seeds, and what an arm gains over its pilot and its rival, paired by question."""
    by = {(c["arm"], c["stage"], c["seed"]): c for c in cells}
    seeds = sorted({c["seed"] for c in cells})
    shown = Table(title=f"seeds {', '.join(map(str, seeds))}; exact match, %; paired 95 % intervals over questions")
    for column in (
        "arm",
        "stage",
        "seeds",
        "EM",
        "before checks",
        "over its pilot",
        "over",
        "searches",
        "kept",
    ):
        shown.add_column(column, justify="left" if column in ("arm", "stage") else "right")
    for name in ARMS:
        for stage in ("base", "pilot", "generation 1", "generation 2"):
            own = [by[name, stage, s] for s in seeds if (name, stage, s) in by]
            if not own or (ARMS[name].shares and stage in ("base", "pilot")):
                continue
            scores = [100 * float(rights(c).mean()) for c in own]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            pilots = [by.get((name, "pilot", c["seed"])) for c in own]
            rival = ARMS[name].rival
            rivals = [by.get((rival, stage, c["seed"])) for c in own]
            shown.add_row(
                name, stage, str(len(own)), f"{statistics.mean(scores):.1f}{spread}",
                f"{100 * np.mean([rights(c, 'draft_right').mean() for c in own]):.1f}",
                "" if stage in ("base", "pilot") else gain(own, pilots),
                "" if name == rival or not any(rivals) else f"{gain(own, rivals)} {rival}",
                f"{statistics.mean(c['searches'] for c in own):.2f}",
                str(round(statistics.mean(c["kept"] for c in own))) if own[0]["kept"] else "",
            )  # fmt: skip
    return shown


def main(
    out: Annotated[Path, typer.Option(help="Folder of jobs and models.")] = Path("runs/ablations"),
    seeds: Annotated[str, typer.Option(help="How many seeds, or which: 5, or 0,3, or 3, with the comma.")] = "5",
    smollm2: Annotated[bool, typer.Option("--smollm2", help="SmolLM2-135M instead of a nano model.")] = False,
    arms: Annotated[str, typer.Option(help="Only these, separated by semicolons.")] = "",
    results: Annotated[Path | None, typer.Option(help="Where finished cells are kept; OUT/results.jsonl.")] = None,
    show: Annotated[bool, typer.Option("--table", help="Only print what is there.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: does it run? The numbers mean nothing.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write mean scores here, flat.")] = None,
) -> None:
    """Run what is missing, seed by seed, and print the table."""
    out = out.with_name(out.name + "-quick") if quick else out
    results = results or out / "results.jsonl"
    scale = ((QUICK_SMOLLM2, SMOLLM2) if smollm2 else (QUICK_NANO, NANO))[not quick]
    lines = results.read_text().splitlines() if results.exists() else []
    cells = [c for c in map(json.loads, lines) if c["arm"] in ARMS and c.get("recipe") == ARMS[c["arm"]].recipe(scale)]
    if len(cells) < len(lines):
        Console(stderr=True).print(f"{results}: {len(lines) - len(cells)} cells of another recipe are left aside")
    if not show:
        lab = Lab(out, scale)
        base = lab.base()
        Console(stderr=True).print(f"base: {parameter_count(load_decoder(base).config):,} parameters")
        for number in seed_list(seeds):
            for name in [a.strip() for a in arms.split(";")] if arms else ARMS:
                if any((c["arm"], c["seed"]) == (name, number) for c in cells):
                    continue
                if name == "filtered, two grown" and scale.grown <= 2:
                    continue  # that is "filtered"
                started = time.monotonic()
                made = Seed(lab, base, number).run(name)
                cells += made
                results.parent.mkdir(parents=True, exist_ok=True)
                with results.open("a") as file:
                    file.writelines(json.dumps(cell) + "\n" for cell in made)
                    file.flush()
                    os.fsync(file.fileno())
                Console(stderr=True).print(f"seed {number}, {name}: {time.monotonic() - started:.0f} s")
    Console(width=160).print(table(cells))
    if json_out:
        scores: dict[str, list[float]] = {}
        for cell in cells:
            scores.setdefault(f"{cell['arm']}: {cell['stage']}", []).append(float(np.mean(rights(cell))))
        json_out.write_text(json.dumps({name: statistics.mean(found) for name, found in scores.items()}, indent=1))


if __name__ == "__main__":
    typer.run(main)
