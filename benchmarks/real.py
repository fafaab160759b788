"""Real questions: the loop learns from 567 of four collections, and from more that it writes about their documents.

It is measured on HotpotQA's dev200.

    python benchmarks/real.py DATA --out runs/real

DATA holds the folders hotpotqa, musique, squad and ircot. One index has the documents of all; the search finds what a
question leads to (mode ``hops``). The pilot is trained on an expert that asks the question as it is, looks up what
was not found and reads the answer out, on some of the questions; each generation on its own right trajectories over
all and over the written ones, beside the pilot's (``replay``). The writer learns from the collections' questions (all
of SQuAD's), and asks about no document that dev200 needs. Nothing is tuned on dev200. Killed at any time, the same
command goes on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from real_data import Part, read_part, read_parts, some
from rich.console import Console

from restill import Budget, EvalReport, JaxChatModel, Question, ReActAgent, ReST, Retriever, improve
from restill.models.checkpoint.load import load_decoder
from restill.models.home import enable_compile_cache
from restill.selftrain.demo import ENCODER, MODEL
from restill.selftrain.expert import search_then_follow, search_then_reread
from restill.selftrain.pilot import Pilot
from restill.selftrain.question_job import questions_about
from restill.selftrain.question_writer import QuestionWriter
from restill.selftrain.trainer import TrainConfig
from restill.selftrain.writer_adapter import sources_of, train_writer

PASSAGES, OBSERVED, SEARCHES = 3, 448, 3
"""Passages and tokens of an observation, and searches: three paragraphs of HotpotQA's mean length are whole."""
LONGEST = 1792
"""Tokens of a run: its prompt, so many observations, and its turns."""
CONTEXT = 2304
"""The base's prompt has examples besides."""
TUNE = TrainConfig(epochs=2, rows=1, row_length=LONGEST, frozen_layers=10, lr=3e-3, precision="bf16")


class Expert(StrEnum):
    """What the expert's last thought is: the answer, or the question and the answer."""

    follow = "follow"
    reread = "reread"


SCRIPTS = {Expert.follow: search_then_follow, Expert.reread: search_then_reread}


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the collections.")],
    out: Annotated[Path, typer.Option(help="Folder of the job.")] = Path("runs/real"),
    most: Annotated[int, typer.Option(help="Questions to take from each collection.")] = 300,
    shown: Annotated[int, typer.Option(help="Questions that the pilot sees an expert on.")] = 300,
    written: Annotated[int, typer.Option(help="Questions that are written about the documents.")] = 800,
    generations: Annotated[int, typer.Option(help="After the pilot.")] = 2,
    samples: Annotated[int, typer.Option(help="Trajectories a question in a generation.")] = 1,
    keep: Annotated[int, typer.Option(help="How many right ones of them are learnt from.")] = 1,
    expert: Annotated[
        Expert, typer.Option(help="What the pilot's expert thinks last: see reading.py.")
    ] = Expert.follow,
    lr: Annotated[float, typer.Option(help="Peak rate of training.")] = TUNE.lr,
    precision: Annotated[str, typer.Option(help="Of the agent's model; bf16 where the processor has it.")] = "auto",
    baseline: Annotated[bool, typer.Option(help="Also score the untrained model; a later run may do so.")] = True,
    install: Annotated[Path | None, typer.Option(help="Copy the adapter here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few questions, none written; no measure.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train, measure, and tell where the remaining questions are lost."""
    if quick:
        most, shown, written, generations, out = 6, 12, 0, 1, out.with_name(out.name + "-quick")
    enable_compile_cache()
    parts = read_parts(data)
    asked = read_part(data / "hotpotqa/dev200.jsonl", data / "hotpotqa/corpus.jsonl").questions[: 6 if quick else None]
    train = [q for part in parts for q in some(part.questions, most)]
    if not (out / "index").is_dir():
        named = {title for q in (*train, *asked) for title in q.gold_titles}
        everything = [d for part in parts for d in part.documents if d.title in named or not quick]
        Retriever.from_documents(everything, encoder=ENCODER, progress=True).save(out / "index")
    if written:
        train += _written(parts, asked, written, out)
    agent = make_agent(JaxChatModel.from_pretrained(MODEL, precision=precision, max_context=CONTEXT), out / "index")
    method = ReST(
        generations=generations, samples=samples, keep_per_question=keep, start="base", replay=True,
        train=replace(TUNE, lr=lr), pilot=Pilot(questions=shown, script=SCRIPTS[expert]),
    )  # fmt: skip
    report = improve(
        agent, train, out=out / "job", method=method, eval=asked, baseline=baseline, deadline=None, progress=True
    )
    Console(width=140).print(report.table())
    measures = dict[str, float]()
    grown = {f"generation {n}": f"gen{n}" for n in range(1, generations + 1)}
    for arm, folder in {"base": "base", "pilot": "pilot", **grown}.items():
        if not (out / "job" / folder / "eval.json").exists():
            continue
        scored = EvalReport.model_validate_json((out / "job" / folder / "eval.json").read_bytes())
        measures |= {f"{arm}: em": scored.em, f"{arm}: f1": scored.f1, f"{arm}: recall": scored.recall or 0.0}
        measures |= {f"{arm}: lost to {why}": share for why, share in (scored.lost or {}).items()}
    for name, value in measures.items():
        Console().print(f"{name:40} {100 * value:.1f}")
    if install is not None and report.adapter:
        shutil.rmtree(install, ignore_errors=True)
        shutil.copytree(report.adapter, install, ignore=shutil.ignore_patterns("train_log.jsonl"))
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


def make_agent(model: JaxChatModel, index: Path) -> ReActAgent:
    """The agent that all stages have."""
    search = Retriever.open(index, mode="hops", k=PASSAGES).as_tool()
    return ReActAgent(model, [search], budget=Budget(steps=SEARCHES + 1, seconds=None), observation_tokens=OBSERVED)


def _written(parts: list[Part], asked: list[Question], count: int, out: Path) -> list[Question]:
    """Questions without gold titles, so that the pilot's expert is shown on none of them."""
    known = [pair for part in parts for pair in sources_of(part.questions, part.documents)]
    adapter = train_writer(load_decoder(MODEL), known, out=out / "writer", progress=True)
    needed = {title for question in asked for title in question.gold_titles}
    everything = [d for part in parts for d in part.documents]
    texts = {d.text for d in everything if d.title in needed}
    documents = [d for d in everything if d.title not in needed and d.text not in texts]
    model = JaxChatModel.from_pretrained(MODEL, adapter=str(adapter))
    made = questions_about(
        documents, QuestionWriter(model=model), out=out / "written.jsonl", count=count, progress=True
    )
    model.close()
    return [question.model_copy(update={"gold_titles": []}) for question in made]


if __name__ == "__main__":
    typer.run(main)
