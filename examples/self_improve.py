"""Self-training end to end: an invented world, a guided pilot, one generation of ReST, and the scores.

Kill it whenever you like; the same command goes on where it stopped.

python examples/self_improve.py runs/self-improve
"""

from __future__ import annotations

from pathlib import Path

import typer

from restill import Budget, JaxChatModel, ReActAgent, ReST, Retriever, World, improve
from restill.selftrain.pilot import Pilot
from restill.selftrain.report import Report
from restill.selftrain.trainer import TrainConfig


def main(
    out: Path,
    entities: int = 200,
    train: int = 200,
    heldout: int = 100,
    generations: int = 1,
    model: str = "smollm2-135m",
    encoder: str = "minilm",
) -> Report:
    """Train on questions about a World, test on others about the same World, and print both scores."""
    world = World.generate(entities=entities, seed=0, train=train, heldout=heldout)
    retriever = Retriever.from_documents(world.documents, encoder, progress=True)
    chat = JaxChatModel.from_pretrained(model)
    agent = ReActAgent(chat, [retriever.as_tool()], budget=Budget(steps=6, seconds=120))

    method = ReST(
        generations=generations,
        samples=2,
        pilot=Pilot(questions=train // 2),
        train=TrainConfig(epochs=2, rank=16),
    )
    report = improve(agent, world.train, out=out, method=method, eval=world.heldout, progress=True)
    for arm in report.arms:
        low, high = arm.em_interval
        print(f"{arm.name:14} exact match {arm.em:.1%} ({low:.1%} to {high:.1%})")
    print(f"adapter: {report.adapter}\nreport:  {out / 'report.json'}")
    return report


if __name__ == "__main__":
    typer.run(main)
