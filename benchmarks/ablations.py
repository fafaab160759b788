"""ReST meets ReAct at nano scale: what each part of the loop is worth. Every arm, several seeds, paired.

A nano model reads one-hop questions of twenty Worlds (the base), then learns two-hop questions of another World: from a
scripted expert that makes mistakes (the pilot), then from itself. Arms of one seed share the pilot and its rollouts.

    python benchmarks/ablations.py --out runs/ablations --seeds 5
    python benchmarks/ablations.py --out runs/ablations --table

Killed at any time, the same command goes on. Finished cells are lines of ``results.jsonl``, which ``--results`` may
point anywhere: cells that are there are not run again, so that seeds can be run on different machines.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from restill import JaxChatModel, Question, ReST, Retriever, Run, SearchAgent, World, improve, rollout
from restill.agents.scores import exact_match
from restill.agents.trajectory import Trajectory
from restill.models.checkpoint.load import Checkpoint, load_decoder
from restill.models.student import Nano, make_student, parameter_count
from restill.retrieval.intervals import bootstrap_interval
from restill.retrieval.maintain import bring_up_to_date
from restill.selftrain.choice import Choice, choices
from restill.selftrain.feedback import CompletedRanker, GoldRanker, RandomRanker, Ranker
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.pilot import Pilot
from restill.selftrain.ranker_adapter import AdapterStepRanker, train_ranker
from restill.selftrain.search_expert import SearchExpertModel
from restill.selftrain.step_rankers import GoldStepRanker, InvertedStepRanker, RandomStepRanker, StepRanker
from restill.selftrain.trainer import TrainConfig, Trainer

PARENT = "smollm2-135m"
"""Its tokenizer, pruned, is the nano models'."""
READ_WORLDS, LABELLED_WORLD, ASKED_WORLD = range(30, 54), 60, 7
"""Seeds: Worlds whose documents (of the first twenty: also one-hop questions) make the base; the World with labels for
the ranker adapter; the World of the experiment. They share no entity."""
TAUGHT = 20


@dataclass(frozen=True)
class Scale:
    """How large the experiment is."""

    parameters: int = 1_500_000
    texts: int = 800
    one_hop: int = 600
    base_epochs: int = 1
    train: int = 240
    held_out: int = 300
    pilot: int = 240
    piloted: int = 2
    labelled: int = 120
    grown: int = 4
    slots: int = 32
    reward: Ranker = field(default_factory=GoldRanker)


