"""A progress bar with time left and lines on stderr, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Meter:
    """``with Meter("train", total=9, show=True) as meter: meter.advance("loss 1.2")``; else silent."""

    def __init__(self, label: str, *, total: int, done: int = 0, show: bool = False) -> None:
        self._bar: Any = None
        self._task: Any = None
        if show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(label, total=total, completed=done, note="compiling")

    def advance(self, note: str = "") -> None:
        """One more done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=note)

    def note(self, note: str) -> None:
        """Say how it goes, where nothing more is done."""
        if self._bar is not None:
            self._bar.update(self._task, note=note)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def teller(show: bool) -> Callable[[str], None]:
    """A function that prints a line on stderr, or does nothing."""
    if not show:
        return lambda text: None
    from rich.console import Console

    return lambda text: Console(stderr=True).print(text, style="bold", markup=False, highlight=False, soft_wrap=True)
