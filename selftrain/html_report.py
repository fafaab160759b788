"""A job as one HTML page that needs nothing else: scores, costs, training, settings, and what each arm did.

Trajectories hold text from models and from the web. Everything is escaped, the page has no script, and its policy
allows none, nor any request; only our own plots go in as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..agents.evaluate import EvalRow
from ..agents.scores import match
from ..agents.trajectory import Trajectory
from ..models.errors import RestillError
from .arm_stats import ArmStats
from .files import write_atomic
from .job_folder import JobFolder, ScoredArm, arm_name, flat
from .plots import interval_plot, line_plot
from .report import comparisons, differences

TEMPLATE = Path(__file__).with_name("report.html.j2")
PAGE = "report.html"


_SHARES = ("right", "accepted", "solved", "turnover", "answered", "rationalised")
"""What TRICE and its baselines log of their draws, as shares."""


@dataclass(frozen=True)
class Column:
    """What one arm did with one question.

    Attributes:
        trajectories: each sample and whether its answer is right.
    """

    arm: str
    em: float
    trajectories: list[tuple[Trajectory, bool]]


@dataclass(frozen=True)
class Case:
    """One held-out question, the arms side by side."""

    row: EvalRow
    changed: bool
    columns: list[Column]


def write_html(
    job_folder: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, questions: int = 30
) -> Path:
    """Write what a job did as one self-contained page, atomically; a job that has not ended is shown as far as it is.

    The same folder gives the same bytes.

    Args:
        out: the file; by default ``report.html`` in the job's folder.
        questions: held-out questions whose trajectories are shown (the control's are not): first those that the
            arms answered differently, in the order of the questions.

    Returns:
        The file.

    Raises:
        RestillError: no job there, a file of it that cannot be read, or matplotlib is not installed.
    """
    if questions < 0:
        raise RestillError(f"questions={questions}: give at least 0")
    job = JobFolder.open(Path(job_folder))
    path = job.path / PAGE if out is None else Path(out)
    write_atomic(path, _page(job, questions))
    return path


def cases(arms: Sequence[ScoredArm], count: int) -> list[Case]:
    """The ``count`` questions to show: those whose exact match differs between the arms first."""
    if not arms:
        return []
    rows = [{row.key: row for row in arm.scored.rows} for arm in arms]
    shared = [key for key in rows[0] if all(key in others for others in rows)]
    changed = {key for key in shared if len({of[key].em for of in rows}) > 1}
    ordered = sorted(shared, key=lambda key: key not in changed)  # stable
    return [
        Case(rows[0][key], key in changed, [_column(arm, of[key]) for arm, of in zip(arms, rows, strict=True)])
        for key in ordered[:count]
    ]


def _column(arm: ScoredArm, row: EvalRow) -> Column:
    marked = [(t, match(t, row.golds) == 1.0) for t in arm.trajectories(row)]
    return Column(arm.name, row.em, marked)


def _page(job: JobFolder, questions: int) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "between": _between, "points": _points, "plain": _plain, "day": _day}
    arms = [(arm, ArmStats.of(arm)) for arm in job.arms]
    scored = [(arm.name, arm.scored) for arm in job.arms]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        job=job,
        title=job.path.resolve().name,
        settings=list(flat(job.manifest["settings"])),
        arms=arms,
        deltas=differences(scored, comparisons([name for name, _ in scored])),
        checked=[(arm.name, stats.checks) for arm, stats in arms if stats.checks is not None],
        cases=cases([arm for arm in job.arms if arm.folder != "control"], questions),
        plots=_plots(job, arms),
        arm_name=arm_name,
        flat=flat,
    )


def _plots(job: JobFolder, arms: Sequence[tuple[ScoredArm, ArmStats]]) -> dict[str, Any]:
    """The page's plots by name, marked as safe to stand in it."""
    from markupsafe import Markup  # jinja2's own

    names = [arm.name for arm, _ in arms]
    found: dict[str, str] = {}
    if arms:
        shares = [100 * arm.scored.em for arm, _ in arms]
        reach = [(100 * low, 100 * high) for low, high in (arm.scored.em_interval for arm, _ in arms)]
        found["accuracy"] = interval_plot("accuracy", "exact match, %", names, shares, reach)
        calls, spread = [stats.searches for _, stats in arms], [stats.searches_interval for _, stats in arms]
        found["searches"] = interval_plot("searches", "tool calls a question", names, calls, spread)
    if job.losses:
        curves = {arm_name(f): [(row["step"], row["loss"]) for row in rows] for f, rows in job.losses.items()}
        found["loss"] = line_plot("loss", "training loss", curves)
    for folder, rows in job.drawn.items():
        shares = {name: [(r["step"], r[name]) for r in rows if name in r] for name in _SHARES}
        spread = [(r["step"], r["grad_variance"]) for r in rows if "grad_variance" in r]
        if any(shares.values()):
            found["drawn"] = line_plot("drawn", f"{folder}, share", {name: c for name, c in shares.items() if c})
        if spread:
            found["variance"] = line_plot("variance", "gradient variance", {folder: spread}, logarithmic=True)
    if job.curves:
        curves = {f: [(row["sampled"], 100 * row["accuracy"]) for row in rows] for f, rows in job.curves.items()}
        found["curve"] = line_plot("curve", "held-out accuracy, %", curves, across="tokens drawn")
    return {name: Markup(svg) for name, svg in found.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _between(interval: tuple[float, float], scale: float = 100, digits: int = 1, sign: str = "") -> str:
    low, high = (f"{scale * end:{sign}.{digits}f}" for end in interval)
    return f"{low} to {high}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _plain(value: Any) -> str:
    """A value of a manifest: floats short, the rest as it is."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_plain(inner) for inner in value) or "none"
    return "none" if value is None else str(value)


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
