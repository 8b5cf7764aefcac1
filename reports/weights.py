"""Reading a checkpoint's tensors: what can be said of weights with nothing else known."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import Chapter, unmeasured
from reports.charts import dots, short
from reports.document import Figure, Table
from reports.finding import Finding
from reports.stability.verdict import CITATION as STABILITY_CITATION
from reports.words import counted

MOST_BARS = 40
_COLUMNS = ("elements", "norm", "rms", "max_abs", "zeros", "non_finite")


def read(run: Run) -> Chapter:
    """Findings and figures about the tensors of a checkpoint."""
    tensors = run.layers("weights", "elements")
    if not tensors:
        return Chapter()
    values = {name: {column: _value(run, column, name) for column in _COLUMNS} for name in tensors}
    findings = [_finite(values), *_optimizer_state(run), *_all_zero(run, values)]
    if not run.header.get("task"):
        findings.append(
            unmeasured(
                "sharpness/regime",
                "Curvature",
                "a checkpoint alone has no loss and no data",
                ("Pass --task task.py, whose build(checkpoint) returns an Objective, or (Objective, optimizer).",),
                STABILITY_CITATION,
            )
        )
    return Chapter(tuple(findings), (_figure(values),))


def _value(run: Run, column: str, name: str) -> float | None:
    record = run.last("weights", column, name)
    return None if record is None else record.value


def _finite(values: dict[str, dict[str, float | None]]) -> Finding:
    counts = {name: int(row["non_finite"]) for name, row in values.items() if row["non_finite"] is not None}
    broken = {name: count for name, count in counts.items() if count}
    elements = int(sum(row["elements"] or 0 for row in values.values()))
    if not broken:
        claim = f"All {elements:,} numbers in {counted(len(counts), 'tensor')} are finite."
    else:
        worst = max(broken, key=lambda name: broken[name])
        claim = (
            f"{sum(broken.values()):,} of {elements:,} numbers are NaN or infinite, in {len(broken)} of "
            f"{len(counts)} tensors; "
            f"most in {short(worst)} ({broken[worst]:,})."
        )
    return Finding(
        id="weights/finite",
        level="fail" if broken else "ok",
        claim=claim,
        value=exact(sum(broken.values()), "every entry counted"),
        threshold="no NaN and no infinity",
        meaning="A network with such weights computes nothing but NaN, and training from here cannot recover."
        if broken
        else "The file holds numbers throughout.",
        advice=(
            "Go back to an earlier checkpoint.",
            "Look at the stability ratio of the run before that step; with mixed precision, at the loss scale.",
        )
        if broken
        else (),
        evidence=("weights-rms",),
        method="every entry counted, one tensor at a time",
        citation="",
    )


def _optimizer_state(run: Run) -> list[Finding]:
    record = run.last("weights", "optimizer_non_finite")
    if record is None or not record.value:
        return []
    return [
        Finding(
            id="weights/optimizer",
            level="fail",
            claim=f"The optimizer's state holds {counted(int(record.value), 'number')} that "
            f"{'is' if record.value == 1 else 'are'} "
            f"NaN or infinite ({record.note}).",
            value=exact(record.value, "every entry counted"),
            threshold="no NaN and no infinity",
            meaning="The weights may still be sound, but the next step takes them from this state.",
            advice=("Go back to an earlier checkpoint.", "Or keep the weights and start with a fresh optimizer."),
            evidence=(),
            method="every entry counted, one tensor at a time",
            citation="",
        )
    ]


def _all_zero(run: Run, values: dict[str, dict[str, float | None]]) -> list[Finding]:
    shapes = run.header.get("model", {}).get("shapes", {})
    zero = [name for name, row in values.items() if row["zeros"] == 1.0 and len(shapes.get(name, ())) >= 2]
    if not zero:
        return []
    return [
        Finding(
            id="weights/zero",
            level="warn",
            claim=f"{counted(len(zero), 'weight matrix')} all zero: {', '.join(short(name) for name in zero[:4])}"
            + (f" and {len(zero) - 4} more" if len(zero) > 4 else "")
            + ".",
            value=exact(len(zero), "every entry counted"),
            threshold="none",
            meaning="A zero matrix passes nothing on. Some designs start a residual branch or an adapter that way; "
            "after training it "
            "means that the matrix got no gradient.",
            advice=("Check that the layer is used and trained, unless the design starts it at zero.",),
            evidence=(),
            method="every entry counted",
            citation="",
        )
    ]


def _figure(values: dict[str, dict[str, float | None]]) -> Figure:
    sized = {name: row["rms"] for name, row in values.items() if row["rms"] is not None and row["rms"] > 0}
    shown = (
        dict(sorted(sized.items(), key=lambda item: -(item[1] or 0.0))[:MOST_BARS]) if len(sized) > MOST_BARS else sized
    )
    left_out = f" The {MOST_BARS} largest of {len(sized)}." if len(sized) > MOST_BARS else ""
    return Figure(
        id="weights-rms",
        title="Size of the tensors",
        caption=f"Root mean square of each tensor's finite entries, log scale.{left_out}",
        alt=f"Dots: root mean square of {len(shown)} tensors.",
        draw=partial(_draw, list(shown), [value or 0.0 for value in shown.values()]),
        table=Table(
            ("tensor", *_COLUMNS), tuple((name, *(row[column] for column in _COLUMNS)) for name, row in values.items())
        ),
        size=(7.2, min(9.0, 1.1 + 0.22 * max(1, len(shown)))),
    )


def _draw(names: list[str], values: list[float], canvas: Canvas) -> None:
    dots(canvas, names, values, "root mean square")
