"""What a kernel is held against: targets, residuals or any other function on its examples, output by output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError

if TYPE_CHECKING:
    from diagnostics.tangent_kernel.kernel import TangentKernel


def target_values(kernel: TangentKernel, targets: Any) -> Tensor:
    """Targets as (N, C) in float64; of classes as one-hot vectors, and for a single output as ±1.

    Args:
        kernel: of N examples. A ``"full"`` one has C outputs; for others C is whatever the targets have.
        targets: class indices (N,), or values (N,) or (N, C).

    Raises:
        DiagnosticsError: not one for each example, not as many outputs as the kernel has, not finite.
    """
    values = torch.as_tensor(targets).detach().to(kernel.matrix.device)
    if values.ndim == 0 or len(values) != kernel.examples or values.is_complex():
        raise DiagnosticsError(
            "targets are not those of the kernel's examples",
            given=f"shape {tuple(values.shape)} of {values.dtype}",
            expected=f"{kernel.examples} classes, or as many rows of values",
        )
    full = kernel.outputs == "full"
    if values.ndim == 1 and not values.is_floating_point():
        values = _one_hot(values.long(), kernel.classes if full else None)
    values = values.double().reshape(kernel.examples, -1)
    if full and values.shape[1] != kernel.classes:
        raise DiagnosticsError(
            "targets have another number of values than the kernel has outputs",
            given=f"{values.shape[1]} for each example",
            expected=f"{kernel.classes}, or class indices below that",
            attempt="ntk(objective, outputs='trace'), which takes targets of any width",
        )
    if not bool(torch.isfinite(values).all()):
        raise DiagnosticsError("targets are not finite", expected="finite numbers")
    return values


def _one_hot(classes: Tensor, count: int | None) -> Tensor:
    """One column for each class; two classes of a single output are −1 and 1.

    Raises:
        DiagnosticsError: indices that are no classes of this many outputs.
    """
    most = 2 if count == 1 else count
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or (most is not None and high >= most):
        raise DiagnosticsError(
            "targets hold classes that the outputs have not",
            given=f"indices {low} to {high}",
            expected="indices from 0 on" + ("" if most is None else f", below {most}"),
            attempt="floating-point targets for values",
        )
    if count == 1:
        return 2.0 * classes.double()[:, None] - 1.0
    return torch.nn.functional.one_hot(classes, most or -1).double()
