"""Reading rotation: how far a step turns each matrix, against the angle at which growth and decay of its norm balance.

Random steps lengthen a weight and decay shortens it. In balance the angle per step depends on learning rate and decay
alone, √(2ηλ) for plain SGD (arXiv 2305.17212). On the way there, which takes some 1/(2ηλ) steps, matrices turn at
speeds that their initial norms set.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of, step_table
from reports.charts import Edge, Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.learning_rate.rates import last_at_rate
from reports.learning_rate.tensor_curves import at, curves, matrices, measured, spread_over_depth, steps_of
from reports.stability.edge_lines import lines_on_edge, wide
from reports.words import counted

ID = "learning_rate/rotation"
CITATION = "Kosson et al., arXiv 2305.17212"

BALANCED = 2.0
"""Measured over predicted within this factor is balance: the prediction is one for random gradients."""
SETTLED = 3.0
"""After so many times 1/(2ηλ) steps 95 % of the way is done."""
UNEQUAL = 10.0
"""So many times faster or slower than the median, against the prediction, long after balance was due."""
FEW = 4
NO_ADVICE: tuple[str, ...] = ()


def rotation(run: Run) -> list[Finding]:
    """How fast matrices turn, and whether that is what weight decay leads to."""
    turned = _turned(run)
    if not turned:
        return []
    step = last_at_rate(run, steps_of(turned))
    angles = at(turned, step)
    predicted = at(measured(run, "rotation_predicted", list(angles)), step)
    over = {name: angles[name] / predicted[name] for name in angles if name in predicted}
    middle = float(numpy.median(list(angles.values())))
    due = _due(run, list(over), step)
    claim = f"A step turns matrices by {middle:.2g} rad (median of {len(angles)}, step {step})"
    meaning, advice = _NO_DECAY, NO_ADVICE
    if over:
        said, meaning = _against_balance(float(numpy.median(list(over.values()))), step, due)
        claim += said
    odd = _odd(over, step, due)
    if odd is not None:
        claim += f"; {short(odd)} turns {over[odd]:.2g} times as fast as predicted"
        meaning += " A matrix that turns far faster or slower than the others is trained at another rate than they are."
        advice = (
            "Give such a matrix a learning rate of its own, or weight decay if its group has none.",
            "See that its gradient arrives, and is not that of a few rare examples only.",
        )
    record = run.last("learning_rate", "rotation_predicted" if over else "rotation", odd or next(iter(over or angles)))
    return [
        Finding(
            id=ID,
            level="ok" if odd is None else "warn",
            claim=claim + ".",
            value=exact(middle, method_of(record)),
            threshold=f"reported where a matrix is {UNEQUAL:g} times off the median, against the prediction, after "
            f"{SETTLED:g}/(2ηλ) steps"
            if over
            else "",
            meaning=meaning,
            advice=advice,
            evidence=("rotation",) if any(len(one) > 1 for one in turned.values()) else (),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def _turned(run: Run) -> dict[str, Series]:
    """Rotations, where they say more than the size of steps: some weight has only its direction, or a balance ahead."""
    telling = ("effective", "row_effective", "rotation_predicted")
    if not any(run.layers("learning_rate", quantity) for quantity in telling):
        return {}
    return measured(run, "rotation", matrices(run, "rotation"))


_NO_DECAY = (
    "Of a weight before a normalisation layer only the direction counts, and this is how fast it moves. Without "
    "decay that is understood no balance is predicted: norms grow and rotation slows down."
)


def _against_balance(over: float, step: int, due: float | None) -> tuple[str, str]:
    """The claim's second half and its meaning."""
    said = f", {over:.2g} times what learning rate and weight decay predict in equilibrium"
    if 1 / BALANCED <= over <= BALANCED:
        return f"{said}: balanced", (
            "Growth of the norms and weight decay balance, so learning rate and decay alone set how fast directions "
            "change."
        )
    if due is None or step < due:
        when = "" if due is None else f" after some {due:,.0f} steps (3/(2ηλ))"
        return f"{said}: still on the way", (
            f"Balance is expected{when}. Until then initial norms set how fast each matrix turns, as much as the "
            "learning rate does."
        )
    return f"{said}, though {due:,.0f} steps (3/(2ηλ)) have passed", (
        "The prediction is for scale-invariant weights and random gradients. Weights without a normalisation layer, "
        "gradients that keep their direction, and a schedule that moves faster than the balance all turn otherwise."
    )


def _due(run: Run, names: list[str], step: int) -> float | None:
    """The step by which balance is expected; None where nothing is known of it."""
    timescales = at(measured(run, "timescale", names), step)
    return SETTLED * float(numpy.median(list(timescales.values()))) / 2 if timescales else None


def _odd(over: dict[str, float], step: int, due: float | None) -> str | None:
    """The matrix farthest from the others, where that is too far and too late to be a transient."""
    if due is None or step < due or len(over) < FEW:
        return None
    middle = float(numpy.median(list(over.values())))
    farthest = max(over, key=lambda name: abs(numpy.log(over[name] / middle)))
    # Both off the others and off the prediction: a frozen neighbourhood makes no outlier of what is as it should be.
    apart = [max(ratio, 1 / ratio) for ratio in (over[farthest] / middle, over[farthest])]
    return farthest if min(apart) > UNEQUAL else None


def rotation_figure(run: Run) -> list[Figure]:
    """Rotation over steps, and below it over its equilibrium where one is predicted."""
    turned = {name: one for name, one in _turned(run).items() if len(one) > 1}
    if not turned:
        return []
    names, few = spread_over_depth(list(turned))
    shown = {name: turned[name] for name in names}
    over = {name: _over(one, run.series("learning_rate", "rotation_predicted", name)) for name, one in shown.items()}
    over = {name: one for name, one in over.items() if len(one) > 1}
    below = " Below: over the angle at which norms neither grow nor shrink; 1 (dashed) is balance." if over else ""
    return [
        Figure(
            id="rotation",
            title="Rotation per step and its equilibrium" if over else "Rotation per step",
            caption=f"The angle by which a step turns each matrix, in radians.{below}{few}",
            alt=f"Rotation over steps for {counted(len(shown), 'tensor')}, log scale"
            + ("; below, over the predicted equilibrium." if over else "."),
            draw=partial(_draw, shown, over),
            table=step_table(
                (*shown, *(f"{name}, over equilibrium" for name in over)), [*shown.values(), *over.values()]
            ),
            size=(7.2, 4.8) if over else (7.2, 3.4),
        )
    ]


def _over(turned: Series, predicted: Series) -> Series:
    known = dict(zip(predicted.steps.tolist(), predicted.values.tolist(), strict=True))
    held = numpy.array([known.get(step, float("nan")) for step in turned.steps.tolist()], dtype=numpy.float64)
    kept = numpy.isfinite(held) & (held > 0)
    return Series(turned.steps[kept], turned.values[kept] / held[kept], turned.errors[kept] / held[kept])


def _draw(shown: dict[str, Series], over: dict[str, Series], canvas: Canvas) -> None:
    panels = stacked(canvas, (1, 1) if over else (1,))
    lines(panels[0], curves(shown), "rad per step", log=True)
    if over:
        # The same colour for the same tensor in both panels.
        colours = {line.label: line.color for line in curves(shown)}
        drawn = [Line(short(name), one, color=colours[short(name)]) for name, one in over.items()]
        lines_on_edge(panels[1], drawn, "over equilibrium", Edge(1.0, "balance"), log=wide(drawn), names=False)
        if not wide(drawn):
            panels[1].set_ylim(bottom=0.0)
