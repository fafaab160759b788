"""Does one ReST generation help, beyond what more training alone does? Several seeds, paired intervals.

Arms: the base model with few-shot examples; the pilot; generation 1 (the pilot trained on its own rollouts that a
reward filter kept); and a control (the same pilot trained on equally many rollouts of the same, kept at random).
Each seed has its own World. Killed at any time, the same command goes on.

    python benchmarks/first_light.py --out runs/first-light

Seeds are independent: on a machine of few cores, `taskset -c N python benchmarks/first_light.py --only SEED` in
parallel, then the plain command for the table, is the fastest way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from restill import Budget, EvalReport, JaxChatModel, ReActAgent, Retriever, World, improve
from restill.models.home import enable_compile_cache
from restill.retrieval.intervals import bootstrap_interval, paired_interval
from restill.selftrain.demo import ENCODER, MODEL, WORLD, recipe

ARMS = {"base": "base", "pilot": "pilot", "generation 1": "gen1", "control": "control"}
"""Arm to folder."""


def run_seed(seed: int, out: Path, heldout: int, train: int) -> dict[str, EvalReport]:
    """One seed's job; returns the evaluation of each arm."""
    world = World.generate(seed=seed, **{**WORLD, "entities": 300, "heldout": heldout, "train": train})
    folder = out / f"seed-{seed}"
    world.save(folder / "world")
    index = folder / "index"
    if not index.is_dir():
        Retriever.from_documents(world.documents, encoder=ENCODER, k=2, progress=True).save(index)
    retriever = Retriever.open(index, k=2)
    model = JaxChatModel.from_pretrained(MODEL, slots=32)
    agent = ReActAgent(model, tools=[retriever.as_tool()], budget=Budget(steps=5, seconds=None))
    improve(
        agent, world.train, out=folder / "job", method=recipe(), eval=world.heldout, seed=seed, control=True,
        deadline=None, progress=True,
    )  # fmt: skip
    return {
        arm: EvalReport.model_validate_json((folder / "job" / name / "eval.json").read_bytes())
        for arm, name in ARMS.items()
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder of the jobs.")] = Path("runs/first-light"),
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    heldout: Annotated[int, typer.Option(help="Held-out questions a seed.")] = 300,
    train: Annotated[int, typer.Option(help="Training questions a seed.")] = 300,
    only: Annotated[int | None, typer.Option(help="Run this seed and print nothing: one process per core.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, 20 questions: does it run?")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Run what is missing and print the table."""
    if quick:
        seeds, heldout, train, out = 1, 20, 40, out.with_name(out.name + "-quick")
    enable_compile_cache()
    if only is not None:
        run_seed(only, out, heldout, train)
        return
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    per_seed: dict[str, float] = {}
    for seed in range(1, seeds + 1):
        for arm, report in run_seed(seed, out, heldout, train).items():
            scores[arm] += [row.em for row in sorted(report.rows, key=lambda row: row.key)]
            per_seed[f"em {arm}, seed {seed}"] = report.em
    table = Table(title=f"{seeds} seeds x {heldout} held-out questions, exact match in %, 95 % intervals")
    for column in ("arm", "exact match", "minus pilot", "minus control"):
        table.add_column(column)
    measures = dict(per_seed)
    for arm, values in scores.items():
        measures[f"em {arm}"] = sum(values) / len(values)
        row = [arm, _cell(values, bootstrap_interval(values))]
        for other in ("pilot", "control"):
            deltas = [a - b for a, b in zip(values, scores[other], strict=True)]
            low, high = paired_interval(values, scores[other])
            row.append("" if arm == other else _cell(deltas, (low, high)))
            measures |= {f"{arm} - {other}": sum(deltas) / len(deltas), f"{arm} - {other} low": low}
        table.add_row(*row)
    Console().print(table)
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


def _cell(values: list[float], interval: tuple[float, float]) -> str:
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


if __name__ == "__main__":
    typer.run(main)
