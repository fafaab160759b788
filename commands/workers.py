"""Options of commands that several workers share, and the same command run once by each of them."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated

import typer

from ..models.errors import RestillError

ARGUMENTS = "restill.arguments"
"""Where the command line keeps its words for :func:`spread`, among a context's ``meta``."""

_W = "Workers"

ShardOption = Annotated[
    str | None,
    typer.Option(
        help="i/n: be worker i (from 0) of n that share --out, each started by hand with the same command otherwise.",
        rich_help_panel=_W,
    ),
]
WorkersOption = Annotated[
    int, typer.Option(min=1, help="Start so many workers here, each with a model of its own.", rich_help_panel=_W)
]
RayOption = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Run the workers as Ray tasks, on the cluster of $RAY_ADDRESS, else on a Ray started here. Needs Ray: "
        "pip install 'restill[ray]'.",
        rich_help_panel=_W,
    ),
]


def to_shard(text: str | None) -> tuple[int, int] | None:
    """What ``--shard`` says.

    Raises:
        RestillError: not i/n with 0 <= i < n.
    """
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not slash or not first.isdigit() or not second.isdigit() or int(first) >= int(second):
        raise RestillError(f"--shard {text!r}: write i/n with 0 <= i < n, such as 0/4")
    return int(first), int(second)


def spread(context: typer.Context, shard: str | None, workers: int, ray: bool) -> bool:
    """Whether the command was carried out by workers, each with ``--shard`` put behind its words; they have ended.

    Raises:
        RestillError: a worker failed.
    """
    if shard is not None or (workers == 1 and not ray):
        return False
    if ray:
        from ..agents.ray_executor import RayExecutor as Chosen
    else:
        from ..agents.executor import Processes as Chosen
    Chosen(workers=workers).run(run_command, words=list(context.meta[ARGUMENTS]), folder=os.getcwd())
    return True


def run_command(words: list[str], folder: str, shard: tuple[int, int]) -> None:
    """Run ``restill WORDS --shard i/n`` in ``folder``, without what it prints on stdout: the parent prints the results.

    Raises:
        RestillError: what the command raised, or that it ended with another status than 0.
    """
    from ..cli import app

    os.chdir(folder)
    os.environ["RESTILL_DEBUG"] = "1"  # raise errors, rather than say them and exit
    text = f"{shard[0]}/{shard[1]}"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = app([*words, "--shard", text], standalone_mode=False)
    if status:
        raise RestillError(f"`restill {words[0]}` as worker {text} ended with status {status}")
