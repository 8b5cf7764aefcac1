"""The kernel itself, its examples ordered by class: what a step on one does to another."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from probes.run import Record, Run
from reports import palette
from reports.document import Figure, Table

PROBE = "tangent_kernel"

Panel = tuple[int, numpy.ndarray]


def figure(run: Run) -> list[Figure]:
    """The first kernel and the last, each entry over the root of both diagonals."""
    records = [one for one in run.records if (one.probe, one.name) == (PROBE, "kernel") and one.status == "ok"]
    ends = records[:1] + ([records[-1]] if len(records) > 1 else [])
    panels = [(record.step, cosines) for record in ends if (cosines := _cosines(run, record)) is not None]
    if not panels:
        return []
    classes = _classes(run, len(panels[-1][1]))
    rows = tuple((step, *_means(cosines, classes)) for step, cosines in panels)
    ordered = (
        ""
        if classes is None
        else " Examples are ordered by class, and ticks stand where a class begins. Where blocks along the diagonal "
        "stand out, examples of a class are learned together."
    )
    return [
        Figure(
            id="kernel-matrix",
            title="The tangent kernel",
            caption="Cosines between the output gradients of all pairs of examples, at the first check and the last: "
            f"how much of a step on one is felt by another.{ordered}",
            alt="; ".join(f"mean cosine of {step}" for step in (_said(row) for row in rows)) + ".",
            draw=partial(_draw, panels, classes),
            table=Table(("step", "mean cosine within classes", "between classes"), rows),
            size=(7.2, 3.5),
        )
    ]


def _said(row: tuple[int, float | None, float | None]) -> str:
    within = "" if row[1] is None else f"{row[1]:.2g} within classes and "
    between = "" if row[2] is None else f"{row[2]:.2g} between them"
    return f"step {row[0]}: {within}{between}"


def _cosines(run: Run, record: Record) -> numpy.ndarray | None:
    """None where the array is missing or is not what it should be: a folder may be damaged."""
    kernel = run.array(_only(run, record))
    if kernel is None or kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        return None
    sizes = numpy.sqrt(numpy.diagonal(kernel).astype(numpy.float64).clip(0.0))
    with numpy.errstate(all="ignore"):
        cosines: numpy.ndarray = kernel / numpy.outer(sizes, sizes)
    return cosines


def _only(run: Run, record: Record) -> Record:
    """The record, or where arrays are in memory the one that they belong to, the last."""
    return record if run.path is not None else run.last(PROBE, "kernel") or record


def _classes(run: Run, count: int) -> numpy.ndarray | None:
    record = run.last(PROBE, "classes")
    classes = None if record is None else run.array(record)
    return classes if classes is not None and classes.shape == (count,) else None


def _means(cosines: numpy.ndarray, classes: numpy.ndarray | None) -> tuple[float | None, float | None]:
    """Over pairs of different examples of one class, and of two."""
    apart = ~numpy.eye(len(cosines), dtype=bool)
    same = numpy.zeros_like(apart) if classes is None else classes[:, None] == classes[None, :]
    found = [cosines[apart & chosen] for chosen in (same, ~same)]
    within, between = (float(numpy.nanmean(one)) if numpy.isfinite(one).any() else None for one in found)
    return within, between


def _draw(panels: list[Panel], classes: numpy.ndarray | None, canvas: Canvas) -> None:
    every = canvas.subplots(1, len(panels), squeeze=False)[0]
    shades = LinearSegmentedColormap.from_list("cosines", [palette.SERIES[1], "#eef1f6", palette.SERIES[0]])
    for axes, (step, cosines) in zip(every, panels, strict=True):
        mesh = axes.imshow(cosines, cmap=shades, vmin=-1.0, vmax=1.0, interpolation="nearest")
        axes.grid(False)
        axes.set_title(f"step {step}", fontsize=9)
        if classes is None:
            axes.set_xlabel("example")
        else:
            begins = numpy.flatnonzero(numpy.diff(classes, prepend=classes[0] - 1))
            axes.set_xticks(begins - 0.5, [str(classes[place]) for place in begins])
            axes.set_yticks(begins - 0.5, [str(classes[place]) for place in begins])
            axes.set_xlabel("class")
    bar = canvas.colorbar(mesh, ax=list(every), pad=0.02, shrink=0.85)
    bar.set_label("cosine")
    bar.outline.set_visible(False)
