"""Batch normalisation with the statistics of the batch couples its examples: where it does, and what that rules out."""

from __future__ import annotations

from torch import nn

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective


def coupling_of(objective: Objective) -> str | None:
    """The first module that normalises by the statistics of the batch, in words; None where no module does."""
    for name, module in objective.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            objective.mode == "train" or module.running_mean is None
        ):
            return f"module {name!r} ({type(module).__name__}) with the statistics of the batch itself"
    return None


def require_statistics(single: Objective) -> None:
    """Refuse single examples where batch normalisation needs several: torch says so only when the model runs.

    Raises:
        DiagnosticsError: it does.
    """
    if coupling_of(single) is None:
        return
    try:
        single.batch_losses(single.space.values())
    except ValueError as problem:
        raise DiagnosticsError(
            "batch_size is too small for batch normalisation in train mode",
            given=f"1; {problem}",
            expected="at least 2: one example has no statistics",
            attempt="Objective(..., mode='eval')",
        ) from problem


def require_uncoupled(objective: Objective) -> None:
    """Refuse minibatches in several pieces, each of which would be normalised by itself.

    Raises:
        DiagnosticsError: there is batch normalisation with the statistics of the batch.
    """
    if (coupling := coupling_of(objective)) is not None:
        raise DiagnosticsError(
            "a minibatch is in several pieces, and batch normalisation couples its examples",
            given=f"batches whose shapes differ, and {coupling}",
            expected="examples of one shape, or statistics that are fixed",
            attempt="Objective(..., mode='eval')",
        )
