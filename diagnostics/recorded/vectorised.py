"""Gradients of single examples from one pass over several of them: ``vmap`` of the gradient.

The parameters are the same for all examples, which is fastest. Recurrent layers write in place into a state that they
begin themselves and that all examples would share: they need a copy of the parameters for each, which makes it theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from diagnostics.objective import Objective
from diagnostics.recorded.examples import agreement, lengths, rows, runs_over_examples, square

VMAP_BYTES = 2**26
"""Gradients that are made at once."""


def together(objective: Objective, index: int, places: Sequence[int], copies: bool) -> dict[str, Tensor]:
    """The gradients of the losses of some examples, (n, P) by parameter. To be called inside ``quiet``.

    Args:
        objective: the whole.
        index: which batch.
        places: of the examples in it.
        copies: whether each has parameters of its own.

    Raises:
        Exception: of any kind, where the model does what cannot be vectorised.
    """
    batch, length = objective.batches[index], lengths(objective)[index]
    moving = [runs_over_examples(leaf, length) for leaf in tree_flatten(batch)[0]]
    leaves, structure = tree_flatten(rows(batch, places))

    def loss(values: Sequence[Tensor], *parts: Tensor) -> Tensor:
        mine = iter(parts)
        one = [next(mine).unsqueeze(0) if moves else leaf for moves, leaf in zip(moving, leaves, strict=True)]
        single = objective.rebatched([tree_unflatten(one, structure)], [1.0], [1.0], [(index, places[0])])
        return single.batch_loss(0, values)

    values: Sequence[Tensor] = objective.space.values()
    if copies:
        values = [value.expand(len(places), *value.shape) for value in values]
    parts = [leaf for moves, leaf in zip(moving, leaves, strict=True) if moves]
    with warnings.catch_warnings():
        # Operations that vmap knows no rule for are taken in turns, the others are not: still faster than the loop.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        found = vmap(grad(loss), in_dims=(0 if copies else None, *(0 for _ in parts)))(values, *parts)
    rows_of = (part.detach().reshape(len(places), -1) for part in found)
    return dict(zip(objective.space.names, rows_of, strict=True))


def at_once(objective: Objective) -> int:
    """How many examples' gradients are made at once."""
    return VMAP_BYTES // sum(tensor.numel() * tensor.element_size() for tensor in objective.space.tensors)


def agree(objective: Objective, vectorised: dict[str, Tensor], alone: dict[str, Tensor]) -> bool:
    """Whether the first of some gradients is, in every parameter, that of the example alone."""
    tolerance, rounding = agreement(objective), torch.finfo(objective.space.dtype).eps
    # What is zero but for rounding need not agree.
    slack = (100 * rounding) ** 2 * sum(square(part) for part in alone.values())
    return all(
        square(vectorised[name][0] - part.flatten()) <= tolerance**2 * square(part) + slack
        for name, part in alone.items()
    )
