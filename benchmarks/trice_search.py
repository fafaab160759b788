"""TRICE on trajectories beside ReST: the same pilot, the same questions, the same held-out score, and what each cost.

Goes on from the jobs of ``ablations.py`` (its arm "filtered"): the search agent with the pilot's model draws whole
trajectories, one for each question of a step, learns those that are right and unlearns the others. The first memories
are from the scripted expert that made the pilot, which has been trained on the like of them.

    python benchmarks/ablations.py --out runs/ablations --seeds 5 --arms filtered
    python benchmarks/trice_search.py --out runs/ablations --seeds 5

Killed at any time, the same command goes on. Finished cells are lines of OUT/trice.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from ablation_setup import NANO, QUICK_NANO, Lab, bits, gain, rights, seed_list
from rich.console import Console
from rich.table import Table

from restill import TRICE, Run, improve
from restill.agents.scores import exact_match
from restill.models.errors import RestillError
from restill.selftrain.mixture import Mixture
from restill.selftrain.trainer import TrainConfig
from restill.selftrain.trice_gradient import Estimator

STAGES = {"pilot": "pilot", "gen1": "ReST, generation 1", "gen2": "ReST, generation 2"}
TUNE = TrainConfig(method="full", embeddings=True, lr=3e-4, rows=2, row_length=1024, warmup=0.1)


def scored(lab: Lab, seed: int, name: str, folder: Path, drawn: int, trained: int) -> dict[str, Any]:
    """A cell: what a run over the held-out questions came to, and the tokens that its model cost since the pilot."""
    run = {t.question_key: t for t in Run.open(folder)}
    right = [exact_match(run[q.key].answer or "", q.answers) for q in lab.held_out]
    return {"stage": name, "seed": seed, "right": bits(right), "drawn": drawn, "trained": trained}


def rest_cells(lab: Lab, seed: int) -> list[dict[str, Any]]:
    """ReST's stages; a generation's cost is on top of that of the one before."""
    job, drawn, trained, cells = lab.out / f"seed{seed}" / "filtered", 0, 0, []
    for stage, name in STAGES.items():
        if not (job / stage / "eval.json").exists():
            raise RestillError(
                f"{job / stage} has no scores; run ablations.py --arms filtered with the same --out first"
            )
        if stage != "pilot":
            run = Run.open(job / stage / "rollout")
            drawn += sum(len(s.tokens) for t in run for step in t.steps for s in step.samples)
            trained += lab.scale.tune.epochs * Mixture.load(job / stage / "mixture.jsonl").targets
        cells.append(scored(lab, seed, name, job / stage / "eval", drawn, trained))
    return cells


def trice_cell(lab: Lab, seed: int, name: str, steps: int, estimator: Estimator) -> dict[str, Any]:
    """TRICE from ReST's pilot."""
    folder = lab.out / f"seed{seed}" / name.replace(", ", "-").replace(" ", "-")
    agent = lab.agent(lab.model(str(lab.out / f"seed{seed}" / "filtered" / "pilot" / "adapter")), lab.search)
    method = TRICE(
        steps=steps, estimator=estimator, minibatch=min(32, len(lab.train)), resampled=16, guide="expert",
        guide_samples=1, train=TUNE, slots=lab.scale.slots, max_context=TUNE.row_length, eval_every=max(1, steps // 3),
    )  # fmt: skip
    report = improve(
        agent, lab.train, out=folder, method=method, eval=lab.held_out, seed=seed, deadline=None, progress=True
    )
    made = report.phases[f"{method.arm}/train"]
    cell = scored(lab, seed, name, folder / method.arm / "eval", made["sampled_tokens"], made["trained_tokens"])
    return {**cell, "steps": made["steps"], "shares": made["shares"]}


def table(cells: list[dict[str, Any]]) -> Table:
    """Scores over seeds, paired gains, costs."""
    by, seeds = {(c["stage"], c["seed"]): c for c in cells}, sorted({c["seed"] for c in cells})
    shown = Table(title="exact match, %; paired 95 % intervals over questions; tokens since the pilot")
    first = STAGES["gen1"]
    for column in ("stage", "seeds", "EM", "over the pilot", "over generation 1", "drawn", "trained"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages(cells):
        own = [cell for seed in seeds if (cell := by.get((stage, seed)))]
        pilots, grown = ([by[name, cell["seed"]] for cell in own] for name in ("pilot", first))
        shown.add_row(
            stage, str(len(own)), f"{100 * np.mean([rights(c).mean() for c in own]):.1f}",
            "" if stage == "pilot" else gain(own, pilots),
            "" if stage in ("pilot", first) else gain(own, grown),
            *(f"{np.mean([c[cost] for c in own]) / 1000:.0f}k" for cost in ("drawn", "trained")),
        )  # fmt: skip
    return shown


def stages(cells: list[dict[str, Any]]) -> list[str]:
    """ReST's stages, then those of TRICE."""
    return [*STAGES.values(), *sorted({c["stage"] for c in cells} - set(STAGES.values()))]


def main(
    out: Annotated[Path, typer.Option(help="The folder of ablations.py.")] = Path("runs/ablations"),
    seeds: Annotated[str, typer.Option(help="How many seeds, or which: 5, or 0,3, or 3, with the comma.")] = "5",
    steps: Annotated[int, typer.Option(min=1, help="Of TRICE.")] = 90,
    estimator: Annotated[str, typer.Option(help="Of TRICE: control, basic or per-question.")] = "control",
    quick: Annotated[
        bool, typer.Option("--quick", help="After ablations.py --quick; the numbers mean nothing.")
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write mean scores and costs here, flat.")] = None,
) -> None:
    """Run what is missing, seed by seed, and print the table."""
    out = out.with_name(out.name + "-quick") if quick else out
    lab, file = Lab(out, QUICK_NANO if quick else NANO), out / "trice.jsonl"
    steps = 2 if quick else steps
    name = f"TRICE, {estimator}, {steps} steps"
    for seed in seed_list(seeds):
        cells = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        there = {c["stage"] for c in cells if c["seed"] == seed}
        missing = set(STAGES.values()) - there
        made = [cell for cell in rest_cells(lab, seed) if cell["stage"] in missing] if missing else []
        if name not in there:
            made.append(trice_cell(lab, seed, name, steps, cast(Estimator, estimator)))
        with file.open("a") as lines:
            lines.writelines(json.dumps(cell) + "\n" for cell in made)
    cells = [json.loads(line) for line in file.read_text().splitlines()]
    Console(width=140).print(table(cells))
    if json_out:
        measures = {"EM": lambda c: rights(c).mean(), "drawn": lambda c: c["drawn"], "trained": lambda c: c["trained"]}
        flat = {
            f"{stage}: {name}": float(np.mean([measure(c) for c in cells if c["stage"] == stage]))
            for stage in stages(cells)
            for name, measure in measures.items()
        }
        json_out.write_text(json.dumps(flat, indent=1))


if __name__ == "__main__":
    typer.run(main)
