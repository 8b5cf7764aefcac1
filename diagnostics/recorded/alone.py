"""Gradients of single examples the long way: each example run and differentiated alone, for some parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.recorded.examples import adds_up, agreement, lengths, shares, some
from diagnostics.recorded.watched import gradients


def each_alone(
    objective: Objective,
    index: int,
    names: Sequence[str],
    scale: float,
    summed: bool | None,
    see: Callable[[int, dict[str, Tensor]], None],
) -> None:
    """Hand the scaled gradient of every example of a batch to ``see``. To be called inside ``quiet``.

    Args:
        objective: the whole.
        index: which batch.
        names: of the parameters concerned.
        scale: N w_b.
        summed: whether the loss adds its examples up; None where that is still to be found out.
        see: takes the place of an example in the batch, and its gradients by name.

    Raises:
        DiagnosticsError: the gradients do not make up that of the batch.
    """
    chosen = frozenset(names)
    part = objective.narrowed(lambda name, _: name in chosen)
    single = some(part, index, [[place] for place in range(lengths(objective)[index])])
    # Objective's own way to a gradient: it refuses what goes around the model.
    whole = part.space.flatten(part.batch_gradient(index, [value.requires_grad_() for value in part.space.values()])[1])
    if summed is None:
        summed = _kind(part, index, single)
    total, size = torch.zeros_like(whole), 0.0
    for place, share in enumerate(shares(single.terms, summed)):
        # An example without a term has no loss of its own, and no gradient.
        parts = gradients(single, place if share else None)
        see(place, {name: scale * share * one for name, one in parts.items()})
        flat = part.space.flatten(parts.values())
        total += share * flat
        size += share * float(torch.linalg.vector_norm(flat))
    off = float(torch.linalg.vector_norm(total - whole))
    if off > agreement(objective) * size:
        raise DiagnosticsError(
            f"the gradient of batch {index} is not the mean of its examples' gradients",
            given=f"{off / size:.2g} of their size apart, in {objective.mode} mode",
            expected="a loss that is a mean or a sum over examples, each by itself",
            attempt="mode='eval' if dropout is the reason, or terms= if examples count differently",
        )


def _kind(objective: Objective, index: int, single: Objective) -> bool:
    """Whether two examples with terms add up; one alone is what it is."""
    found = [place for place, count in enumerate(single.terms) if count][:2]
    if len(found) < 2:
        return False
    pair = some(objective, index, [found])
    flat = [objective.space.flatten(gradients(single, place).values()) for place in found]
    both = objective.space.flatten(gradients(pair, 0).values())
    counts = [single.terms[place] for place in found]
    return adds_up(objective, both, flat, counts, "that of two examples is not made of theirs")
