"""Does the agent read, or remember? Swap the answer in the documents and ask again.

Takes held-out questions that the agent answered rightly, replaces the answer entity throughout the collection,
rebuilds the index and asks again: an agent that reads gives another answer.

    python benchmarks/counterfactual.py --job runs/first-light/seed-1 --adapter gen1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from restill import Budget, EvalReport, JaxChatModel, ReActAgent, Retriever, TextEncoder, World
from restill.agents.scores import exact_match
from restill.models.home import enable_compile_cache
from restill.retrieval.intervals import bootstrap_interval
from restill.selftrain.demo import ENCODER, MODEL


def main(
    job: Annotated[Path, typer.Option(help="A seed's folder of first_light.py (world/ and job/).")],
    adapter: Annotated[str, typer.Option(help="pilot, gen1 or control.")] = "gen1",
    limit: Annotated[int, typer.Option(help="Most questions.")] = 60,
    quick: Annotated[bool, typer.Option("--quick", help="Five questions.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Print how many answers changed, and how many became the new truth."""
    enable_compile_cache()
    world = World.load(job / "world")
    report = EvalReport.model_validate_json((job / "job" / adapter / "eval.json").read_bytes())
    right = {row.id for row in report.rows if row.em == 1}
    questions = [q for q in world.heldout if q.id in right][: 5 if quick else limit]
    model = JaxChatModel.from_pretrained(MODEL, adapter=job / "job" / adapter / "adapter", slots=4)
    encoder = TextEncoder.from_pretrained(ENCODER)
    changed, followed = [], []
    for question in questions:
        documents, answer = world.swap(question)
        retriever = Retriever.from_documents(documents, encoder=encoder, k=2)
        agent = ReActAgent(model, tools=[retriever.as_tool()], budget=Budget(steps=5, seconds=None))
        said = agent.invoke(question.question).answer
        changed.append(1.0 - exact_match(said, question.answers))
        followed.append(exact_match(said, [answer]))
        print(f"{question.answers[0]} -> {answer}: {said}", flush=True)
    for name, values in (("answer changed", changed), ("new truth given", followed)):
        low, high = bootstrap_interval(values)
        print(f"{name}: {100 * sum(values) / len(values):.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {len(values)}")
    if json_out:
        measures = {"changed": sum(changed) / len(changed), "followed": sum(followed) / len(followed)}
        json_out.write_text(json.dumps(measures))


if __name__ == "__main__":
    typer.run(main)
