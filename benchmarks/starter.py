"""How ``adapters/starter`` is made: the demo's recipe, longer, over Worlds with all their relations and real documents.

    python benchmarks/starter.py --out runs/starter --install adapters/starter \\
        --questions squad/dev.jsonl --corpus squad/corpus.jsonl --questions musique/train100.jsonl --corpus ...

Resumable. Labelled questions over real documents (the n-th ``--questions`` belongs to the n-th ``--corpus``) join the
pilot, the rollouts and, a tenth of each file, the held-out questions.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from restill import Budget, EvalReport, JaxChatModel, ReActAgent, Retriever, World, improve, read_questions
from restill.agents.question import Question
from restill.models.home import enable_compile_cache
from restill.retrieval.load import load
from restill.retrieval.types import Document
from restill.selftrain.demo import ENCODER, MODEL, recipe
from restill.selftrain.pilot import Pilot

Part = tuple[list[Document], list[Question], list[Question]]
"""Documents, training questions, held-out questions."""


def main(
    out: Annotated[Path, typer.Option(help="Folder of the job.")] = Path("runs/starter"),
    worlds: Annotated[int, typer.Option(help="How many Worlds (seeds 100, 101, ...).")] = 2,
    pilot: Annotated[int, typer.Option(help="Expert trajectories of the pilot, at most.")] = 400,
    questions: Annotated[list[Path] | None, typer.Option(help="Labelled questions over real documents.")] = None,
    corpus: Annotated[list[Path] | None, typer.Option(help="Their collection.")] = None,
    most: Annotated[int, typer.Option(help="Questions to take from each file.")] = 250,
    install: Annotated[Path | None, typer.Option(help="Copy the adapter here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One World, 20 trajectories.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train it, print the table, and install it."""
    if quick:
        worlds, pilot, most, out = 1, 20, 20, out.with_name(out.name + "-quick")
    enable_compile_cache()
    size = {"entities": 200, "train": 40, "heldout": 20} if quick else {"entities": 250, "train": 150, "heldout": 50}
    parts = {f"world {100 + n}": _world(100 + n, **size) for n in range(worlds)}
    for asked, documents in zip(questions or (), corpus or (), strict=True):
        parts[f"{asked.parent.name}/{asked.stem}"] = _real(asked, documents, most)
    parts = {name: _apart(name, part) for name, part in parts.items()}
    if not (out / "index").is_dir():
        everything = [d for part in parts.values() for d in part[0]]
        Retriever.from_documents(everything, encoder=ENCODER, progress=True).save(out / "index")
    retriever = Retriever.open(out / "index", k=2)
    agent = ReActAgent(
        JaxChatModel.from_pretrained(MODEL, slots=32), tools=[retriever.as_tool()], budget=Budget(steps=6, seconds=None)
    )
    method = recipe(samples=1, pilot=Pilot(questions=pilot, train=recipe().pilot.train))
    report = improve(
        agent, [q for part in parts.values() for q in part[1]], out=out / "job", method=method,
        eval=[q for part in parts.values() for q in part[2]], deadline=None, progress=True,
    )  # fmt: skip
    Console().print(report.table())
    measures = {f"em {arm.name}": arm.em for arm in report.arms} | _by_part(parts, out / "job")
    for name, value in measures.items():
        Console().print(f"{name:45} {100 * value:.1f}")
    if install is not None and report.adapter:
        shutil.rmtree(install, ignore_errors=True)
        shutil.copytree(report.adapter, install, ignore=shutil.ignore_patterns("train_log.jsonl"))
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


def _world(seed: int, **size: int) -> Part:
    world = World.generate(seed=seed, **size)
    return world.documents, world.train, world.heldout


def _real(asked: Path, corpus: Path, most: int) -> Part:
    """The documents of a file, and its questions with titles, so that the expert can look them up."""
    documents = load(corpus).documents
    titles = {d.id: d.title for d in documents}
    found = [
        q.model_copy(update={"gold_titles": q.gold_titles or list(dict.fromkeys(titles[d] for d in q.gold))})
        for q in read_questions(asked)
    ]
    cut = len(found) - len(found) // 10  # the last tenth: other paragraphs than those trained on
    train = random.Random(0).sample(found[:cut], min(most, cut))
    return documents, train, found[cut:][: most // 5]


def _apart(name: str, part: Part) -> Part:
    """The same with document ids that no other part has."""
    documents, *asked = part
    train, heldout = (
        [q.model_copy(update={"gold": [f"{name}/{d}" for d in q.gold]}) for q in questions] for questions in asked
    )
    return [d.model_copy(update={"id": f"{name}/{d.id}"}) for d in documents], train, heldout


def _by_part(parts: dict[str, Part], job: Path) -> dict[str, float]:
    """Exact match of every arm on the held-out questions of each part."""
    scores: dict[str, list[float]] = defaultdict(list)
    where = {q.key: name for name, part in parts.items() for q in part[2]}
    for arm in ("base", "pilot", "gen1"):
        for row in EvalReport.model_validate_json((job / arm / "eval.json").read_bytes()).rows:
            scores[f"em {arm}, {where[row.key]}"].append(row.em)
    return {name: sum(values) / len(values) for name, values in scores.items()}


if __name__ == "__main__":
    typer.run(main)
