"""How fast is training? restill's trainer beside torch + transformers: the same weights and packed rows, in turns.

    pip install -e '.[bench]' && python benchmarks/training.py

Every trainer is a process of its own that waits while the others are measured. Rows are logged agent transcripts
(``replay.jsonl``), packed without attention between them. Medians over the rounds, then the ratio of restill to torch
in each precision; the first losses of the f32 trainers must be equal. restill's bf16 is mixed precision, torch's is
bf16 throughout, AdamW's state as well. Nano models are trained from scratch, all weights.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from engine import MODEL, REPLAY, Served, transcripts_of
from rich.console import Console
from rich.table import Table

from restill.models.checkpoint.load import load_decoder, save_decoder_hf
from restill.models.student import Nano, make_student
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.pack import pack

NANO = ("1m", "3m", "8m")
SYSTEMS = {
    f"{name} {short}": (kind, dtype)
    for name, kind in (("restill", "ours"), ("torch", "torch"))
    for short, dtype in (("f32", "float32"), ("bf16", "bfloat16"))
}


def mixture() -> Mixture:
    """What was logged, as training examples: weight 1 on what the model wrote."""
    examples = []
    for steps in transcripts_of(REPLAY):
        prompt, output = steps[-1]
        tokens, weights = [*prompt, *output], np.zeros(len(prompt) + len(output))
        for before, own in steps:
            weights[len(before) : len(before) + len(own)] = 1.0
        examples.append(Example(tokens=tuple(tokens), weights=tuple(weights.tolist())))
    return Mixture.of(examples)


def prepare(scratch: Path, models: list[str], length: int, size: int) -> dict[str, tuple[Path, Path]]:
    """The weights and the packed rows of every model, as files."""
    teacher, data = load_decoder(MODEL), mixture()
    found = {}
    for name in models:
        folder, packed = scratch / name, scratch / f"{name}.npz"
        if name == MODEL:
            checkpoint, mapped = teacher, data
        else:
            seen = {token for example in data for token in example.tokens}
            parameters = round(float(name.removesuffix("m")) * 1e6)
            checkpoint, vocabulary = make_student(teacher, Nano(parameters=parameters), seen)
            assert vocabulary is not None
            mapped = Mixture.of(Example(tokens=vocabulary.map(e.tokens), weights=e.weights) for e in data)
        save_decoder_hf(folder, checkpoint.config, checkpoint.params, checkpoint.tokenizer)
        rows = pack(mapped, length)
        if len(rows) < size:
            raise SystemExit(f"the transcripts fill {len(rows)} rows of {length}; --rows {size} is too many")
        names = ("tokens", "positions", "segments", "weights")
        np.savez(packed, **{n: getattr(rows, n) for n in names})
        found[name] = folder, packed
    return found


def measure(systems: dict[str, Served], rounds: int, steps: int) -> dict[str, list[float]]:
    """Tokens per second of every trainer over the rounds, after a check that all start with the same loss."""
    figures: dict[str, list[float]] = defaultdict(list)
    first = {name: system.ask(steps=1)["loss"] for name, system in systems.items()}
    exact = [loss for name, loss in first.items() if "bf16" not in name]
    if exact and max(exact) - min(exact) > 1e-3 * max(exact):
        raise SystemExit(f"these trainers do not do the same: first losses {first}")
    for system in systems.values():
        system.ask(steps=1)  # torch is slower in its first steps
    for _ in range(rounds):
        for name, system in systems.items():
            answer = system.ask(steps=steps)
            figures[name].append(answer["tokens"] / answer["seconds"])
            figures[f"{name}, MiB"] = [answer["mib"]]
    return figures


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one that warms up.")] = 3,
    rows: Annotated[int, typer.Option(help="Rows in a step.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens in a row.")] = 1024,
    only: Annotated[str, typer.Option(help="Only what has one of these in its name, with commas.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One round of one step, two models.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Measure, and print the table."""
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as the Makefile does; torch gains as well
    models = [MODEL, *NANO[: 1 if quick else None]]
    cases = [(model, method) for model in models for method in ("full", "lora")[: 2 if model == MODEL else 1]]
    rounds, figures = 1 if quick else rounds, {}
    pairs = {short: (f"restill {short}", f"torch {short}") for short in ("f32", "bf16")}
    table = Table(title=f"tokens per second, {rows} x {length} a step, {platform.machine()}, {date.today()}: medians")
    for column in ("", *SYSTEMS, *(f"restill / torch, {short}" for short in pairs)):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as scratch:
        files = prepare(Path(scratch), models, length, rows)
        for model, method in cases:
            folder, packed = map(str, files[model])
            chosen = {
                name: Served(kind, folder, method, dtype, packed, str(rows), program="trainers.py")
                for name, (kind, dtype) in SYSTEMS.items()
                if any(part in f"{name} {model} {method}" for part in only.split(","))
            }
            if not chosen:
                continue
            found = measure(chosen, rounds, 1 if quick else 2 if model == MODEL else 10)
            for system in chosen.values():
                system.close()
            medians = {name: statistics.median(values) for name, values in found.items()}
            figures |= {f"{name}: {model} {method}": value for name, value in medians.items()}
            ratios = {
                short: medians.get(ours, math.nan) / medians.get(theirs, math.nan)
                for short, (ours, theirs) in pairs.items()
            }
            figures |= {f"{model} {method}, restill over torch {n}": r for n, r in ratios.items() if r == r}
            cells = [
                *(f"{medians.get(name, math.nan):,.0f}" for name in SYSTEMS),
                *(f"{ratios[short]:.2f}" for short in pairs),
            ]
            table.add_row(f"{model} {method}", *cells)
            print(f"{model} {method}: {dict(medians)}", file=sys.stderr)
    Console(width=150).print(table)
    if json_out:
        json_out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
