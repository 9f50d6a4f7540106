"""Loss curves as inline SVG that takes its colours from the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins that matplotlib writes into the file, and what the page's style sheet calls them. Every
# line colour has one lightness for light pages and one for dark ones.
_INK, _GRID = "#0a0b0c", "#0d0e0f"
_LINES = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606", "#070707", "#080808")
_COLOURS = {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    **{line: f"var(--series-{k})" for k, line in enumerate(_LINES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the font of the page
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "grid.color": _GRID,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_EXACT = "Learning rate"  # has no noise to smooth
_WINDOW = 15  # records the bold line averages over


def loss_curves(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Inline SVGs of a run's metrics: the loss, its terms, the learning rate.

    Args:
      history: records of `metrics.jsonl`: step, loss, loss/<term>, lr; missing names are left out.
    """
    terms = sorted({name for record in history for name in record if name.startswith("loss/")})
    panels = [
        ("Training loss", {"loss": "loss"}, "linear"),
        ("Loss terms", {name.removeprefix("loss/"): name for name in terms}, "log"),
        (_EXACT, {"lr": "lr"}, "linear"),
    ]
    drawn = []
    for number, (title, names, scale) in enumerate(panels):
        series = {label: _series(history, name) for label, name in names.items()}
        series = {label: line for label, line in series.items() if len(line[0])}
        if series:
            drawn.append(_draw(title, series, scale, f"curves{number}"))
    return drawn


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric."""
    points = [(r["step"], r[name]) for r in history if name in r and np.isfinite(r[name])]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _draw(
    title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], scale: str, salt: str
) -> str:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel="step")
        for number, (label, (steps, values)) in enumerate(series.items()):
            colour = _LINES[number % len(_LINES)]
            smooth = values if title == _EXACT else _smoothed(values)
            if smooth is not values:
                axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, linewidth=1.7, label=label)
        # A loss of exactly 0 would vanish on a logarithmic axis.
        positive = all((values > 0.0).all() for _, values in series.values())
        axes.set_yscale(scale if positive else "linear")
        axes.margins(x=0.01)
        if len(series) > 1:
            axes.legend(ncols=2)
        return _inline(figure, title, salt)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of up to `_WINDOW` values around each; fewer at the ends."""
    if len(values) <= _WINDOW:
        return values
    half = _WINDOW // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _inline(figure: Figure, title: str, salt: str) -> str:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # HTML needs no name spaces, and a page without any address can be checked to be self-contained.
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    # Names are numbered alike in every figure; several stand on one page.
    svg = re.sub(r'\bid="([\w.]+)"', rf'id="{salt}-\1"', svg)
    svg = re.sub(r'href="#([\w.]+)"', rf'href="#{salt}-\1"', svg)
    svg = re.sub(r"url\(#([\w.]+)\)", rf"url(#{salt}-\1)", svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label="{title}"', 1)
