"""Reading the spectral condition: weights and steps in the natural unit of their matrix.

The RMS→RMS operator norm of a matrix says by how much it can lengthen a vector, entry for entry. Features learn at
every width when weights and updates are of order √(fan_out/fan_in) in it (arXiv 2310.17813); in that unit an update far
below the others belongs to a matrix that does not learn, and one above 1 replaces what its matrix did.
"""

from __future__ import annotations

from functools import partial

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

CITATION = "Yang et al., arXiv 2310.17813"

SPREAD = 100.0
"""Between the largest and the smallest update, both in natural units."""
UNIT = 1.0
NO_ADVICE: tuple[str, ...] = ()


def spectral_condition(run: Run) -> list[Finding]:
    """The largest and the smallest update among matrices, in natural units."""
    series = measured(run, "update_norm_ratio", matrices(run, "update_norm_ratio"))
    if not series:
        return []
    step = last_at_rate(run, steps_of(series))
    sizes = at(series, step)
    largest, smallest = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
    spread = sizes[largest] / sizes[smallest]
    claim = f"In natural units of its matrix, step {step} was {sizes[largest]:.2g} for {short(largest)}"
    if largest != smallest:
        claim += f" (largest) and {sizes[smallest]:.2g} for {short(smallest)} (smallest)"
    meaning, advice = "Matrices learn at comparable speeds, in the unit that does not depend on width.", NO_ADVICE
    if sizes[largest] > UNIT:
        meaning = "A single step changes what the matrix does to its inputs by as much as a whole matrix should do."
        advice = ("Lower the learning rate of that matrix.", "Lengthen the warm-up.")
    elif spread > SPREAD:
        meaning = (
            f"Updates differ by a factor of {spread:,.0f} between matrices: the slow ones hardly learn at a rate that "
            "the fast ones can bear."
        )
        advice = (
            "Scale learning rates by layer, with fan-in for Adam (μP), or orthogonalise updates (Muon).",
            "See that the gradient of the slow matrix is not cut off or averaged away.",
        )
    weights = at(measured(run, "operator_norm_ratio", list(sizes)), step)
    if weights:
        heavy = max(weights, key=lambda name: weights[name])
        meaning += f" The largest weight is {short(heavy)}, {weights[heavy]:.2g} units."
    record = run.last("learning_rate", "update_norm_ratio", largest)
    return [
        Finding(
            id="learning_rate/spectral_condition",
            level="warn" if advice else "ok",
            claim=claim + ".",
            value=exact(sizes[largest], method_of(record)),
            threshold=f"an update above 1 unit, or a factor above {SPREAD:g} between matrices, is reported",
            meaning=meaning,
            advice=advice,
            evidence=("spectral-condition",) if any(len(one) > 1 for one in series.values()) else (),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def spectral_figure(run: Run) -> list[Figure]:
    """Updates, and below them weights, in natural units over steps."""
    updates = measured(run, "update_norm_ratio", matrices(run, "update_norm_ratio"))
    updates = {name: one for name, one in updates.items() if len(one) > 1}
    if not updates:
        return []
    names, few = spread_over_depth(list(updates))
    shown = {name: updates[name] for name in names}
    weights = {name: one for name, one in measured(run, "operator_norm_ratio", names).items() if len(one) > 1}
    return [
        Figure(
            id="spectral-condition",
            title="Steps and weights in natural units",
            caption="RMS→RMS operator norm over √(fan_out/fan_in), of the step above"
            + (" and of the weight below" if weights else "")
            + ". Order 1 (dashed) is a whole matrix; steps belong well below it and close together."
            + few,
            alt=f"Operator norms of updates over steps for {counted(len(shown), 'tensor')}, log scale.",
            draw=partial(_draw, shown, weights),
            table=step_table(
                (*(f"step of {name}" for name in shown), *(f"{name}" for name in weights)),
                [*shown.values(), *weights.values()],
            ),
            size=(7.2, 4.8) if weights else (7.2, 3.4),
        )
    ]


def _draw(shown: dict[str, Series], weights: dict[str, Series], canvas: Canvas) -> None:
    panels = stacked(canvas, (1, 1) if weights else (1,))
    lines(panels[0], curves(shown), "step", log=True)
    if weights:
        colours = {line.label: line.color for line in curves(shown)}
        drawn = [Line(short(name), one, color=colours[short(name)]) for name, one in weights.items()]
        lines_on_edge(panels[1], drawn, "weight", Edge(UNIT, "one unit"), log=wide(drawn), names=False)
        if not wide(drawn):
            panels[1].set_ylim(bottom=0.0)
