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
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputLoss
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths
from diagnostics.tangent_kernel.alignment import require_within
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.ntk import ntk


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
    kernel = ntk(objective) if kernel is None else kernel
    require_within(kernel, "curvature")
    count = sum(lengths(objective))
    if kernel.outputs != "full" or kernel.examples != count:
        raise DiagnosticsError(
            "the kernel is not the full one of this objective",
            given=f"{kernel.outputs}, {kernel.examples} examples",
            expected=f"ntk(objective), {count} examples",
        )
    roots = []
    with quiet(objective.model, objective.mode):
        for index, (weight, examples) in enumerate(zip(objective.weights, lengths(objective), strict=True)):
            at = objective.batch_outputs(index, [value.requires_grad_() for value in objective.space.values()])
            roots.append(weight**0.5 * _root(_middle(at, examples)))
    width, rows = kernel.classes, 0
    product = kernel.matrix.clone()
    for root in roots:
        for block in root.to(product):
            span = slice(rows, rows + width)
            product[span] = block @ product[span]
            product[:, span] = product[:, span] @ block
            rows += width
    values = torch.linalg.eigvalsh(product).flip(0)
    largest = exact(float(values[0]), f"all eigenvalues; {kernel.how}")
    if not check:
        return KernelCurvature(values, largest, None, None)
    pairs = top_eigenpairs(GaussNewton(objective), k=1)
    residual, route = float(pairs.residuals[0]), f"Lanczos, {pairs.matvecs} products"
    iterated = Estimate(float(pairs.values[0]), residual, "residual", route)
    apart = abs(largest.value - iterated.value) / iterated.value if iterated.value else math.nan
    disagreement = Estimate(apart, residual / iterated.value if iterated.value else math.nan, "residual", route)
    return KernelCurvature(values, largest, iterated, disagreement)


def _middle(at: OutputLoss, examples: int) -> Tensor:
    """∂²ℓ/∂f² for each example, (n, C, C), in float64."""
    by_formula = at.hessian()
    width = at.outputs.numel() // examples
    columns = []
    for place in range(width):
        unit = torch.zeros(examples, width, dtype=at.outputs.dtype, device=at.outputs.device)
        unit[:, place] = 1.0
        columns.append(by_formula(unit.view_as(at.outputs)).detach().reshape(examples, width).double())
    return torch.stack(columns, 2)


def _root(middle: Tensor) -> Tensor:
    """Square roots of symmetric matrices.

    Raises:
        DiagnosticsError: one has a negative eigenvalue beyond rounding.
    """
    values, vectors = torch.linalg.eigh((middle + middle.mT) / 2)
    if float(values.min()) < -1e-5 * float(values.abs().max()):
        raise DiagnosticsError(
            "the loss is not convex in the outputs",
            given=f"curvature {float(values.min()):.3g}",
            expected="a loss such as mean squared error or cross-entropy",
        )
    root: Tensor = vectors @ torch.diag_embed(values.clamp_min(0.0).sqrt()) @ vectors.mT
    return root
