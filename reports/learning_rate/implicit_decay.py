"""Reading the schedule that norms make: how much of its rate a scale-invariant weight has lost to its own growth.

Of a weight before a normalisation layer, or of a row of it, only the direction counts. The rate at which that turns is
η/‖w‖² for SGD and η/‖w‖ for adaptive optimizers, so growing norms lower it like a schedule that nobody wrote.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import method_of, step_table, unmeasured
from reports.charts import Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.learning_rate.tensor_curves import curves, spread_over_depth
from reports.stability.edge_lines import wide
from reports.stability.verdict import measured_without_batch_statistics
from reports.words import counted

CITATION = "van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800"

DECAYED = 0.5
MOST_ROWS = 0.5


def implicit_decay(run: Run) -> list[Finding]:
    """Which weights are scale-invariant, and the one that has lost most of its rate."""
    checked = run.layers("learning_rate", "lr")
    if not checked:
        return []
    if measured_without_batch_statistics(run):
        reason = "with batch normalisation in evaluation mode the weights before it are not scale-invariant"
        remedy = 'Objective(..., mode="train") measures the function that trains.'
        return [unmeasured("learning_rate/effective", "The rate lost to growing norms", reason, (remedy,), CITATION)]
    effective = effective_rates(run)
    shares = {
        name: kept[-1] for name, one in effective.items() if (kept := share_of_schedule(run, name, one)) is not None
    }
    lowest = min(shares, key=lambda name: shares[name], default="")
    claim, meaning, advice = _words(run, list(effective), len(checked), lowest, shares.get(lowest))
    last = run.last("learning_rate", _quantity(run, lowest or next(iter(effective), "")), lowest or None)
    method = method_of(last) or "cos(w, ∇L), then the gradient at 2w"
    share = shares.get(lowest)
    return [
        Finding(
            id="learning_rate/effective",
            level="warn" if advice else "ok",
            claim=claim,
            value=exact(len(effective) if share is None else share, method),
            threshold=f"below {DECAYED:.0%} of the schedule is reported" if shares else "",
            meaning=meaning,
            advice=advice,
            evidence=("effective-rate",) if shares else (),
            method=method,
            citation=CITATION,
        )
    ]


def effective_rates(run: Run) -> dict[str, Series]:
    """By tensor, the effective rate of those that passed the test at most measurements: once may be chance.

    A tensor that is invariant as a whole has its own; one whose rows are, each by itself, has that of its rows.
    """
    names = dict.fromkeys((*run.layers("learning_rate", "effective"), *run.layers("learning_rate", "row_effective")))
    rates = {}
    for name in names:
        found = run.series("learning_rate", _quantity(run, name), name)
        if 2 * len(found) > len(run.series("learning_rate", "lr", name)):
            rates[name] = found
    return rates


def _quantity(run: Run, name: str) -> str:
    """By rows only where most rows are invariant and the whole is not, most of the time."""
    whole, rows = (len(run.series("learning_rate", quantity, name)) for quantity in ("effective", "row_effective"))
    share = run.series("learning_rate", "invariant_rows", name).values
    share = share[numpy.isfinite(share)]
    by_rows = len(share) > 0 and float(numpy.median(share)) > MOST_ROWS
    return "row_effective" if by_rows and rows > whole else "effective"


def share_of_schedule(run: Run, name: str, effective: Series) -> list[float] | None:
    """How much of its effective rate a tensor has kept, the schedule's own changes divided out, over the checks."""
    nominal = run.series("learning_rate", "lr", name)
    both = numpy.intersect1d(effective.steps, nominal.steps)
    with numpy.errstate(all="ignore"):
        kept = effective.values[numpy.isin(effective.steps, both)] / nominal.values[numpy.isin(nominal.steps, both)]
    kept = kept[numpy.isfinite(kept) & (kept > 0)]
    return (kept / kept[0]).tolist() if len(kept) > 1 else None


