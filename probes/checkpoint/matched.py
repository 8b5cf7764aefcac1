"""Checkpoints of several runs where their losses are nearest: what differs there is not how far a run has come.

Of the checkpoints of one run those of another are nearer or farther in loss. Pairs within a few percent count as
equal, and of these the one with the lowest loss is taken: at the start runs are alike, and equal for no merit of
theirs (Optimizers Qualitatively Alter Solutions And We Should Leverage This, arXiv 2507.12224).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diagnostics import DiagnosticsError, Objective
from probes.checkpoint.along import same_data
from probes.checkpoint.examine import examine
from probes.checkpoint.load import load_checkpoint
from probes.checkpoint.order import Order, in_order
from probes.checkpoint.rebuild import rebuild
from probes.run.reader import Run

EQUAL = 0.05
"""Losses that differ by less, relative to the larger, count as equal."""

MEASURED = ("weights", "sharpness", "learning_rate", "units", "noise_scale", "ranks")
"""What is measured on each of the checkpoints chosen, where nothing is named."""


@dataclass(frozen=True)
class Branch:
    """One run's checkpoints, and the one of them that is compared.

    Attributes:
        name: of the run.
        order: its checkpoints in the order of training.
        losses: of each, on the same batches.
        chosen: which one is compared.
        run: what was measured on that one.
    """

    name: str
    order: Order
    losses: tuple[float, ...]
    chosen: int
    run: Run


def examine_matched(
    runs: Mapping[str, Sequence[Path]],
    *,
    task: str | None = None,
    text: Path | None = None,
    trust: bool = False,
    allow: Sequence[str] = (),
    only: Collection[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[Branch, ...]:
    """Find the checkpoints of several runs whose losses are nearest, and measure each of these.

    Args:
        runs: the checkpoints of each, by its name; the others are matched to the first.
        task: see ``build_task``; it must make the same data for every checkpoint.
        text: see ``language_model``; instead of a task.
        trust: see ``load_checkpoint``.
        allow: see ``load_checkpoint``.
        only: probes wanted, by name; None for ``MEASURED``.
        device: see ``build_task``.
        seed: see ``examine``.
        progress: told what is being done, before each stage.

    Raises:
        DiagnosticsError: fewer than two runs, no loss, another loss for each, or a checkpoint that cannot be used.
    """
    if len(runs) < 2 or not all(runs.values()):
        raise DiagnosticsError(
            "checkpoints at equal loss are those of several runs",
            given=", ".join(f"{name}: {len(paths)}" for name, paths in runs.items()) or "none",
            expected="two runs or more, with one checkpoint each or more",
        )
    if task is None and text is None:
        raise DiagnosticsError(
            "checkpoints alone have no loss, and cannot be matched by it",
            attempt="--task task.py, or --text FILE for language models in folders of Hugging Face",
        )
    known: Objective | None = None
    orders, losses = [], []
    for name, paths in runs.items():
        progress(f"the losses of {name}")
        order = in_order([load_checkpoint(path, trust=trust, allow=allow) for path in paths])
        found = []
        for checkpoint in order.checkpoints:
            # One at a time: only the batches of the first are kept.
            objective = rebuild(checkpoint, task=task, text=text, device=device, seed=seed)[0]
            known = known or objective
            if not same_data(known, objective):
                raise DiagnosticsError(
                    "the task makes other batches for other checkpoints, so that their losses cannot be compared",
                    given=str(checkpoint.path),
                    expected="the same data for all, as with a seed in build(checkpoint)",
                )
            found.append(objective.loss())
        orders.append(order)
        losses.append(tuple(found))
    chosen = nearest(losses)
    branches = []
    for name, order, values, place in zip(runs, orders, losses, chosen, strict=True):
        progress(f"measuring {name}")
        run = examine(
            order.checkpoints[place].path,
            task=task,
            text=text,
            trust=trust,
            allow=allow,
            only=MEASURED if only is None else only,
            device=device,
            seed=seed,
        )
        branches.append(Branch(name, order, values, place, run))
    return tuple(branches)


def nearest(losses: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Choose one checkpoint of each run, those of the others matched to the first run's.

    Args:
        losses: of the checkpoints of each run.

    Returns:
        the place of one in each: with the lowest loss of those that are equal, else those that are nearest.

    Raises:
        DiagnosticsError: a run has no finite loss.

    >>> nearest([[3.0, 2.0, 1.0, 0.5], [3.0, 1.02, 0.9]])
    (2, 1)
    >>> nearest([[3.0, 2.0], [1.0, 0.5]])
    (1, 0)
    """
    finite = [[place for place, loss in enumerate(each) if math.isfinite(loss)] for each in losses]
    if not all(finite):
        raise DiagnosticsError("a run has no checkpoint with a finite loss", given=f"losses {[*map(list, losses)]}")
    candidates = []
    for place in finite[0]:
        level = losses[0][place]
        others = [
            min((apart(level, each[one]), one) for one in places)[1]
            for places, each in zip(finite[1:], losses[1:], strict=True)
        ]
        gap = max(apart(level, each[other]) for each, other in zip(losses[1:], others, strict=True))
        candidates.append(((0, level) if gap < EQUAL else (1, gap), (place, *others)))
    return min(candidates)[1]


def apart(one: float, other: float) -> float:
    """The difference of two losses, relative to the larger in size.

    >>> apart(1.0, 0.9), apart(0.0, 0.0)
    (0.1, 0.0)
    """
    size = max(abs(one), abs(other))
    return round(abs(one - other) / size, 12) if size else 0.0
