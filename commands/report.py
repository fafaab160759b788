"""The command that writes a job's page, and what `restill improve` says of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


def report(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="Folder of a `restill improve` job, ended or not.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; by default JOB/report.html.")] = None,
    questions: Annotated[
        int,
        typer.Option(min=0, help="Held-out questions to show with all trajectories, those that changed first."),
    ] = 30,
) -> None:
    """Write a job as one HTML page: scores, searches, tokens, training, settings, trajectories side by side.

    The page needs no other file and no network. Needs matplotlib: pip install 'restill[report]'.
    """
    from ..console import stdout
    from ..selftrain.html_report import write_html

    page = write_html(job, out=out, questions=questions)
    stdout().print(f"page: {page}", markup=False, soft_wrap=True)


def page_of(job: Path) -> str:
    """Write the page of a job that has just ended, if it can be drawn; where it is, or how to get it."""
    if find_spec("matplotlib") is None:
        return f"pip install 'restill[report]', then: restill report {job}"
    from ..selftrain.html_report import write_html

    return str(write_html(job))
