"""The options that commands share, and what they print as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..models.errors import RestillError

DEFAULT_MODEL = "smollm2-135m"

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
        help="react: thinks and calls tools freely; search: decides, searches, summarises, answers, checks itself; "
        "reason: thinks step by step, without tools.",
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
        help="Examples in the prompt; by default what the adapter was trained with, else 2 (--agent reason: all).",
        rich_help_panel=_A,
    ),
]
DemonstrationsOption = Annotated[
    Path | None,
    typer.Option(
        "--demonstrations",
        help="Examples for the prompt of --agent reason: JSONL of `question` and `rationale`, at most 8.",
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


def given(context: typer.Context, option: str) -> bool:
    """Whether the command line has an option, rather than its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def refuse_others(
    context: typer.Context, flag: str, chosen: str, known: Sequence[str], whose: Mapping[str, Sequence[str]]
) -> None:
    """Find options that what was chosen would ignore.

    Args:
        flag: the option that chooses, of ``known`` values.
        whose: options that not all of them have.

    Raises:
        RestillError: there is one, or ``chosen`` is unknown.
    """
    if chosen not in known:
        raise RestillError(f"--{flag} {chosen!r} is unknown; use {', '.join(known[:-1])} or {known[-1]}")
    for option, owners in whose.items():
        if chosen not in owners and option in context.params and given(context, option):
            name = option.replace("_", "-")
            raise RestillError(
                f"--{name} is an option of --{flag} {' or '.join(owners)}, not of {chosen}: leave it out"
            )


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
