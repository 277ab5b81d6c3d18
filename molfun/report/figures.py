"""Plots as SVG in the colours of the page: light, dark, and on paper.

A figure is drawn once. Its colours are stand-ins that become CSS variables of the page, so that the
same SVG follows ``prefers-color-scheme`` and the print style.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from molfun._lazy import require

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
COLOURS = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS, start=1)},
}
PIXELS = "#4a8fd6"
"""Colour of points that are drawn as pixels, which no style sheet reaches: legible on both."""
MOST_POINTS = 1500
"""Points that are drawn one by one; an SVG of more becomes large and slow."""
_STYLE = {
    "svg.fonttype": "none",  # texts stay texts: small files, searchable, in the page's font
    "svg.hashsalt": "molfun",  # equal figures have equal bytes
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.formatter.useoffset": False,  # "+1.978e4" above an axis is read by nobody
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_GROUP_IDS = re.compile(r'<g id="[^"]*"')


class Plot:
    """A figure that is being drawn, and its SVG afterwards.

    Parameters
    ----------
    width, height
        Size in inches; 100 pixels each on the page.
    columns, rows
        Numbers of axes side by side, and one above the other.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    axes : list of matplotlib.axes.Axes

    Examples
    --------
    >>> with plot() as drawn:
    ...     lines = drawn.axes[0].plot([1, 2], [3, 1])
    >>> drawn.svg[:4], "var(--ink)" in drawn.svg
    ('<svg', True)
    """

    def __init__(self, width: float, height: float, columns: int, rows: int) -> None:
        # Figure and not pyplot, which would choose a backend and keep the figure alive
        figure = require("matplotlib.figure", "pip install matplotlib")
        self.figure = figure.Figure(figsize=(width, height), layout="constrained")
        grid = self.figure.subplots(
            rows, columns, squeeze=False, sharex="col" if rows > 1 else False
        )
        self.axes: list[Any] = list(grid.reshape(-1))
        self.svg = ""


@contextlib.contextmanager
def plot(
    width: float = 4.8, height: float = 3.4, columns: int = 1, rows: int = 1
) -> Iterator[Plot]:
    """Give a `Plot` to draw on; its `svg` is there when the block ends."""
    matplotlib = require("matplotlib", "pip install matplotlib")
    with matplotlib.rc_context(_STYLE):
        drawn = Plot(width, height, columns, rows)
        yield drawn
        text = io.StringIO()
        # without a date, equal runs give equal files
        drawn.figure.savefig(text, format="svg", metadata={"Date": None}, dpi=150)
    drawn.svg = _for_the_page(text.getvalue())


def _for_the_page(svg: str) -> str:
    """Keep the drawing alone, with CSS variables in place of stand-in colours."""
    svg = _METADATA.sub("", _HEAD.sub("", svg, count=1))
    # names of groups would occur once per figure of the page
    svg = _GROUP_IDS.sub("<g", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg


def points(axes: Any, x: Any, y: Any, colour: str = COLOURS[0], **style: Any) -> None:
    """Draw points, as pixels where there are many."""
    many = len(x) > MOST_POINTS
    size, alpha = (6, 0.35) if many else (16, 0.6)
    axes.scatter(
        x, y, s=size, alpha=alpha, color=PIXELS if many else colour, linewidths=0,
        rasterized=many, **style,
    )  # fmt: skip


def bars(
    axes: Any, edges: Sequence[float], counts: Sequence[float], colour: str, name: str
) -> None:
    """Draw a histogram as shares of its part, as an outline that others can lie over."""
    total = sum(counts) or 1
    shares = [count / total for count in counts]
    axes.stairs(shares, edges, color=colour, label=name, linewidth=1.6)
    axes.stairs(shares, edges, color=colour, fill=True, alpha=0.15)


def cut(text: str, width: int = 24) -> str:
    """Shorten a name to what has room in a plot.

    Examples
    --------
    >>> cut("a" * 30, 8)
    'aaaaaaa…'
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"
