"""``make demo``: the whole loop on a small World, from a question to a measurably better agent.

Run as ``python -m restill.selftrain.demo [--out DIR] [--seed N]``. Stopped at any time, it goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

MODEL, ENCODER = "smollm2-135m", "minilm"
RELATIONS = (
    "founder", "director", "maker", "designer", "author", "mayor", "birthplace", "employer", "teacher", "school",
)  # fmt: skip
WORLD: dict[str, Any] = {
    "entities": 250,
    "train": 120,
    "heldout": 100,
    "hops": {1: 0.2, 2: 0.8},
    "relations": RELATIONS,
}
"""The World of the demo; benchmarks/first_light.py asks for more questions of the same kind."""


def recipe(**changes: Any) -> Any:
    """The method of the demo and of benchmarks/first_light.py: a pilot of expert trajectories, then one generation."""
    from .pilot import Pilot
    from .rest import ReST
    from .trainer import TrainConfig

    shape: dict[str, Any] = {"epochs": 1, "rows": 1, "row_length": 512, "accumulate": 1, "frozen_layers": 10}
    pilot, grown = TrainConfig(lr=4e-3, **shape), TrainConfig(lr=2e-3, **shape)
    knobs: dict[str, Any] = {
        "samples": 2,
        "temperature": 0.7,
        "train": grown,
        "pilot": Pilot(questions=100, train=pilot),
    }
    return ReST(**{**knobs, **changes})


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the demo; default: under $RESTILL_HOME.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the World and of everything drawn in it.")] = 0,
) -> None:
    """Make a World, ask three questions, train a pilot, improve it by one ReST generation, print the table."""
    from ..agents.budget import Budget
    from ..agents.react import ReActAgent
    from ..console import show_trajectory
    from ..models.chat import JaxChatModel
    from ..models.checkpoint.pull import pull
    from ..models.home import enable_compile_cache, home
    from ..retrieval.retriever import Retriever
    from .improve import improve
    from .world import World

    console, started = Console(highlight=False), time.monotonic()

    def stage(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold] [dim]({(time.monotonic() - started) / 60:.1f} min)[/dim]")

    enable_compile_cache()
    folder = (out or home() / "demo") / f"seed-{seed}"
    stage("Models")
    for name in (MODEL, ENCODER):
        console.print(f"  {name}: {pull(name)}")

    stage("A World of invented entities, and an index over its documents")
    world = World.generate(seed=seed, **WORLD)
    world.save(folder / "world")
    if not (folder / "index").is_dir():
        Retriever.from_documents(world.documents, encoder=ENCODER, progress=True).save(folder / "index")
    retriever = Retriever.open(folder / "index", k=2)
    console.print(f"  {len(world.documents)} documents, {len(world.train)} + {len(world.heldout)} questions: {folder}")

    model = JaxChatModel.from_pretrained(MODEL)
    agent = ReActAgent(model, tools=[retriever.as_tool()], budget=Budget(steps=5, seconds=None))
    stage("The agent before any training")
    for result in agent.batch([question.question for question in world.train[:3]]):
        console.print(show_trajectory(result.trajectory), "")

    stage("Pilot, rollouts, one ReST generation")
    report = improve(
        agent, world.train, out=folder / "job", method=recipe(), eval=world.heldout, seed=seed, deadline=None,
        progress=True,
    )  # fmt: skip

    stage("The same three questions after it")
    better = agent.replace(model=model.with_adapter(report.adapter), few_shot=None)
    for result in better.batch([question.question for question in world.train[:3]]):
        console.print(show_trajectory(result.trajectory), "")
    console.print(report.table())
    for name, path in {
        "runs": folder / "job",
        "report": folder / "job" / "report.json",
        "adapter": report.adapter,
        "index": folder / "index",
    }.items():
        console.print(f"{name:8}{path}")
    question = world.heldout[0].question
    console.print(f'\ntry: restill ask --index {folder / "index"} --adapter {report.adapter} "{question}"')
    stage("Done")


if __name__ == "__main__":
    typer.run(demo)
