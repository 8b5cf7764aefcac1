"""The Gauss-Newton matrix from the tangent kernel: all its eigenvalues, without an iteration.

G = (1/N) Jᵀ B J and (1/N) B^½ Θ B^½ have the same eigenvalues other than zero; B holds the curvature of the loss at the
outputs of each example: the identity for ½ ‖f − y‖², diag p − ppᵀ for cross-entropy. With fewer outputs than
parameters the kernel is the smaller matrix. Both come by different ways, kernels from recorded layers and G from
backward passes through the model; that they agree speaks for both.

Source: Martens, arXiv 1412.1193; Papyan, arXiv 1811.07062.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.curvature.eigen.eigenpairs import top_eigenpairs
from diagnostics.curvature.operators import GaussNewton
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.weighted import full_kernel, weighted


@dataclass(frozen=True, repr=False)
class KernelCurvature:
    """The Gauss-Newton matrix by way of the kernel.

    Attributes:
        eigenvalues: (N·C,) of B^½ Θ B^½/N, largest first, float64: those of G, but for zeros.
        largest: of them.
        iterated: the largest eigenvalue of G by Lanczos; None unless asked for.
        disagreement: |largest − iterated|/iterated; None likewise.
    """

    eigenvalues: Tensor
    largest: Estimate
    iterated: Estimate | None
    disagreement: Estimate | None

    def __str__(self) -> str:
        text = f"largest Gauss-Newton eigenvalue {self.largest} from the kernel"
        if self.iterated is not None:
            text += f", {self.iterated} by Lanczos; they differ by {self.disagreement}"
        return text

    def __repr__(self) -> str:
        return f"KernelCurvature({self})"


def kernel_curvature(
    objective: Objective, *, kernel: TangentKernel | None = None, check: bool = False
) -> KernelCurvature:
    """Every eigenvalue of the Gauss-Newton matrix, from the full tangent kernel.

    Args:
        objective: a loss that is convex in the outputs and takes examples one by one.
        kernel: the full one of this objective, if there is one already.
        check: also iterate on G itself, and say how far the two are apart.

    Raises:
        DiagnosticsError: a kernel of another kind or number of examples; a loss that is not convex in the outputs;
            or as ``ntk``.

    Source: arXiv 1412.1193.

    Example:
        >>> model, x = torch.nn.Linear(2, 2).double(), torch.randn(4, 2).double()
        >>> objective = Objective(model, torch.nn.CrossEntropyLoss(), (x, torch.arange(4) % 2))
        >>> float(kernel_curvature(objective, check=True).disagreement) < 1e-3
        True
    """
    require_objective(objective)
    kernel = full_kernel(objective, kernel)
    values = torch.linalg.eigvalsh(weighted(objective, kernel)).flip(0)
    largest = exact(float(values[0]), f"all eigenvalues; {kernel.how}")
    if not check:
        return KernelCurvature(values, largest, None, None)
    pairs = top_eigenpairs(GaussNewton(objective), k=1)
    residual, route = float(pairs.residuals[0]), f"Lanczos, {pairs.matvecs} products"
    iterated = Estimate(float(pairs.values[0]), residual, "residual", route)
    apart = abs(largest.value - iterated.value) / iterated.value if iterated.value else math.nan
    disagreement = Estimate(apart, residual / iterated.value if iterated.value else math.nan, "residual", route)
    return KernelCurvature(values, largest, iterated, disagreement)
