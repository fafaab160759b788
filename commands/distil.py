"""The command that trains a small student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import DEFAULT_MODEL, AdapterOption, Bf16Option, JsonOption, ModelOption, SeedOption, print_json
from .making import fetch


def distill(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="MIXTURE...", help="mixture.jsonl files, or run directories (all trajectories)."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the job; running again goes on.")],
    student: Annotated[
        str,
        typer.Option(
            help="nano:1.3m (parameters, from scratch), layers:10 (of the teacher's), layers:10,pruned, or "
            "model:FOLDER, which goes on learning."
        ),
    ] = "nano:1.3m",
    logits: Annotated[
        bool, typer.Option("--logits", help="Learn from sampled teacher tokens at each position, as Gemma 3 does.")
    ] = False,
    draws: Annotated[int, typer.Option(min=1, help="With --logits: teacher tokens drawn at each position.")] = 256,
    context_weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Weight of what the teacher only read: prompts, observations.")
    ] = 0.0,
    docs: Annotated[
        list[str] | None,  # a Path would make https:/ of https://
        typer.Option("--docs", help="Documents whose words the student's vocabulary shall hold; may be repeated."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the mixture.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Packed rows in a step.")] = None,
    row_length: Annotated[int | None, typer.Option(min=8, help="Tokens in a row.")] = None,
    bf16: Bf16Option = False,
    model: ModelOption = DEFAULT_MODEL,
    adapter: AdapterOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a small student on what a large teacher (--model, --adapter) did.

    The student in the job's folder goes to the other commands with --model OUT/model --few-shot 0.
    """
    from dataclasses import replace

    from ..console import stdout
    from ..models.student import parse_student
    from ..selftrain.distill import default_recipe
    from ..selftrain.distill import distill as run_distill
    from ..selftrain.files import read_json

    fetch([model])
    kind = parse_student(student)
    given = {"epochs": epochs, "lr": lr, "rows": rows, "row_length": row_length, "precision": "bf16" if bf16 else None}
    folder = run_distill(
        model,
        data,
        student=kind,
        out=out,
        adapter=adapter,
        logits=logits,
        samples=draws,
        context_weight=context_weight,
        texts=_texts(docs or []),
        train=replace(default_recipe(kind), **{name: value for name, value in given.items() if value is not None}),
        seed=seed,
        progress=not json,
    )
    report = read_json(out / "distill.json")
    if json:
        print_json(report)
        return
    sizes, vocabulary = report["parameters"], report["student"]["vocabulary"]
    stdout().print(
        f"student: {folder}\n{sizes['student']:,} parameters over {vocabulary:,} tokens, "
        f"{sizes['teacher'] / sizes['student']:.0f} times fewer than the teacher; loss {report['train']['loss']:.3f}",
        markup=False,
        soft_wrap=True,
    )


def _texts(paths: list[str]) -> list[str]:
    """The texts of documents."""
    if not paths:
        return []
    from ..console import warn
    from ..retrieval.load import load

    loaded = load(*paths)
    for warning in loaded.warnings:
        warn(warning)
    return [f"{document.title}\n{document.text}" for document in loaded.documents]
