"""What a job came to: one row per arm, differences with paired intervals, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..agents.evaluate import EvalReport
from ..models.errors import RestillError
from .files import write_atomic

if TYPE_CHECKING:
    from rich.table import Table


class Arm(BaseModel):
    """One agent on the held-out questions; shares lie between 0 and 1, intervals are bootstrapped.

    Attributes:
        em_unforced: exact match where answers forced after the budget count as wrong.
        trajectories: how many it was trained on; ``None`` for the base.
        occupancy: share of the engine's slots that were decoding while it was evaluated.
        seconds: wall time of its rollout, training and evaluation; of a resumed phase, the last attempt.
    """

    name: str
    trajectories: int | None = None
    em: float
    em_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    em_unforced: float
    answered: float
    forced: float
    searches: float
    tokens: float
    recall: float | None = None
    occupancy: float | None = None
    adapter: str | None = None
    run: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, name: str, scored: EvalReport, **rest: Any) -> Arm:
        """An arm from its evaluation."""
        shared = (
            "em",
            "em_interval",
            "f1",
            "f1_interval",
            "em_unforced",
            "answered",
            "forced",
            "tokens",
            "recall",
            "occupancy",
        )
        values = {field: getattr(scored, field) for field in shared}
        return cls(name=name, searches=scored.tool_calls, run=scored.run, **values, **rest)


class Delta(BaseModel):
    """Exact match of one arm minus another's on the same questions, with its paired 95 % interval."""

    arm: str
    over: str
    em: float
    interval: tuple[float, float]


class Report(BaseModel):
    """A finished job.

    Attributes:
        adapter: of the last generation (or the pilot), to give to ``JaxChatModel``; a model folder for full
            training.
        phases: what each phase made, by name.
    """

    out: str
    questions: int
    held_out: int
    method: dict[str, Any]
    arms: list[Arm] = []
    deltas: list[Delta] = []
    adapter: str | None = None
    phases: dict[str, dict[str, Any]] = {}

    def arm(self, name: str) -> Arm:
        """An arm by name: base, pilot, generation 1, ..., control.

        Raises:
            RestillError: there is none of that name.
        """
        found = next((arm for arm in self.arms if arm.name == name), None)
        if found is None:
            raise RestillError(f"no arm {name!r}; there are {', '.join(arm.name for arm in self.arms) or 'none'}")
        return found

    def delta(self, arm: str, over: str) -> Delta:
        """A difference by the names of its arms.

        Raises:
            RestillError: it was not computed.
        """
        found = next((d for d in self.deltas if (d.arm, d.over) == (arm, over)), None)
        if found is None:
            known = ", ".join(f"{d.arm} - {d.over}" for d in self.deltas)
            raise RestillError(f"no difference {arm} - {over}; there are: {known or 'none'}")
        return found

    def save(self) -> Path:
        """Write ``report.json`` into the job's folder."""
        path = Path(self.out) / "report.json"
        write_atomic(path, self.model_dump_json(indent=1) + "\n")
        return path

    @classmethod
    def load(cls, out: str | Path) -> Report:
        """Read a job's report.

        Raises:
            RestillError: the job has none yet.
        """
        path = Path(out) / "report.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError:
            raise RestillError(f"no report at {str(path)!r}; run the job to its end first") from None
        except ValidationError as error:
            raise RestillError(f"{path} is no report: {str(error).splitlines()[0]}") from None

    def table(self) -> Table:
        """Arms as a rich table, each with its difference to the arm before; intervals below the values."""
        from rich import box
        from rich.table import Table

        title = f"{self.held_out} held-out questions, 95 % intervals"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        for column in ("arm", "trained on", "exact match", "difference", "answered", "forced", "calls", "full"):
            table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
        for arm in self.arms:
            delta = next((d for d in reversed(self.deltas) if d.arm == arm.name and d.over != "control"), None)
            table.add_row(
                arm.name,
                "" if arm.trajectories is None else str(arm.trajectories),
                f"{100 * arm.em:.1f} %\n{100 * arm.em_interval[0]:.1f} to {100 * arm.em_interval[1]:.1f}",
                "" if delta is None else _difference(delta),
                _percent(arm.answered),
                _percent(arm.forced),
                f"{arm.searches:.2f}",
                "" if arm.occupancy is None else _percent(arm.occupancy),
            )
        for delta in self.deltas:
            if delta.over == "control":
                table.caption = f"{delta.arm} {_difference(delta).replace(chr(10), ', ')}"
        return table


def comparisons(arms: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (arm, over) worth a difference, of arms by name in their order.

    Each arm over the first and over the arm before it; the control is compared with generation 1 alone.
    """
    pairs: list[tuple[str, str]] = []
    trained = [arm for arm in arms if arm != "control"]
    for place, arm in enumerate(trained[1:], 1):
        pairs += [(arm, over) for over in dict.fromkeys((trained[0], trained[place - 1]))]
    if {"generation 1", "control"} <= set(arms):
        pairs.append(("generation 1", "control"))
    return pairs


def differences(arms: Sequence[tuple[str, EvalReport]], pairs: Sequence[tuple[str, str]]) -> list[Delta]:
    """The differences of the named pairs (arm, over)."""
    by_name = dict(arms)
    made = []
    for arm, over in pairs:
        em, interval = by_name[arm].difference(by_name[over])
        made.append(Delta(arm=arm, over=over, em=em, interval=interval))
    return made


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _difference(delta: Delta) -> str:
    low, high = (100 * end for end in delta.interval)
    return f"{100 * delta.em:+.1f} on {delta.over}\n{low:+.1f} to {high:+.1f}"
