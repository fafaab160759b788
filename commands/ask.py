"""Commands that answer and show: one question, one run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import RestillError
from .common import (
    DEFAULT_MODEL,
    AdapterOption,
    AgentOption,
    DemonstrationsOption,
    DocsOption,
    FewShotOption,
    FollowOption,
    FormatOption,
    IndexOption,
    JsonOption,
    KOption,
    LimitOption,
    ModelOption,
    ModeOption,
    PrecisionOption,
    SecondsOption,
    SeedOption,
    StepsOption,
    TemperatureOption,
)
from .making import STARTER, chosen_adapter, make_agent, open_search, opened_model

if TYPE_CHECKING:
    from ..agents.agent import Agent, AgentResult
    from ..agents.trajectory import Trajectory


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What to find out.")],
    model: ModelOption = DEFAULT_MODEL,
    adapter: AdapterOption = "auto",
    precision: PrecisionOption = "auto",
    index: IndexOption = None,
    docs: DocsOption = None,
    k: KOption = 3,
    mode: ModeOption = "dense",
    follow: FollowOption = False,
    agent: AgentOption = "react",
    format: FormatOption = "compact",
    steps: StepsOption = None,
    seconds: SecondsOption = 60.0,
    few_shot: FewShotOption = None,
    demonstrations: DemonstrationsOption = None,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Answer one question over your documents, showing each step as it happens.

    Exits with 1 if there is no answer. --adapter auto means the shipped "starter" on the default
    model with --agent react, and none otherwise; --adapter none means none. Example:

      restill ask --docs my-notes/ "Who founded the firm that built the Kestrel?"
    """
    if not question.strip():
        raise RestillError("the question is empty; write what to find out")
    chosen = chosen_adapter(adapter, model, STARTER if agent == "react" else None)
    retriever = open_search(context, agent, index, docs, k, mode, progress=not json)
    with opened_model(model, chosen, precision, slots=1) as chat:
        asked = make_agent(
            chat,
            retriever,
            agent=agent,
            format=format,
            steps=steps,
            seconds=seconds,
            follow=follow,
            few_shot=few_shot,
            demonstrations=demonstrations,
            temperature=temperature,
            seed=seed,
        )
        result = asyncio.run(_answer(asked, question, quiet=json))
    if json:
        typer.echo(result.model_dump_json(exclude_none=True))
    if result.answer is None:
        raise typer.Exit(1)


async def _answer(agent: Agent, question: str, *, quiet: bool) -> AgentResult:
    from ..agents.agent import AgentResult
    from ..console import show_result, show_step, stderr, stdout

    screen, number = stdout(), 0
    with stderr().status("thinking (the first answer compiles the model)") as status:
        async for event in agent.astream(question):
            if isinstance(event, AgentResult):
                if not quiet:
                    screen.print(show_result(event.trajectory))
                return event
            number += 1
            status.update(f"step {number + 1}")
            if not quiet:
                screen.print(show_step(event, number))
    raise RestillError("the agent ended without a result; please report this")


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    name: Annotated[
        str | None, typer.Argument(metavar="ID", help="Trajectory or question id, or the beginning of one.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only answered, budget, invalid, error or cancelled.")] = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """List a run's trajectories, or print those of one question.

    In the list, * marks an answer that was forced after the budget had run out.
    With --json, every trajectory is one line.
    """
    from ..agents.run import Run
    from ..console import run_summary, show_trajectory, stdout, trajectory_list

    opened = Run.open(run)
    asked = (t for t in (opened.find(name) if name else opened) if status in (None, t.status))
    found: Iterable[Trajectory] = islice(asked, limit)  # a run may be larger than memory
    if name and not (found := list(found)):
        raise RestillError(f"no trajectory {name!r} in {run}; `restill show {run}` lists them")
    screen = stdout()
    if json:
        for trajectory in found:
            typer.echo(trajectory.to_json())
    elif name:
        for trajectory in found:
            screen.print(show_trajectory(trajectory))
    else:
        screen.print(trajectory_list(found))
        screen.print()
        screen.print(run_summary(opened.summary()))
