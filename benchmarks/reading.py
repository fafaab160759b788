"""Reading alone: which expert, and which training, teach a small model to answer from passages in front of it.

An expert runs over the labelled questions that ``real.py`` learns from. The model is trained on its runs for four
fifths of them; of the others it is given the expert's run up to the last turn, which it writes greedily. So what a
search misses costs nothing here, and dev200 is not touched.

    python benchmarks/reading.py DATA --out runs/reading                      # as the run in docs/rest.md was trained
    python benchmarks/reading.py DATA --out runs/reading --expert reread --lr 1e-3
    python benchmarks/reading.py DATA --out runs/reading --weights full --lr 2e-4

A finished arm is a line of OUT/cells.jsonl. Each call prints all of them, each minus the first. Killed at any time, the
same command goes on.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from real import CONTEXT, SCRIPTS, TUNE, Expert, make_agent
from real_data import Part, read_parts
from rich.console import Console
from rich.table import Table

from restill import JaxChatModel, Question, Retriever, Run, rollout
from restill.agents.protocol import parse
from restill.agents.scores import exact_match, f1
from restill.models.checkpoint.load import load_decoder
from restill.models.engine.request import Request, Sampling
from restill.models.home import enable_compile_cache
from restill.selftrain.demo import ENCODER, MODEL
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.pilot import Pilot
from restill.selftrain.trainer import TrainConfig, Trainer
from restill.selftrain.voting import Marks


class Weights(StrEnum):
    """What is trained."""

    lora = "lora"
    full = "full"


def expert_runs(out: Path, questions: list[Question], expert: Expert) -> dict[str, Example]:
    """By question key, the expert's runs that found the answer, whole, as examples."""
    agent = make_agent(JaxChatModel.from_pretrained(MODEL), out / "index")
    pilot = Pilot(questions=len(questions), most=len(questions), script=SCRIPTS[expert])
    shown = pilot.choose(questions, seed=0)
    run: Run = rollout(pilot.guided(agent, shown), shown, out=out / expert, seed=0, deadline=None, progress=True)
    kept = [t for k in pilot.keep(agent, run, shown) if (t := run.get(k.key))]
    return {t.question_key: Mixture.from_trajectories([t])[0] for t in kept}


def held_out(parts: list[Part]) -> set[str]:
    """Keys of a fifth of each collection's questions, always the same."""
    rng = random.Random(1)
    return {key for part in parts for key in rng.sample([q.key for q in part.questions], len(part.questions) // 5)}


def before_last_turn(example: Example) -> tuple[int, ...]:
    """The tokens that the model has seen when it is to write its last turn."""
    end = len(example.weights)
    while not example.weights[end - 1]:
        end -= 1
    while example.weights[end - 1]:
        end -= 1
    return example.tokens[:end]


def train(out: Path, examples: list[Example], tune: TrainConfig) -> JaxChatModel:
    """The model that has learnt from these."""
    base = load_decoder(MODEL)
    trainer = Trainer(base.config, base.params, tune, tokenizer=base.tokenizer)
    trainer.fit(Mixture.of(examples), out=out, manifest={"few_shot": 0}, progress=True)
    if tune.method == "full":
        return JaxChatModel.from_pretrained(out, precision="bf16", max_context=CONTEXT)
    return JaxChatModel.from_pretrained(MODEL, adapter=out, precision="bf16", max_context=CONTEXT)


def answers(model: JaxChatModel, prompts: list[tuple[int, ...]]) -> list[str]:
    """What the model answers in its last turn; nothing if it answers nothing."""
    greedy = Sampling(temperature=0.0, max_tokens=160)
    written = model.engine.generate([Request(prompt=prompt, sampling=greedy) for prompt in prompts])
    actions = [parse(turn.text).action for turn in written]
    return [str(action.arguments.get("answer", "")) if action else "" for action in actions]


def show(cells: list[dict[str, Any]], console: Console) -> dict[str, float]:
    """Print a row for each arm, and return its numbers, flat."""
    table, measures = Table(title="the last turn", title_justify="left"), dict[str, float]()
    for column in ("arm", "questions", "EM", "over the first", "F1", "over the first"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for cell in cells:
        row = [cell["arm"], str(len(cell["em"]))]
        for measure in ("em", "f1"):
            ours, first = Marks(cell[measure]), Marks(cells[0][measure])
            gain, (low, high) = ours.over(first)
            versus = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if cell is not cells[0] else ""
            row += [f"{100 * ours.mean:.1f}", versus]
            measures[f"{cell['arm']}: {measure}"] = ours.mean
        table.add_row(*row)
    console.print(table)
    return measures


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the collections.")],
    out: Annotated[Path, typer.Option(help="Index, runs, weights and cells.")] = Path("runs/reading"),
    expert: Annotated[
        Expert, typer.Option(help="Its last thought: the answer, or question and answer.")
    ] = Expert.follow,
    weights: Annotated[Weights, typer.Option(help="What is trained above the tenth layer.")] = Weights.lora,
    lr: Annotated[float, typer.Option(help="Peak rate.")] = TUNE.lr,
    epochs: Annotated[int, typer.Option(help="Passes.")] = TUNE.epochs,
    quick: Annotated[bool, typer.Option("--quick", help="Few questions, no measure.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Run one arm, if it is missing, and print all."""
    out = out.with_name(out.name + "-quick") if quick else out
    enable_compile_cache()
    parts = read_parts(data)
    if quick:
        parts = [Part(part.documents, part.questions[:10]) for part in parts]
    questions = [q for part in parts for q in part.questions]
    if not (out / "index").is_dir():
        named = {title for q in questions for title in q.gold_titles}
        documents = [d for part in parts for d in part.documents if d.title in named or not quick]
        Retriever.from_documents(documents, encoder=ENCODER, progress=True).save(out / "index")
    arm, file = f"{expert}-{weights}-{lr:g}-{epochs}", out / "cells.jsonl"
    cells = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if arm not in [cell["arm"] for cell in cells]:
        aside, known = held_out(parts), {q.key: q for q in questions}
        runs = expert_runs(out, questions, expert)
        tune = replace(TUNE, method=str(weights), lr=lr, epochs=epochs)
        model = train(out / arm, [e for key, e in runs.items() if key not in aside], tune)
        asked = [key for key in runs if key in aside]
        said = dict(zip(asked, answers(model, [before_last_turn(runs[key]) for key in asked]), strict=True))
        model.close()
        em = {key: exact_match(text, known[key].answers) for key, text in said.items()}
        scores = {key: f1(text, known[key].answers) for key, text in said.items()}
        cells.append({"arm": arm, "em": em, "f1": scores})
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(cells[-1]) + "\n")
    measures = show(cells, Console(width=140))
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


if __name__ == "__main__":
    typer.run(main)
