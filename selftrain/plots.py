"""Plots as SVG text that can stand in a page: matplotlib's figures, without its global state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models.errors import RestillError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ID = re.compile(r'(\bid="|href="#|url\(#)')


def interval_plot(
    name: str, label: str, arms: Sequence[str], values: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> str:
    """One point an arm with its interval, from left to right; the control is grey.

    Args:
        name: of the plot, unique in the page.
        label: of the values' axis.

    Raises:
        RestillError: matplotlib is not installed.
    """
    figure, axes = _figure(width=1.4 + 1.1 * len(arms))
    for place, (arm, value, (low, high)) in enumerate(zip(arms, values, intervals, strict=True)):
        colour = "0.55" if arm == "control" else "C0"
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]  # rounding may put a mean past its interval
        axes.errorbar([place], [value], yerr=reach, fmt="o", color=colour, capsize=5, markersize=7)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    return _svg(figure, name)


def line_plot(
    name: str,
    label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str = "step",
    logarithmic: bool = False,
) -> str:
    """One line a name, such as the training loss of each arm over steps.

    Args:
        label, across: of the axes.

    Raises:
        RestillError: matplotlib is not installed.
    """
    figure, axes = _figure(width=7.5)
    for arm, points in curves.items():
        shown = [(x, y) for x, y in points if y > 0 or not logarithmic]
        axes.plot([x for x, _ in shown], [y for _, y in shown], label=arm, linewidth=1.2)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure, name)


def _figure(width: float) -> tuple[Any, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RestillError("the report draws with matplotlib; install it: pip install 'restill[report]'") from None
    figure = Figure(figsize=(max(width, 3.5), 3.0), layout="tight")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    """The figure as one ``<svg>`` element, the same for the same figure; its ids are its own in the page."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format"))
        )
    text = out.getvalue()
    return _ID.sub(rf"\g<1>{name}-", text[text.index("<svg") :])
