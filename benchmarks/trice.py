"""TRICE, with control variates and without, beside STaR, rejection sampling, filtered SFT, references, direct answers.

Every method starts from the same model and questions, and may draw and train on no more tokens than TRICE with the
control variate took at the same seed. A finished (model, task, seed, method) is a line in ``cells.jsonl``; the same
command goes on with what is missing, also on another machine that has the file.

    python benchmarks/trice.py --out runs/trice --model nano --seeds 5
    python benchmarks/trice.py --out runs/trice --model smollm2-135m --seeds 3 --methods trice,basic,star,rejection
    python benchmarks/trice.py --out runs/trice --bbh FILE.json --methods trice,filtered
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ablation_setup import seed_list
from rich.console import Console
from rich.table import Table
from trice_cells import METHODS, VOTES, make_setting, run_cell

from restill.models.errors import RestillError
from restill.selftrain.files import write_atomic
from restill.selftrain.plots import line_plot
from restill.selftrain.voting import Marks


def pooled(cells: Sequence[dict[str, Any]], field: str) -> Marks:
    """Marks of a question, the mean over seeds: they share the questions, so an interval is over those."""
    return Marks({key: float(np.mean([c[field][key] for c in cells])) for key in (cells[0][field] if cells else {})})


def show(cells: list[dict[str, Any]], console: Console) -> dict[str, float]:
    """Print a table for each model and task, and return its numbers, flat."""
    measures: dict[str, float] = {}
    for where in sorted({(c["model"], c["task"]) for c in cells}):
        mine = [c for c in cells if (c["model"], c["task"]) == where]
        by_method = {name: [c for c in mine if c["method"] == name] for name in METHODS}
        table = Table(title=f"{where[0]}, {where[1]}", title_justify="left")
        for column in ("method", "seeds", "greedy", "95 %", "over it: TRICE", f"vote of {VOTES}", "drawn", "trained",
                       "minutes", "sampling / scoring / gradient", "variance, last over first"):  # fmt: skip
            table.add_column(column, justify="left" if column == "method" else "right")
        table.add_row("base", "", *_accuracy(pooled(mine, "base")), *[""] * 7)
        for name, found in by_method.items():
            if not found:
                continue
            greedy, vote = pooled(found, "greedy"), pooled(found, "vote")
            shares = [np.mean([c["shares"][part] for c in found]) for part in ("sampling", "scoring", "gradient")]
            tokens = [float(np.mean([c[part] for c in found])) for part in ("sampled", "trained")]
            minutes = float(np.mean([c["seconds"] for c in found])) / 60
            shrunk = _shrunk(found)
            table.add_row(
                name, str(len(found)), *_accuracy(greedy), _gain(by_method["trice"], found), f"{100 * vote.mean:.1f} %",
                *(f"{t / 1000:.0f}k" for t in tokens), f"{minutes:.1f}",
                " / ".join(f"{100 * s:.0f}" for s in shares), "" if shrunk is None else f"{shrunk:.2f}",
            )  # fmt: skip
            label = f"{where[0]} {where[1]} {name}"
            measures |= {f"{label}: greedy": greedy.mean, f"{label}: vote": vote.mean}
            measures |= {f"{label}: {part} tokens": t for part, t in zip(("drawn", "trained"), tokens, strict=True)}
        console.print(table)
    return measures


def _accuracy(found: Marks) -> tuple[str, str]:
    low, high = found.interval
    return f"{100 * found.mean:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"


def _gain(trice: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """TRICE minus the other on the same seeds and questions, with the paired interval."""
    seeds = {c["seed"] for c in trice} & {c["seed"] for c in other}
    if not seeds or trice is other:
        return ""
    ours, theirs = (pooled([c for c in cells if c["seed"] in seeds], "greedy") for cells in (trice, other))
    gain, (low, high) = ours.over(theirs)
    return f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _shrunk(cells: list[dict[str, Any]]) -> float | None:
    """Gradient variance of the last fifth of the steps over that of the first fifth."""
    ratios = []
    for cell in cells:
        spread = [row[3] for row in cell["log"] if row[3] is not None]
        fifth = max(1, len(spread) // 5)
        if len(spread) > 1 and np.mean(spread[:fifth]) > 0:
            ratios.append(np.mean(spread[-fifth:]) / np.mean(spread[:fifth]))
    return float(np.mean(ratios)) if ratios else None


def draw_plots(cells: list[dict[str, Any]], out: Path) -> list[Path]:
    """Learning curves of all methods, and the gradient's variance of the two estimators, as SVG files."""
    made = []
    for model, task in sorted({(c["model"], c["task"]) for c in cells}):
        mine = [c for c in cells if (c["model"], c["task"]) == (model, task)]
        curves, spread = {}, {}
        for name in METHODS:
            found = [c for c in mine if c["method"] == name and c["seed"] == min(x["seed"] for x in mine)]
            if found:
                curves[name] = [(trained / 1000, 100 * accuracy) for _, trained, accuracy in found[0]["curve"]]
            if found and name in ("trice", "per-question", "basic"):
                spread[name] = [(row[0], row[3]) for row in found[0]["log"] if row[3] is not None]
        plots = {"curve": line_plot("curve", "held-out accuracy, %", curves, across="thousand tokens trained on")}
        if spread:
            plots["variance"] = line_plot("variance", "gradient variance", spread, logarithmic=True)
        for kind, svg in plots.items():
            made.append(out / f"{kind}-{model}-{task}.svg")
            write_atomic(made[-1], svg)
    return made