def _words(
    run: Run, invariant: list[str], checked: int, lowest: str, share: float | None
) -> tuple[str, str, tuple[str, ...]]:
    """Claim, meaning and advice."""
    if not invariant:
        return (
            f"No tensor is scale-invariant, so the schedule in the config is the one in force ({checked} checked).",
            "Where a normalisation layer follows a weight, growing norms lower the effective rate unasked. That was "
            "not seen in this model.",
            (),
        )
    meaning = (
        "A normalisation layer follows these weights, so only their direction counts and a growing norm lowers the "
        "rate like a schedule nobody wrote. Late in training that looks like loss of plasticity."
    )
    found = f"{len(invariant)} of {counted(checked, 'tensor')} {'is' if len(invariant) == 1 else 'are'} scale-invariant"
    by_rows = sum(_quantity(run, name) == "row_effective" for name in invariant)
    if by_rows:
        found += f" ({'all' if by_rows == len(invariant) else by_rows} row by row)"
    if share is None:
        return f"{found}; one measurement shows no trend.", meaning, ()
    if share >= 0.995:
        return f"{found}; none has lost rate to a growing norm.", meaning, ()
    claim = f"{found}; growing norms have left {short(lowest)} {share:.0%} of its scheduled rate."
    advice = (
        "Add weight decay on these tensors: it balances the growth.",
        "Or project them back to their initial norm now and then (Normalize-and-Project).",
    )
    return claim, meaning, advice if share < DECAYED else ()


def effective_figure(run: Run) -> list[Figure]:
    """Effective rates, and below them the schedule as it was written and as it was in force."""
    series = {name: one for name, one in effective_rates(run).items() if len(one) > 1}
    if not series:
        return []
    names, few = spread_over_depth(list(series))
    shown = {name: series[name] for name in names}
    schedules = {"schedule": _from_one(run.series("learning_rate", "lr", names[0]))}
    schedules |= {short(name): _from_one(one) for name, one in shown.items()}
    schedules = {name: one for name, one in schedules.items() if len(one)}
    return [
        Figure(
            id="effective-rate",
            title="Effective learning rate of scale-invariant tensors",
            caption="Above: η/‖w‖² for SGD, η/‖w‖ for adaptive optimizers, the rate at which the direction of w can "
            "change. Below: the same over its first value, with the schedule as it is written: what lies "
            "under it was lost to growing norms." + few,
            alt=f"Effective learning rate over steps for {counted(len(names), 'tensor')}, log scale, and the same over "
            "its first value beside the nominal schedule.",
            draw=partial(_draw, shown, schedules),
            table=step_table(
                (*names, *(f"{name}, over its first" for name in schedules)), [*shown.values(), *schedules.values()]
            ),
            size=(7.2, 4.8),
        )
    ]


def _from_one(one: Series) -> Series:
    """Over the first value that is positive; a warm-up may begin at zero."""
    kept = numpy.isfinite(one.values) & (one.values > 0)
    if not kept.any():
        return Series(one.steps[:0], one.values[:0], one.errors[:0])
    return Series(one.steps[kept], one.values[kept] / one.values[kept][0], one.errors[kept] / one.values[kept][0])


def _draw(shown: dict[str, Series], schedules: dict[str, Series], canvas: Canvas) -> None:
    top, bottom = stacked(canvas, (1, 1))
    lines(top, curves(shown), "effective rate", log=True)
    drawn = curves({name: one for name, one in schedules.items() if name != "schedule"})
    if "schedule" in schedules:
        drawn = [*drawn, Line("as written", schedules["schedule"], color=palette.INK)]
    if drawn:
        lines(bottom, drawn, "over its first", log=wide(drawn), legend=False)
        if "schedule" in schedules:
            written = bottom.get_lines()[-1:]
            bottom.legend(handles=written, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        if not wide(drawn):
            bottom.set_ylim(bottom=0.0)
