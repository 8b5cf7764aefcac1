"""Drawing a figure under the report's own style, whatever the user's matplotlib settings are.

Text in figures is plain Unicode, never mathtext: layer names may hold dollar signs, and text that stays
text can be found, read aloud and set in the page's font. Labels of logarithmic axes are put into that form here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.style
from cycler import cycler
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import Formatter, LogFormatterMathtext

from reports import palette
from reports.document import Figure, curve_id

POINTS = 72
"""Points per inch: at this resolution one pixel of a canvas is one point of the page."""

FONT = "DejaVu Sans"
"""Ships with matplotlib, so text is measured alike on every machine, and has the Greek and the signs we use."""

_STYLE: dict[str, object] = {
    "font.family": FONT,
    "font.size": 9.5,
    "text.color": palette.INK,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": palette.MUTED,
    "axes.labelcolor": palette.INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=palette.SERIES),
    "axes.xmargin": 0.02,
    "grid.color": palette.GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "patch.edgecolor": palette.INK,
    "xtick.color": palette.MUTED,
    "ytick.color": palette.MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.edgecolor": "none",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_SUPERSCRIPT = str.maketrans("0123456789-−.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻·")


@contextmanager
def report_style() -> Iterator[None]:
    """The report's style, from matplotlib's defaults up; what was set before comes back at the end."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # A layer named in Chinese is no fault of the reader's: the page has fonts for it, the PDF shows a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def drawn(figure: Figure, size: tuple[float, float]) -> Canvas:
    """The figure on a canvas of ``size`` inches; call and save it under :func:`report_style`."""
    canvas = Canvas(figsize=size, dpi=POINTS, layout="constrained")
    figure.draw(canvas)
    if not canvas.get_axes() and not canvas.texts:
        canvas.text(0.5, 0.5, "nothing to draw", color=palette.MUTED, ha="center", va="center")
    for axes in canvas.get_axes():
        for line in axes.get_lines():
            if line.get_gid() is None and not str(line.get_label()).startswith("_"):
                line.set_gid(curve_id(str(line.get_label())))
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(major := axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(_PlainPowers(major))
            if isinstance(minor := axis.get_minor_formatter(), LogFormatterMathtext):
                axis.set_minor_formatter(_PlainPowers(minor))
    return canvas


def plain_power(label: str) -> str:
    r"""A power as matplotlib's mathtext writes it, in plain Unicode.

    Example:
        >>> plain_power(r"$\mathdefault{2\times10^{-3}}$")
        '2×10⁻³'
    """
    inner = re.sub(r"^\$\\mathdefault\{(.*)\}\$$", r"\1", label).replace(r"\times", "×").replace("-", "−")
    return re.sub(r"\^\{([^}]*)\}", lambda power: power[1].translate(_SUPERSCRIPT), inner)


class _PlainPowers(Formatter):
    """A logarithmic formatter whose labels need no mathtext."""

    def __init__(self, inner: LogFormatterMathtext) -> None:
        self._inner = inner

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain_power(self._inner(x, pos))

    def set_locs(self, locs: Sequence[float]) -> None:
        self._inner.set_locs(locs)
