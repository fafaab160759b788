"""The command that makes questions out of a document collection; it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..models.errors import RestillError
from .common import (
    DEFAULT_MODEL,
    DeterministicOption,
    IndexOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    SeedOption,
    print_json,
)
from .making import WRITER, chosen_adapter, open_retriever, opened_model


def questions(
    out: Annotated[Path, typer.Option("--out", help="File of questions; running again goes on.")] = Path(
        "questions.jsonl"
    ),
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    pairs: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Chance that a document is asked about with one that it names.")
    ] = 0.5,
    index: IndexOption = None,
    model: ModelOption = DEFAULT_MODEL,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="LoRA that writes questions: a name, a folder, none; auto: the one that ships, on its base model."
        ),
    ] = "auto",
    precision: PrecisionOption = "auto",
    deterministic: DeterministicOption = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of a local model.")] = 0.5,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write questions with answers about a document collection, for `restill improve`.

    The answer stands in one document, or two of which one names the other. Whether an agent finds it again is for
    improve's ranker "gold" to see, which keeps what comes to the same answer. A small model needs an adapter for this,
    and writes much that makes no sense; a large one behind an OpenAI-compatible endpoint (--model http://host/v1#name)
    does without.
    """
    from ..console import stdout
    from ..retrieval.types import Document
    from ..selftrain.question_job import questions_about
    from ..selftrain.question_writer import QuestionWriter

    snapshot = open_retriever(index, None, 3).snapshot
    passages = [Document(id=chunk.doc_id, title=chunk.title, text=chunk.text) for chunk in snapshot.chunks]
    if not passages:
        raise RestillError("the index holds no documents to write questions about; add some with `restill index`")
    chosen = chosen_adapter(adapter, model, WRITER)
    with opened_model(model, chosen, precision, slots=16, deterministic=deterministic) as chat:
        writer = QuestionWriter(model=chat, temperature=temperature, seed=seed)
        made = questions_about(passages, writer, out=out, count=count, paired=pairs, seed=seed, progress=not json)
    if json:
        print_json({"questions": str(out), "count": len(made)})
    else:
        stdout().print(f"{len(made)} questions written to {out}", markup=False, soft_wrap=True)
