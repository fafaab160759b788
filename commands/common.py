"""What commands share: their options, and models, retrievers and agents made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..models.errors import RestillError

if TYPE_CHECKING:
    from ..agents.agent import Agent
    from ..models.engine.precision import Precision
    from ..retrieval.retriever import Retriever

DEFAULT_MODEL = "smollm2-135m"
STARTER, WRITER = "starter", "writer"

_M, _A, _R = "Model", "Agent", "Run"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="RESTILL_MODEL",
        help="Name, Hugging Face folder, .gguf file, or http://host/v1#name for a remote model.",
        rich_help_panel=_M,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(help="LoRA adapter: a name or a folder.", rich_help_panel=_M),
]
PrecisionOption = Annotated[str, typer.Option(help="auto, f32, w8a8 (int8, on CPU), bf16 or int8.", rich_help_panel=_M)]
DeterministicOption = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="The same bits however many questions or workers run at once; slower.",
        rich_help_panel=_M,
    ),
]
IndexOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--index",
        help="Folder made by `restill index`; $RESTILL_INDEX or ./index if not given. Several are searched as one.",
        rich_help_panel=_A,
    ),
]
DocsOption = Annotated[
    list[str] | None,  # a Path would make https:/ of https://
    typer.Option(
        "--docs",
        help="Index these files, folders or URLs in memory instead; may be repeated.",
        rich_help_panel=_A,
    ),
]
KOption = Annotated[int, typer.Option("--k", min=1, help="Passages a search returns.", rich_help_panel=_A)]
ModeOption = Annotated[
    str, typer.Option("--mode", help="How to search: dense, sparse, hybrid or hops.", rich_help_panel=_A)
]
FollowOption = Annotated[
    bool,
    typer.Option("--follow", help="Give the agent a second tool: what a document leads to.", rich_help_panel=_A),
]
AgentOption = Annotated[
    str,
    typer.Option(
        "--agent",
        help="react: thinks and calls tools freely; search: decides, searches, summarises, answers, checks itself.",
        rich_help_panel=_A,
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="Prompts of --agent search: compact or code.", rich_help_panel=_A)
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Budget: steps; 6, or 24 with --agent search.", rich_help_panel=_A)
]
SecondsOption = Annotated[float, typer.Option(help="Budget: seconds a question.", rich_help_panel=_A)]
FewShotOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Examples in the prompt; by default what the adapter was trained with, else 2.",
        rich_help_panel=_A,
    ),
]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=_A)]
SeedOption = Annotated[int, typer.Option(min=0, help="Equal seeds give equal runs.", rich_help_panel=_R)]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first N.", rich_help_panel=_R)]
SamplesOption = Annotated[int, typer.Option(min=1, help="Runs over each question.", rich_help_panel=_R)]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option(min=1, help="Questions in flight; by default as many as keep the model busy.", rich_help_panel=_R),
]
Bf16Option = Annotated[
    bool,
    typer.Option("--bf16", help="Train with bf16 products: faster on processors that have them (avx512_bf16)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


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


def make_agent(
    model: Any,
    retriever: Retriever,
    *,
    agent: str = "react",
    format: str = "compact",
    steps: int | None = None,
    seconds: float,
    follow: bool = False,
    few_shot: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Agent:
    """An agent over one retriever; with ``follow``, a ReAct agent can also read what a document leads to.

    Raises:
        RestillError: no such agent, or ``follow`` with an agent that has one tool.
    """
    from ..agents.budget import Budget
    from ..agents.react import ReActAgent
    from ..agents.search.agent import SearchAgent

    if agent == "react":
        tools = [retriever.as_tool(), *([retriever.as_follow_tool()] if follow else [])]
        budget = Budget(steps=steps or 6, seconds=seconds)
        return ReActAgent(model, tools, budget=budget, few_shot=few_shot, temperature=temperature, seed=seed)
    if agent != "search":
        raise RestillError(f"--agent {agent} is unknown; choose react or search")
    if follow:
        raise RestillError("--agent search has one tool; leave out --follow")
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


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
