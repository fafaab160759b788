"""A progress bar for rollouts, or nothing at all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any


class Progress:
    """Counts what is in flight and what is done; draws nothing by itself."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.statuses: Counter[str] = Counter()

    def begin(self) -> None:
        """A trajectory was begun."""
        self.in_flight += 1
        self.draw()

    def end(self, status: str) -> None:
        """A trajectory has ended."""
        self.in_flight -= 1
        self.statuses[status] += 1
        self.draw(1)

    def draw(self, advance: int = 0) -> None:
        """Show the state."""


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        super().__init__()
        self._bar, self._task = bar, task

    def draw(self, advance: int = 0) -> None:
        """Show what is in flight, and how many ended how."""
        counts = ", ".join(f"{n} {status}" for status, n in sorted(self.statuses.items()))
        self._bar.update(self._task, advance=advance, note=f"{self.in_flight} in flight{', ' * bool(counts)}{counts}")


@contextlib.contextmanager
def progress_bar(show: bool, *, total: int, done: int = 0, label: str = "rollout") -> Iterator[Progress]:
    """A bar with count, time left, what is in flight and the statuses so far; ``show=False``: no output."""
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(label, total=total, completed=done, note=""))
