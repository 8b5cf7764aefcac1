"""What is compared: the main quantity of each chapter, as one series per run.

Quantities of layers are taken in the median over layers, counts of units as a share of all. Few have a better
direction, and those say why. Where none is given, a difference is a difference and no more: high curvature, a low
rank, a large noise scale have been seen in good runs and in bad ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy

from probes.run import Run
from probes.run.reader import Series
from reports.learning_rate.tensor_curves import matrices
from reports.stability.deciding import ratios, realised

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Quantity:
    """One number of a run over steps.

    Attributes:
        name: as the reader sees it.
        theme: the figure in which it is drawn.
        probe: who measured it.
        read: its series; empty where the run has none.
        better: the direction in which a run is better off; None where there is no such direction.
        why: what makes that direction the better one; empty where there is none.
        log: whether it is drawn on a logarithmic axis.
    """

    name: str
    theme: str
    probe: str
    read: Callable[[Run], Series]
    better: Better | None = None
    why: str = ""
    log: bool = False


@dataclass(frozen=True)
class Compared:
    """A quantity with its series in each run, in the order of the runs."""

    quantity: Quantity
    series: tuple[Series, ...]


def compared(runs: Sequence[Run], only: Collection[str] | None = None) -> tuple[Compared, ...]:
    """What at least two of the runs have, the loss first.

    Args:
        runs: the runs.
        only: names of the probes wanted beside the loss; None for all.
    """
    others = (one for one in (*_FIXED, *_logged(runs)) if only is None or one.probe in only)
    every = (loss_of(runs), *others)
    found = [Compared(one, tuple(one.read(run) for run in runs)) for one in every]
    return tuple(one for one in found if sum(bool(len(series)) for series in one.series) > 1)


def loss_of(runs: Sequence[Run]) -> Quantity:
    """The loss that runs are compared by: from one and the same source, the first that most of them have."""
    probe = max(LOSS_SOURCES, key=lambda source: sum(bool(len(run.series(source, "loss"))) for run in runs))
    named = "logged loss" if probe == "loop" else "loss"
    why = "it is what training brings down, where loss and examples are the same"
    return Quantity(
        named, "Loss", probe, partial(_whole, probe, "loss"), None if _other_loss(runs) else "lower", why, True
    )


LOSS_SOURCES = ("sharpness", "spectrum", "loop")
"""Who records a loss: on the monitored batches, and last the loop's own, which is of another batch at each step."""


def _other_loss(runs: Sequence[Run]) -> bool:
    """Whether the headers say that the losses are of other examples or in another mode."""
    told = [run.header.get("objective") for run in runs]
    return len({(one.get("loss_terms"), one.get("mode")) for one in told if one}) > 1


def _whole(probe: str, name: str, run: Run) -> Series:
    return run.series(probe, name)


def _stability(probe: str, run: Run) -> Series:
    # Along a trial step the ratio is of something else, and 1 is not the edge of stability.
    return _NOTHING if realised(run) else ratios(run, probe)


def median_of(probe: str, name: str, run: Run) -> Series:
    """The middle one of the layers at each step."""
    layers = matrices(run, name) if probe == "learning_rate" else run.layers(probe, name)
    return _over_layers([run.series(probe, name, layer) for layer in layers], numpy.median)


def _share(part: str, run: Run) -> Series:
    """Units of one kind over all units, where both were counted; one unit more or less is no difference."""
    layers = [layer for layer in run.layers("units", part) if layer in run.layers("units", "units")]
    number = _over_layers([run.series("units", part, layer) for layer in layers], numpy.sum)
    total = _over_layers([run.series("units", "units", layer) for layer in layers], numpy.sum)
    if not numpy.array_equal(number.steps, total.steps) or not len(number):
        return _NOTHING
    kept = total.values > 0
    return Series(number.steps[kept], number.values[kept] / total.values[kept], 1 / total.values[kept])


