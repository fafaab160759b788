"""What the induction circuit of a fresh nano model is worth: how well a passage is foreseen that was read before.

Two models of the same shape, seed, data and recipe, one with the circuit (``models/copying.py``), one without, read
documents of Worlds in which passages come again. Then other sequences of passages: next tokens right in a passage at
its first sight, and at its second, with others between.

    python benchmarks/copying.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from ablation_setup import PARENT, repeats

from restill import World
from restill.models.checkpoint.load import Checkpoint, load_decoder
from restill.models.decoder import forward
from restill.models.student import Nano, fresh_params, make_student
from restill.selftrain.mixture import Mixture
from restill.selftrain.trainer import TrainConfig, Trainer

BETWEEN, LENGTH = 4, 512


def foreseen(model: Checkpoint, lines: list[list[int]], count: int) -> tuple[float, float]:
    """Share of next tokens that are the likeliest, at a passage's first and second sight."""
    rng, first, second = random.Random(5), list[bool](), list[bool]()
    run = jax.jit(lambda params, tokens: forward(model.config, params, tokens))
    for _ in range(count):
        passage, *others = rng.sample(lines, 1 + BETWEEN)
        before = sum(others, list(passage))[: LENGTH - len(passage)]
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(before) + len(passage)] = [*before, *passage]
        right = np.asarray(run(model.params, tokens))[0, :-1].argmax(-1) == tokens[0, 1:]
        first += right[: len(passage) - 1].tolist()
        second += right[len(before) : len(before) + len(passage) - 1].tolist()
    return float(np.mean(first)), float(np.mean(second))


def main(
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that everything works.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train both, print the shares."""
    parent, sequences = load_decoder(PARENT), 40 if quick else 800
    worlds = [World.generate(entities=60 if quick else 300, seed=s, train=0, heldout=0) for s in range(30, 35)]
    texts = [f"[1] {d.title}: {d.text}\n" for w in worlds for d in w.documents]
    encoded = [parent.tokenizer.encode(text) for text in texts]
    seen = {token for line in encoded for token in line}
    student, vocabulary = make_student(parent, Nano(parameters=1_500_000), seen, seed=0)
    assert vocabulary is not None
    lines = [list(vocabulary.map(line)) for line in encoded]
    kept, asked = lines[: -len(lines) // 5], lines[-len(lines) // 5 :]
    config = TrainConfig(method="full", embeddings=True, lr=3e-3, epochs=1, rows=8, row_length=256)
    measures: dict[str, float] = {}
    for name, params in (("circuit", student.params), ("plain", fresh_params(student.config, 0))):
        trainer = Trainer(student.config, params, config, tokenizer=student.tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            trainer.fit(Mixture(tuple(repeats(kept, sequences))), out=Path(folder) / "model", progress=True)
            read = load_decoder(str(Path(folder) / "model"))
        fresh = Checkpoint("nano", student.config, params, student.tokenizer, "")
        for when, model in (("fresh", fresh), ("after reading", read)):
            first, second = foreseen(model, asked, 4 if quick else 24)
            measures |= {f"{name}, {when}: first sight": first, f"{name}, {when}: second sight": second}
            print(f"{name:8} {when:14} first sight {100 * first:.1f} %, second {100 * second:.1f} %", flush=True)
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


if __name__ == "__main__":
    typer.run(main)