QUICK = Scale(
    parameters=200_000, texts=40, one_hop=20, train=8, held_out=6, pilot=6, piloted=1, labelled=4, slots=4,
    reward=RandomRanker(),
)  # fmt: skip
"""A model this small is right nowhere, so a reward keeps anything."""
NOISE = 0.3
"""Share of the pilot's expert's steps that are a mistake; fixed before the first generation was run."""
FINE_TUNE = TrainConfig(method="full", embeddings=True, lr=1e-3, epochs=3, rows=2, row_length=768)
RANKER_TUNE = TrainConfig(lr=5e-3, epochs=3, rank=32, alpha=64.0, rows=2, row_length=1024)


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
        filtered: keep right ones only, else every completed one (one a question).
        ranker: of the samples of a step; "adapter" is trained first.
        shares: whether pilot and rollouts of the pilot's generation are those of the first arm.
    """

    grown: int = 4
    filtered: bool = True
    ranker: str | None = None
    generations: int = 1
    checks: bool = True
    noise: float = NOISE
    shares: bool = True


def _unfiltered(ranker: str | None = None, generations: int = 1) -> ArmPlan:
    return ArmPlan(grown=1, filtered=False, ranker=ranker, generations=generations)


ARMS: dict[str, ArmPlan] = {
    "filtered": ArmPlan(generations=2, shares=False),
    "filtered, two grown": ArmPlan(grown=2),
    "filtered, one grown": ArmPlan(grown=1),
    "unfiltered": _unfiltered(generations=2),
    "unfiltered, ranker gold": _unfiltered("gold"),
    "unfiltered, ranker adapter": _unfiltered("adapter", generations=2),
    "unfiltered, ranker random": _unfiltered("random"),
    "unfiltered, ranker inverted": _unfiltered("inverted"),
    "filtered, no checks": ArmPlan(checks=False, shares=False),
    "expert without noise": ArmPlan(generations=0, noise=0.0, shares=False),
}


class Lab:
    """What all seeds share: Worlds, indexes, the base."""

    def __init__(self, out: Path, scale: Scale) -> None:
        self.out, self.scale = out, scale
        entities, asked = (300, 1000) if scale.held_out > 50 else (60, 20)
        self.world = World.generate(
            entities=entities, seed=ASKED_WORLD, train=asked, heldout=scale.held_out, hops={2: 1.0}
        )
        self.train = random.Random("restill-ablations train").sample(self.world.train, scale.train)
        self.search = self._index(self.world, "asked")

    def _index(self, world: World, name: str) -> Retriever:
        folder = self.out / "worlds" / name
        if not (folder / "world.json").exists():
            world.save(folder)
        bring_up_to_date(folder / "index", [str(folder / "corpus.jsonl")], progress=False)
        return Retriever.open(folder / "index", mode="sparse")

    def agent(self, model: Any, search: Retriever, *, checks: bool = True) -> SearchAgent:
        """The agent of all arms: greedy when it is scored, four samples a step when it grows."""
        return SearchAgent(model, [search.as_tool()], few_shot=0, temperature=0.0, top_k=2, checks=checks)

    def model(self, folder: Path) -> JaxChatModel:
        """A model to serve."""
        return JaxChatModel.from_pretrained(folder, precision="f32", slots=self.scale.slots, max_context=2048)

    def base(self) -> Path:
        """The base: language and copying from documents, then one-hop questions of other Worlds."""
        scale, entities = self.scale, 300 if self.scale.one_hop > 50 else 60
        parent = load_decoder(PARENT)
        worlds = [
            World.generate(
                entities=entities, seed=s, train=scale.one_hop if i < TAUGHT else 0, heldout=0, hops={1: 1.0}
            )
            for i, s in enumerate(READ_WORLDS)
        ]
        taught: list[Example] = []
        for number, world in enumerate(worlds[:TAUGHT]):
            agent = self.agent(SearchExpertModel(parent.tokenizer, world.train), self._index(world, f"taught{number}"))
            run = rollout(agent, world.train, out=self.out / "worlds" / f"taught{number}" / "run")
            taught += Mixture.from_trajectories(sorted(run, key=lambda t: t.key))
        texts = [[f"{d.title}: {d.text}" for d in w.documents] for w in (*worlds, self.world)]
        encode = parent.tokenizer.encode
        spoken = [t for part in texts for t in part] + [q.question for q in self.world.train]
        seen = {t for e in taught for t in e.tokens} | {t for text in spoken for t in encode(text)}
        student, vocabulary = make_student(parent, Nano(parameters=scale.parameters), seen, seed=0)
        assert vocabulary is not None
        titled = {d.title: f"[1] {d.title}: {d.text}\n" for w in worlds for d in w.documents}
        lines = [vocabulary.map(encode(text)) for text in titled.values()]
        mapped = [dataclasses.replace(e, tokens=vocabulary.map(e.tokens)) for e in taught]
        read_first = TrainConfig(method="full", embeddings=True, lr=3e-3, epochs=1, rows=8, row_length=256)
        first = _fit(student, Mixture(tuple(repeats(lines, scale.texts))), read_first, self.out / "read")
        weighed = Mixture(
            tuple(dataclasses.replace(e, weights=(0.0, *[w or 0.1 for w in e.weights[1:]])) for e in mapped)
        )
        then = TrainConfig(method="full", embeddings=True, lr=2e-3, epochs=scale.base_epochs, rows=3, row_length=768)
        return _fit(load_decoder(str(first)), weighed, then, self.out / "base")


def _fit(start: Checkpoint, mixture: Mixture, train: TrainConfig, out: Path) -> Path:
    return Trainer(start.config, start.params, train, tokenizer=start.tokenizer).fit(mixture, out=out, progress=True)


def repeats(lines: Sequence[Sequence[int]], count: int) -> list[Example]:
    """Sequences of 256 tokens in which passages come again: what teaches a model to copy."""
    rng, examples = random.Random(1), []
    for _ in range(count):
        chosen = rng.sample(range(len(lines)), 3)
        tokens = [t for i in [*chosen, *(rng.choice(chosen) for _ in range(4))] for t in lines[i]][:256]
        weights = (0.0, *[1.0] * (len(tokens) - 1))
        examples.append(Example(tokens=tuple(tokens), weights=weights, provenance={"question_key": "none"}))
    return examples


class Seed:
    """One seed's arms."""

    def __init__(self, lab: Lab, base: Path, seed: int) -> None:
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
            step_ranker=self._ranker(plan.ranker),
            generations=plan.generations,
            samples=scale.grown,
            temperature=0.7,
            start="base",
            train=FINE_TUNE,
            pilot=Pilot(questions=scale.pilot, samples=scale.piloted, noise=plan.noise),
        )
        agent = lab.agent(lab.model(self.base), lab.search, checks=plan.checks)
        report = improve(
            agent, lab.train, out=folder, method=method, eval=lab.world.heldout, seed=self.seed,
            concurrency=scale.slots, deadline=None, progress=True,
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
        asked = self.lab.world.heldout
        found = [run[q.key] for q in asked]
        right = [exact_match(t.answer or "", q.answers) for t, q in zip(found, asked, strict=True)]
        drafts = [t.answer if t.draft is None else t.draft for t in found]
        drafted = [exact_match(d or "", q.answers) for d, q in zip(drafts, asked, strict=True)]
        mixed, ranked = phases.get(f"{stage}/mixture", {}), phases.get(f"{stage}/rank", {})
        return {
            "arm": name, "stage": arm, "seed": self.seed, "right": _bits(right), "draft_right": _bits(drafted),
            "searches": round(statistics.mean(len(t.calls()) for t in found), 3),
            "tokens": round(statistics.mean(t.usage.generated for t in found), 1),
            "answered": round(statistics.mean(t.status == "answered" for t in found), 4),
            "kept": mixed.get("kept"), "targets": mixed.get("targets"),
            "changed": ranked.get("changed"), "gold_agreement": ranked.get("gold_agreement"),
            "base_gold_agreement": ranked.get("base_gold_agreement"),
            "seconds": round(sum(p["seconds"] for n, p in phases.items() if n.split("/")[0] == stage), 1),
        }  # fmt: skip

    def _ranker(self, name: str | None) -> StepRanker | None:
        made: dict[str, Callable[[], StepRanker]] = {
            "gold": GoldStepRanker,
            "random": RandomStepRanker,
            "inverted": lambda: InvertedStepRanker(GoldStepRanker()),
            "adapter": self._adapter,
        }
        return None if name is None else made[name]()

    def _adapter(self) -> AdapterStepRanker:
        """A LoRA on the base, from what the pilot did in a World with labels."""
        lab, scale, out = self.lab, self.lab.scale, self.out / "ranker"
        if not (out / "manifest.json").exists():
            entities = 300 if scale.held_out > 50 else 60
            world = World.generate(
                entities=entities, seed=LABELLED_WORLD, train=scale.labelled, heldout=0, hops={2: 1.0}
            )
            pilot = lab.model(self.out / "filtered" / "pilot" / "adapter")
            agent = lab.agent(pilot, lab._index(world, "labelled")).replace(temperature=0.7)
            run = rollout(agent, world.train, out=self.out / "labelled", samples=2, seed=self.seed, deadline=None)
            pilot.close()
            by_key = {q.key: q for q in world.train}
            read = agent.read
            listed: list[Choice] = [
                c for t in sorted(run, key=lambda t: t.key) if t.status == "answered"
                for c in choices(t, by_key[t.question_key], read=read) if len(c.candidates) > 1
            ]  # fmt: skip
            train_ranker(load_decoder(str(self.base)), listed, out=out, train=RANKER_TUNE, progress=True)
        return AdapterStepRanker(model=lab.model(self.base).with_adapter(out))


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


def _bits(values: Sequence[float]) -> str:
    return "".join("1" if v else "0" for v in values)


def table(cells: list[dict[str, Any]]) -> Table:
    """Mean and deviation over seeds, and what an arm gains over its pilot and over "filtered", paired by question."""
    by = {(c["arm"], c["stage"], c["seed"]): c for c in cells}
    seeds = sorted({c["seed"] for c in cells})
    shown = Table(title=f"seeds {', '.join(map(str, seeds))}; exact match, %; paired 95 % intervals")
    for column in (
        "arm",
        "stage",
        "seeds",
        "EM",
        "before checks",
        "over its pilot",
        "over filtered",
        "searches",
        "kept",
    ):
        shown.add_column(column, justify="left" if column in ("arm", "stage") else "right")
    for name in ARMS:
        for stage in ("base", "pilot", "generation 1", "generation 2"):
            own = [by[name, stage, s] for s in seeds if (name, stage, s) in by]
            if not own or (ARMS[name].shares and stage in ("base", "pilot")):
                continue
            scores = [100 * float(_array(c["right"]).mean()) for c in own]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            pilots = [by.get((name, "pilot", c["seed"])) for c in own]
            rivals = [by.get(("filtered", stage, c["seed"])) for c in own]
            shown.add_row(
                name, stage, str(len(own)), f"{statistics.mean(scores):.1f}{spread}",
                f"{100 * np.mean([np.mean(_array(c['draft_right'])) for c in own]):.1f}",
                "" if stage in ("base", "pilot") else _gain(own, pilots),
                "" if name == "filtered" else _gain(own, rivals),
                f"{statistics.mean(c['searches'] for c in own):.2f}",
                str(round(statistics.mean(c["kept"] for c in own))) if own[0]["kept"] else "",
            )  # fmt: skip
    return shown


def _array(bits: str) -> np.ndarray:
    return np.array([bit == "1" for bit in bits], float)


def _gain(own: list[dict[str, Any]], others: Sequence[dict[str, Any] | None]) -> str:
    """Mean difference, its interval over questions (a question's differences are averaged over seeds first)."""
    pairs = [(_array(a["right"]), _array(b["right"])) for a, b in zip(own, others, strict=True) if b is not None]
    if not pairs:
        return ""
    means = np.mean([a - b for a, b in pairs], axis=0)
    low, high = bootstrap_interval(means.tolist(), 0)
    return f"{100 * means.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main(
    out: Annotated[Path, typer.Option(help="Folder of jobs and models.")] = Path("runs/ablations"),
    seeds: Annotated[str, typer.Option(help="How many seeds, or which: 5, or 0,3.")] = "5",
    arms: Annotated[str, typer.Option(help="Only these, separated by semicolons.")] = "",
    results: Annotated[Path | None, typer.Option(help="Where finished cells are kept; OUT/results.jsonl.")] = None,
    show: Annotated[bool, typer.Option("--table", help="Only print what is there.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: does it run? The numbers mean nothing.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write mean scores here, flat.")] = None,
) -> None:
    """Run what is missing, seed by seed, and print the table."""
    out = out.with_name(out.name + "-quick") if quick else out
    results = results or out / "results.jsonl"
    cells = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if not show:
        lab = Lab(out, QUICK if quick else Scale())
        base = lab.base()
        Console(stderr=True).print(f"base: {parameter_count(load_decoder(str(base)).config):,} parameters")
        for number in [int(s) for s in seeds.split(",")] if "," in seeds else range(int(seeds)):
            for name in [a.strip() for a in arms.split(";")] if arms else ARMS:
                if any((c["arm"], c["seed"]) == (name, number) for c in cells):
                    continue
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
            scores.setdefault(f"{cell['arm']}: {cell['stage']}", []).append(float(np.mean(_array(cell["right"]))))
        json_out.write_text(json.dumps({name: statistics.mean(found) for name, found in scores.items()}, indent=1))


if __name__ == "__main__":
    typer.run(main)