def _over_layers(series: Sequence[Series], reduce: Callable[[list[float]], float]) -> Series:
    """One value for each step at which every layer that the first step has was measured."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for one in series:
        for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True):
            if numpy.isfinite(value):
                by_step[step].append(value)
    # With another set of layers the median would jump without anything having changed.
    most = max(map(len, by_step.values()), default=0)
    steps = sorted(step for step, values in by_step.items() if len(values) == most)
    values = numpy.array([float(reduce(by_step[step])) for step in steps])
    return Series(numpy.array(steps, dtype=numpy.int64), values, numpy.full(len(steps), numpy.nan))


def _logged(runs: Sequence[Run]) -> list[Quantity]:
    """The loop's own numbers; their names tell losses and accuracies, as is the custom."""
    names = dict.fromkeys(record.name for run in runs for record in run.of("loop"))
    found = []
    for name in names:
        words = name.lower().replace("/", "_").split("_")
        better: Better | None = None
        if "loss" in words:
            better = "lower"
        elif {"acc", "accuracy"} & set(words):
            better = "higher"
        if name == "loss" and loss_of(runs).name == "logged loss":
            continue
        why = "so its name says" if better else ""
        found.append(
            Quantity(f"logged {name}", "Logged by the loop", "loop", partial(_whole, "loop", name), better, why)
        )
    return found


_NOTHING = Series(numpy.array([], dtype=numpy.int64), numpy.array([]), numpy.array([]))


def _by(read: Callable[..., Series], probe: str, *name: str) -> tuple[str, Callable[[Run], Series]]:
    return probe, partial(read, probe, *name)


_FIXED: tuple[Quantity, ...] = (
    Quantity("stability ratio", "Stability", *_by(_stability, "sharpness"), log=True),
    Quantity("batch sharpness ÷ threshold", "Stability", *_by(_stability, "batch_sharpness"), log=True),
    Quantity("sharpness λmax", "Stability", *_by(_whole, "sharpness", "sharpness"), log=True),
    Quantity("trace of the Hessian", "Stability", *_by(_whole, "spectrum", "trace")),
    Quantity("critical learning rate", "Stability", *_by(_whole, "gradient_curvature", "critical_lr"), log=True),
    Quantity("noise scale", "Gradients", *_by(_whole, "noise_scale", "simple"), log=True),
    Quantity("noise scale of the steps", "Gradients", *_by(_whole, "noise_stream", "simple"), log=True),
    Quantity("mean cosine of gradients", "Gradients", *_by(_whole, "gradient_alignment", "mean_cosine")),
    Quantity("gradient norm", "Gradients", *_by(_whole, "gradient_curvature", "gradient_norm"), log=True),
    Quantity("relative update", "Steps", *_by(median_of, "learning_rate", "relative_update"), log=True),
    Quantity("effective learning rate", "Steps", *_by(median_of, "learning_rate", "effective"), log=True),
    Quantity("rotation per step", "Steps", *_by(median_of, "learning_rate", "rotation"), log=True),
    Quantity("weight norm", "Steps", *_by(median_of, "learning_rate", "weight_norm")),
    Quantity(
        *("share of dead units", "Units", "units", partial(_share, "dead"), "lower"),
        "a dead unit passes nothing on and gets no gradient, on any example",
    ),
    Quantity(
        *("share of dormant units", "Units", "units", partial(_share, "dormant"), "lower"),
        "a dormant unit adds next to nothing to what its layer says (arXiv 2302.12902)",
    ),
    Quantity("share of saturated units", "Units", "units", partial(_share, "saturated")),
    Quantity("effective rank of features", "Features", *_by(median_of, "ranks", "effective_rank")),
    Quantity("likeness of tokens", "Features", *_by(median_of, "ranks", "token_similarity")),
    Quantity("entropy of attention", "Features", *_by(median_of, "attention", "entropy")),
    Quantity(
        *("plasticity", "Features", *_by(_whole, "plasticity", "ratio"), "higher"),
        "1 is what a fresh network learns of new targets in the same steps (arXiv 2303.01486)",
    ),
    Quantity("predictions changed by a step", "Features", *_by(_whole, "churn", "changed")),
    Quantity("change carried by few examples", "Gradients", *_by(_whole, "opposing", "carried")),
)
