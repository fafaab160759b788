"""How ``adapters/starter`` was made: the demo's recipe, longer, over several Worlds and all of their relations.

    python benchmarks/starter.py --out runs/starter --install adapters/starter

Resumable. Optional labelled questions over real documents (``--also questions.jsonl corpus.jsonl``) join the pilot and
the rollouts; held-out questions come from the Worlds alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from restill import Budget, JaxChatModel, ReActAgent, Retriever, World, improve, read_questions
from restill.models.home import enable_compile_cache
from restill.retrieval.load import load
from restill.selftrain.demo import ENCODER, MODEL, recipe
from restill.selftrain.pilot import Pilot


def main(
    out: Annotated[Path, typer.Option(help="Folder of the job.")] = Path("runs/starter"),
    worlds: Annotated[int, typer.Option(help="How many Worlds (seeds 100, 101, ...).")] = 3,
    pilot: Annotated[int, typer.Option(help="Expert trajectories of the pilot.")] = 300,
    also: Annotated[tuple[Path, Path] | None, typer.Option(help="Labelled questions and their collection.")] = None,
    install: Annotated[Path | None, typer.Option(help="Copy the adapter here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One World, 20 trajectories.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train it, print the table, and install it."""
    if quick:
        worlds, pilot, out = 1, 20, out.with_name(out.name + "-quick")
    enable_compile_cache()
    size = {"entities": 200, "train": 40, "heldout": 20} if quick else {"entities": 250, "train": 200, "heldout": 34}
    made = [World.generate(seed=100 + n, **size) for n in range(worlds)]
    documents = [d for n, w in enumerate(made) for d in _apart(w, n)]
    questions = [q for n, w in enumerate(made) for q in _apart_questions(w.train, n)]
    heldout = [q for n, w in enumerate(made) for q in _apart_questions(w.heldout, n)]
    if also is not None:
        documents += load(also[1]).documents
        questions += read_questions(also[0])
    if not (out / "index").is_dir():
        Retriever.from_documents(documents, encoder=ENCODER, progress=True).save(out / "index")
    retriever = Retriever.open(out / "index", k=2)
    agent = ReActAgent(
        JaxChatModel.from_pretrained(MODEL, slots=24), tools=[retriever.as_tool()], budget=Budget(steps=6, seconds=None)
    )
    method = recipe()
    method = recipe(samples=1, pilot=Pilot(questions=pilot, train=method.pilot.train))
    report = improve(agent, questions, out=out / "job", method=method, eval=heldout, deadline=None, progress=True)
    Console().print(report.table())
    if install is not None and report.adapter:
        shutil.rmtree(install, ignore_errors=True)
        shutil.copytree(report.adapter, install, ignore=shutil.ignore_patterns("train_log.jsonl"))
    if json_out:
        json_out.write_text(json.dumps({f"em {arm.name}": arm.em for arm in report.arms}))


def _apart(world: World, number: int) -> list:
    """Documents with ids of their own: several Worlds share one collection."""
    return [d.model_copy(update={"id": f"w{number}-{d.id}"}) for d in world.documents]


def _apart_questions(questions: list, number: int) -> list:
    return [q.model_copy(update={"gold": [f"w{number}-{doc}" for doc in q.gold]}) for q in questions]


if __name__ == "__main__":
    typer.run(main)
