"""In which order checkpoints were saved: by the step in them, else by the number in their names, else by time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probes.checkpoint.contents import Checkpoint


@dataclass(frozen=True)
class Order:
    """Checkpoints in the order of training.

    Attributes:
        checkpoints: the first saved first.
        steps: where each stands, strictly increasing.
        axis: what the steps are, for the axis of a figure.
        how: by what they were ordered, in a sentence.
    """

    checkpoints: tuple[Checkpoint, ...]
    steps: tuple[int, ...]
    axis: str
    how: str


def in_order(checkpoints: Sequence[Checkpoint]) -> Order:
    """Order checkpoints by what tells them apart.

    Args:
        checkpoints: two or more.
    """
    saved = [checkpoint.step for checkpoint in checkpoints]
    if _tell_apart(saved):
        return _by(checkpoints, saved, "optimizer step", "ordered by the step that each checkpoint holds")
    why = "hold no step" if None in saved else "hold the same step"
    named = [number_in_name(checkpoint.path) for checkpoint in checkpoints]
    if _tell_apart(named):
        return _by(
            checkpoints,
            named,
            "number in the name",
            f"ordered by the number in each name, since some checkpoints {why}",
        )
    by_time = sorted(checkpoints, key=lambda one: (max(file.stat().st_mtime_ns for file in one.files), str(one.path)))
    how = f"ordered by the times at which the files were written, since some checkpoints {why} and names do not tell"
    return Order(tuple(by_time), tuple(range(len(by_time))), "place in the order of the files' times", how)


def number_in_name(path: Path) -> int | None:
    """The last number in a file's name, else in its folder's.

    >>> number_in_name(Path("epoch=3-step=400.ckpt")), number_in_name(Path("checkpoint-20/model.pt"))
    (400, 20)
    """
    for name in (path.stem if path.suffix else path.name, path.resolve().parent.name):
        # More digits than any step has are a date or a hash.
        numbers = [number for number in re.findall(r"\d+", name) if len(number) <= 15]
        if numbers:
            return int(numbers[-1])
    return None


def _tell_apart(numbers: Sequence[int | None]) -> bool:
    return None not in numbers and len(set(numbers)) == len(numbers)


def _by(checkpoints: Sequence[Checkpoint], numbers: Sequence[int | None], axis: str, how: str) -> Order:
    pairs = sorted(((number or 0, place) for place, number in enumerate(numbers)))
    chosen = tuple(checkpoints[place] for _, place in pairs)
    return Order(chosen, tuple(number for number, _ in pairs), axis, how)
