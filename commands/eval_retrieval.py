"""The command that measures a retriever: whether the documents that hold the answer are found, and how high."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import RestillError
from .common import DocsOption, IndexOption, JsonOption, LimitOption, SeedOption, print_json
from .making import open_retriever

if TYPE_CHECKING:
    from rich.table import Table

    from ..agents.question import Question
    from ..retrieval.modes import Mode
    from ..retrieval.retriever import Retriever
    from ..retrieval.types import Hit


def eval_retrieval(
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="QUESTIONS", help="JSONL with question (or text) and gold or gold_titles, unless --qrels has them."
        ),
    ],
    index: IndexOption = None,
    docs: DocsOption = None,
    k: Annotated[list[int], typer.Option("--k", min=1, help="Cut-offs; may be repeated.")] = [5, 10],  # noqa: B006
    mode: Annotated[
        list[str],
        typer.Option(help="dense, sparse, hybrid or hops; may be repeated, the others are compared with the first."),
    ] = ["dense"],  # noqa: B006
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements in BEIR's form: TSV of question id, document id, grade.")
    ] = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how well documents are found: recall, all-gold, nDCG, MRR and MAP with 95 % intervals.

    all-gold@k is the share of questions with all their gold documents among the first k. MRR and MAP look at
    the first 100 documents. Questions without gold documents are left out, and counted.
    """
    from ..agents.question import read_questions
    from ..console import stdout, warn
    from ..retrieval.metrics import DEPTH, rank_documents, read_qrels, score
    from ..retrieval.modes import check_k, checked_mode

    wanted: list[Mode] = [checked_mode(name) for name in dict.fromkeys(mode)]
    cutoffs = list(dict.fromkeys(k))
    depth = max(DEPTH, *cutoffs)
    for name in wanted:
        check_k(name, depth)
    judgements = None if qrels is None else read_qrels(qrels)
    asked = read_questions(questions, limit=limit)
    retriever = open_retriever(index, docs, 1, progress=not json)
    gold = [_relevance(question, retriever, judgements) for question in asked]
    judged = [i for i, relevance in enumerate(gold) if any(grade > 0 for grade in relevance.values())]
    if not judged:
        raise RestillError(f"no question of {questions} has gold documents; give gold, gold_titles or --qrels")
    relevant = [document for i in judged for document, grade in gold[i].items() if grade > 0]
    snapshot = retriever.snapshot
    documents = len(set(snapshot.documents_of(snapshot.rows.tolist()).values()))
    unknown = sum(not snapshot.rows_of(document) for document in relevant)
    for count, problem in (
        (len(asked) - len(judged), "questions without gold documents left out"),
        (unknown, "gold documents are not in the index; they count as not found"),
    ):
        if count:
            warn(f"{count} {problem}")
    values: dict[str, dict[str, list[float]]] = {}
    for name in wanted:
        searching = retriever.model_copy(update={"mode": name})
        rankings = rank_documents(partial(_search, searching), [asked[i].question for i in judged], depth, documents)
        values[name] = score(rankings, [gold[i] for i in judged], cutoffs)
    modes = compare(values, seed)
    if json:
        print_json({"questions": len(judged), "left_out": len(asked) - len(judged), "unknown_gold": unknown} | modes)
    else:
        stdout().print(_table(modes, f"{len(judged)} questions"))


def _search(retriever: Retriever, queries: Sequence[str], k: int) -> list[list[Hit]]:
    return retriever.search(queries, k=k)


def compare(values: dict[str, dict[str, list[float]]], seed: int) -> dict[str, Any]:
    """Mean and interval of each measure for each mode, and the paired difference of the others to the first mode."""
    from ..retrieval.intervals import bootstrap_interval, paired_interval

    baseline, *_ = values
    modes: dict[str, dict[str, Any]] = {}
    for name, measures in values.items():
        rows = modes[name] = {}
        for measure, scores in measures.items():
            row = rows[measure] = {"mean": sum(scores) / len(scores), "interval": bootstrap_interval(scores, seed)}
            if name != baseline:
                first = values[baseline][measure]
                row["difference"] = row["mean"] - sum(first) / len(first)
                row["difference_interval"] = paired_interval(scores, first, seed)
    return {"baseline": baseline, "modes": modes}


def _relevance(
    question: Question, retriever: Retriever, judgements: dict[str, dict[str, float]] | None
) -> dict[str, float]:
    if judgements is not None:
        return judgements.get(question.id, {})
    gold = list(question.gold)
    for title in question.gold_titles:
        # A title that no document has stays a gold document, which nothing can find.
        gold += retriever.resolve_title(title) or [f"\0{title}"]
    return dict.fromkeys(gold, 1.0)


def _table(report: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    baseline, modes = report["baseline"], report["modes"]
    table = Table(title=f"{title}, in %; 95 % intervals", title_justify="left")
    table.add_column("measure")
    for name in modes:
        table.add_column(name, justify="right")
        if name != baseline:
            table.add_column(f"{name} − {baseline}", justify="right")
    for measure in modes[baseline]:
        cells = [measure]
        for name, rows in modes.items():
            row = rows[measure]
            low, high = row["interval"]
            cells.append(f"{100 * row['mean']:.1f} ({100 * low:.1f} – {100 * high:.1f})")
            if name != baseline:
                low, high = row["difference_interval"]
                cells.append(f"{100 * row['difference']:+.1f} ({100 * low:+.1f} – {100 * high:+.1f})")
        table.add_row(*cells)
    return table
