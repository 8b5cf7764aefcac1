"""Batch normalisation in train mode couples the examples of a minibatch: which minibatches it rules out."""

from __future__ import annotations

from torch import nn

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective


def require_statistics(single: Objective) -> None:
    """Refuse single examples where batch normalisation needs several: torch says so only when the model runs.

    Raises:
        DiagnosticsError: it does.
    """
    if single.mode != "train" or not _normalises(single.model):
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
        DiagnosticsError: there is batch normalisation in train mode.
    """
    if objective.mode == "train" and _normalises(objective.model):
        raise DiagnosticsError(
            "a minibatch is in several pieces, and batch normalisation couples its examples",
            given="batches whose shapes differ, in train mode",
            expected="examples of one shape, or statistics that are fixed",
            attempt="Objective(..., mode='eval')",
        )


def _normalises(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
