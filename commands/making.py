"""What commands make of their options: models, retrievers and agents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from ..models.errors import RestillError
from .common import DEFAULT_MODEL, refuse_others

if TYPE_CHECKING:
    from ..agents.agent import Agent
    from ..models.engine.precision import Precision
    from ..retrieval.retriever import Retriever

STARTER, WRITER = "starter", "writer"
AGENTS = ("react", "search", "reason")
_SEARCHING = AGENTS[:2]
_WHOSE: dict[str, tuple[str, ...]] = {  # options that not every agent has
    **dict.fromkeys(("index", "docs", "k", "mode", "steps"), _SEARCHING),
    "follow": ("react",),
    "format": ("search",),
    "demonstrations": ("reason",),
}


@contextmanager
def opened_model(
    spec: str, adapter: str | None = None, precision: str = "auto", slots: int = 16, deterministic: bool = False
) -> Iterator[Any]:
    """The chat model that ``--model`` and ``--adapter`` name; its engine is stopped at the end.

    Raises:
        RestillError: unknown model or adapter, or an adapter or ``deterministic`` for a remote model.
    """
    if spec.startswith(("http://", "https://")):
        from ..models.remote import RemoteChatModel

        if adapter is not None:
            raise RestillError(f"--adapter {adapter} needs a local model; {spec} is remote: leave it out")
        if deterministic:
            raise RestillError(f"--deterministic needs a local model; {spec} is remote: leave it out")
        model: Any = RemoteChatModel.from_spec(spec)
    else:
        from ..models.chat import JaxChatModel

        fetch([spec])
        checked = cast("Precision", precision)  # an unknown one is refused with a list of those there are
        model = JaxChatModel.from_pretrained(
            spec, adapter=adapter, precision=checked, slots=slots, deterministic=deterministic
        )
    try:
        yield model
    finally:
        model.close()


def fetch(names: list[str]) -> dict[str, Path]:
    """Pull the models among ``names`` that the registry knows, showing what is downloaded."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ..console import stderr
    from ..models.checkpoint.pull import REGISTRY, pull

    known = [name for name in names if name in REGISTRY]
    found: dict[str, Path] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        for name in known:
            found[name] = pull(name, progress=progress)
    return found


def chosen_adapter(given: str | None, model: str, shipped: str | None) -> str | None:
    """The adapter that ``--adapter`` names; for auto the one that ships with restill, on its base model if it is there.

    Args:
        given: the option; none and nothing mean none.
        shipped: its name.
    """
    if given != "auto":
        return None if given in ("none", "") else given
    if model != DEFAULT_MODEL or shipped is None:
        return None
    from ..models.lora import find_adapter

    try:
        find_adapter(shipped)
    except RestillError:
        return None
    return shipped


def open_retriever(
    index: list[Path] | None, docs: list[str] | None, k: int, mode: str = "dense", *, progress: bool = True
) -> Retriever:
    """The retriever that ``--index`` or ``--docs`` name.

    Raises:
        RestillError: both are given, or neither and there is no ./index.
    """
    from ..console import warn
    from ..retrieval.modes import checked_mode
    from ..retrieval.retriever import Retriever

    way = checked_mode(mode)
    if not docs and not index and (named := os.environ.get("RESTILL_INDEX")):
        index = [Path(folder) for folder in named.split(os.pathsep)]
    if docs:
        if index:
            raise RestillError("--docs and --index exclude each other; give one")
        fetch(["minilm"])
        retriever = Retriever.from_path(*docs, k=k, mode=way, progress=progress)
        for warning in retriever.load_warnings:
            warn(warning)
        return retriever
    if not index and not Path("index").is_dir():
        raise RestillError("no index: give --index DIR or --docs PATH, or make ./index with `restill index PATH`")
    retriever = Retriever.open(index or [Path("index")], k=k, mode=way)
    for warning in retriever.load_warnings:
        warn(warning)
    return retriever


def open_search(
    context: typer.Context,
    agent: str,
    index: list[Path] | None,
    docs: list[str] | None,
    k: int,
    mode: str,
    *,
    progress: bool = True,
) -> Retriever | None:
    """The retriever of an agent that searches; ``None`` for one that only thinks.

    Raises:
        RestillError: as :func:`open_retriever`; no such agent, or an option that it would ignore.
    """
    refuse_others(context, "agent", agent, AGENTS, _WHOSE)
    return None if agent == "reason" else open_retriever(index, docs, k, mode, progress=progress)


def read_demonstrations(path: Path) -> list[tuple[str, str]]:
    """Questions with their rationales.

    Raises:
        RestillError: no such file, or a question without a rationale.
    """
    from ..agents.question import read_questions

    shown = read_questions(path)
    if bare := [q for q in shown if not isinstance(q.metadata.get("rationale"), str)]:
        raise RestillError(
            f"{path}: {bare[0].question!r:.80} has no `rationale`; give each one that ends in its answer"
        )
    return [(q.question, q.metadata["rationale"]) for q in shown]


def make_agent(
    model: Any,
    retriever: Retriever | None,
    *,
    agent: str = "react",
    format: str = "compact",
    steps: int | None = None,
    seconds: float,
    follow: bool = False,
    few_shot: int | None = None,
    demonstrations: Path | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Agent:
    """An agent over one retriever, or one that only thinks where there is none; with ``follow``, a ReAct agent can
    also read what a document leads to."""
    from ..agents.budget import Budget
    from ..agents.react import ReActAgent
    from ..agents.reason import ReasoningAgent
    from ..agents.search.agent import SearchAgent

    if retriever is None:
        shown = read_demonstrations(demonstrations) if demonstrations else []
        return ReasoningAgent(model, shown, few_shot=few_shot, temperature=temperature, seed=seed, seconds=seconds)
    if agent == "react":
        tools = [retriever.as_tool(), *([retriever.as_follow_tool()] if follow else [])]
        budget = Budget(steps=steps or 6, seconds=seconds)
        return ReActAgent(model, tools, budget=budget, few_shot=few_shot, temperature=temperature, seed=seed)
    return SearchAgent(
        model,
        [retriever.as_tool()],
        format=format,
        top_k=retriever.k,
        budget=Budget(steps=steps or 24, seconds=seconds),
        few_shot=few_shot,
        temperature=temperature,
        seed=seed,
    )