def main(
    out: Annotated[Path, typer.Option(help="Jobs, cells and plots.")] = Path("runs/trice"),
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that everything works.")] = False,
    model: Annotated[str, typer.Option(help="nano, or a model's name or folder.")] = "nano",
    seeds: Annotated[str, typer.Option(help="How many seeds, or which: 5, or 0,3, or 3, with the comma.")] = "5",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}; by commas.")] = ",".join(METHODS),
    steps: Annotated[int, typer.Option(help="Of TRICE; 0: 150 with a nano model, else 60.")] = 0,
    bbh: Annotated[Path | None, typer.Option(help="A BBH task, its prompt beside it, instead of chains.")] = None,
    gsm8k: Annotated[Path | None, typer.Option(help="GSM8K's training file, instead of chains.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Run the missing cells, print the table, draw the plots."""
    asked, console = methods.split(","), Console(width=180)
    if unknown := [name for name in asked if name not in METHODS]:
        raise typer.BadParameter(f"unknown method {unknown[0]!r}; choose of {', '.join(METHODS)}")
    if model == "nano" and (bbh or gsm8k):
        raise typer.BadParameter("the nano model knows chains alone; give --model smollm2-135m")
    out = out.with_name(out.name + "-quick") if quick else out
    out.mkdir(parents=True, exist_ok=True)
    setting, file = make_setting(model, quick, steps, bbh, gsm8k), out / "cells.jsonl"
    if "trice" not in asked:
        console.print("TRICE's tokens are the measure of all others: its cells are run too where they are missing")
    ordered = ["trice", *(name for name in METHODS if name in asked and name != "trice")]
    for seed in [0] if quick else seed_list(seeds):
        for name in ordered:
            cells = _cells(file)
            if (model, setting.task, seed, name) in cells:
                continue
            measure = cells.get((model, setting.task, seed, "trice"))
            caps = None if measure is None or name == "trice" else (measure["sampled"], measure["trained"])
            console.print(f"{model}, {setting.task}, seed {seed}: {name}", style="bold")
            place = out / f"{Path(model).name}-{setting.task}"
            try:
                cell = run_cell(setting, place, seed, name, caps)
            except RestillError as error:  # such as nothing right to learn from: the other methods go on
                console.print(f"no result: {error}", style="red")
                continue
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(cell) + "\n")
    cells = list(_cells(file).values())
    measures = show(cells, console)
    for plot in draw_plots(cells, out):
        console.print(f"drawn: {plot}")
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


def _cells(file: Path) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """Finished cells; a torn last line is none."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            cell = json.loads(line)
        except ValueError:
            continue
        found[cell["model"], cell["task"], cell["seed"], cell["method"]] = cell
    return found


if __name__ == "__main__":
    typer.run(main)
