"""How trajectories and runs look in a terminal; imports rich and nothing of restill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .agents.trajectory import Observation, Step, Trajectory

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLOURS = {
    "answered": "green",
    "budget": "yellow",
    "invalid": "yellow",
    "error": "red",
    "cancelled": "red",
    "ok": "green",
}


def stderr() -> Console:
    """For progress and messages, so that stdout stays clean for pipes."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """For results."""
    return Console(highlight=False, soft_wrap=False)


def show_step(step: Step, number: int) -> RenderableType:
    """One step: thought, action, and what came back with its document ids."""
    rows: list[RenderableType] = []
    if step.thought:
        rows.append(_row("thought", _text(step.thought)))
    if step.action is None:
        rows.append(_row("wrote", _text(" ".join(step.sample.text.split()), style="red")))
    elif step.action.tool != "finish":
        rows.append(_row(step.action.tool, _text(_arguments(step.action.arguments), style="cyan")))
    if step.observation is not None:
        rows.extend(_observation(step.observation))
    head = Text(f"step {number}" + (f" · {step.kind}" if step.kind else ""), style="bold")
    head.append(f"  {_seconds(step)}" + ("  answer forced" if step.forced else ""), style="dim")
    return Group(head, *rows)


def show_result(trajectory: Trajectory) -> RenderableType:
    """The answer with its citations, and a line of status, tokens and seconds."""
    lines: list[RenderableType] = []
    if trajectory.answer is not None:
        lines.append(_row("answer", _text(trajectory.answer, style="bold")))
    if trajectory.citations:
        places = [f"{c.doc_id} ({c.start}-{c.end})" for c in trajectory.citations]
        lines.append(_row("cites", _text(", ".join(places), style="cyan")))
    if trajectory.error:
        lines.append(_row("error", _text(trajectory.error, style="red")))
    return Group(*lines, _row("", status_line(trajectory)))


def show_trajectory(trajectory: Trajectory) -> RenderableType:
    """A whole trajectory: question, steps, answer."""
    question = Text.assemble(("question", "bold"), "  ", printable(trajectory.question))
    steps = [show_step(step, number) for number, step in enumerate(trajectory.steps, 1)]
    return Group(question, *steps, show_result(trajectory))


def status_line(trajectory: Trajectory) -> Text:
    """Status, steps, tokens and seconds in one line."""
    status = Text(trajectory.status, style=_COLOURS.get(trajectory.status, ""))
    if trajectory.forced and trajectory.answer is not None:
        status.append(" (best effort after the budget)")
    parts = [f"{len(trajectory.steps)} steps", f"{len(trajectory.calls())} tool calls"]
    usage = trajectory.usage
    if usage.generated:
        parts.append(f"{usage.generated} tokens written")
        parts.append(f"{usage.prompt} read, {usage.cached} of them from the cache")
    parts.append(f"{trajectory.seconds:.1f} s")
    return status.append(" · " + " · ".join(parts), style="dim")


def trajectory_list(trajectories: Iterable[Trajectory]) -> Table:
    """One line for each trajectory; ``*`` marks a forced answer."""
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("id", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("steps", justify="right")
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("answer", no_wrap=True, overflow="ellipsis", ratio=2)
    for t in trajectories:
        status = Text(t.status + ("*" if t.forced else ""), style=_COLOURS.get(t.status, ""))
        answer = " ".join((t.answer or "").split())
        table.add_row(t.id, status, str(len(t.steps)), _text(t.question), _text(answer))
    return table


def run_summary(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """The summary of a run: a paragraph for each agent that wrote into it."""
    paragraphs = []
    for row in rows:
        model = (row.get("config") or {}).get("model") or {}
        name = str(model.get("name", "?")) + (f" + {model['adapter']}" if model.get("adapter") else "")
        counts = [f"{count} {status}" for status, count in sorted(row["statuses"].items())]
        forced = [f"{row['forced']} forced"] if row["forced"] else []
        facts = [
            f"{row['trajectories']} trajectories ({', '.join(counts + forced)})",
            f"{row['calls']} tool calls, {row['failed_calls']} failed",
            f"{row['generated_tokens']} tokens written, {row['cached_tokens']} of "
            f"{row['prompt_tokens']} read from the cache",
            f"{row['seconds']:.1f} s in all",
        ]
        paragraphs.append(
            Text.assemble((f"agent {row['agent']} ", "bold"), printable(name), "\n  " + "\n  ".join(facts))
        )
    return Group(*paragraphs)


def printable(text: str) -> str:
    """What a document or a model wrote, without control characters: some steer a terminal."""
    return _CONTROL.sub("\ufffd", text)


def warn(text: str) -> None:
    """A line of warning, for people."""
    stderr().print(f"warning: {printable(text)}", style="yellow", markup=False)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _row(label: str, value: Text) -> RenderableType:
    # Text objects throughout: in a markup string, a passage's "[1]" would vanish as a tag.
    table = Table.grid(padding=(0, 2))
    table.add_column(width=8, style="dim", overflow="ellipsis", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row(Text(label), value)
    return Padding(table, (0, 0, 0, 2))


def _observation(observation: Observation) -> Iterable[RenderableType]:
    text = observation.text.removeprefix("Observation:").strip() or (observation.error or "")
    if not observation.passages:
        yield _row("found" if observation.status == "ok" else observation.status, _text(text))
        return
    label = "found"
    for passage, piece in zip(observation.passages, _pieces(text, observation), strict=True):
        shown = Text.assemble((f"[{passage.handle}] ", "bold"), (printable(passage.doc_id), "cyan"))
        yield _row(label, shown.append(f"  {printable(piece)}", style="dim"))
        label = ""


def _pieces(text: str, observation: Observation) -> list[str]:
    """The text of each passage, found by the handles, which follow each other in the observation."""
    starts, at = [], 0
    for passage in observation.passages:
        found = text.find(f"[{passage.handle}]", at)
        starts.append(found if found >= 0 else len(text))
        at = found if found >= 0 else at
    ends = [*starts[1:], len(text)]
    return [text[a:b].split("]", 1)[-1].strip() for a, b in zip(starts, ends, strict=True)]


def _arguments(arguments: Mapping[str, Any]) -> str:
    if len(arguments) == 1:
        return str(next(iter(arguments.values())))
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _seconds(step: Step) -> str:
    tool = step.observation.seconds if step.observation else 0.0
    return f"{step.sample.seconds + tool:.1f} s"
