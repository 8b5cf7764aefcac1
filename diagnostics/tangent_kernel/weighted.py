"""The full kernel between roots of the loss's curvature: products of the Gauss-Newton factors of single examples.

The Gauss-Newton matrix is a sum over examples, G = Σ_i J_iᵀ B_i J_i, with B_i = ∂²ℓ/∂f² at the outputs of example i by
its share of the loss. With A_i = J_iᵀ B_i^½ a block of B^½ Θ B^½ is A_iᵀ A_j: the eigenvalues of G, of each part of it
and of their products follow from it, and no matrix of the size of the parameters is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputLoss
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths
from diagnostics.tangent_kernel.alignment import require_within
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.ntk import ntk


def full_kernel(objective: Objective, kernel: TangentKernel | None) -> TangentKernel:
    """The kernel that was made already, if it is the full one of this objective; a new one where there is none.

    Raises:
        DiagnosticsError: a kernel of another kind, of other examples or between two sets; or as ``ntk``.
    """
    kernel = ntk(objective) if kernel is None else kernel
    require_within(kernel, "curvature")
    count = sum(lengths(objective))
    if kernel.outputs != "full" or kernel.examples != count:
        raise DiagnosticsError(
            "the kernel is not the full one of this objective",
            given=f"{kernel.outputs}, {kernel.examples} examples",
            expected=f"ntk(objective), {count} examples",
        )
    return kernel


def weighted(objective: Objective, kernel: TangentKernel) -> Tensor:
    """B^½ Θ B^½, (N·C, N·C) in float64, whose eigenvalues other than zero are those of G.

    Raises:
        DiagnosticsError: as ``output_roots``.
    """
    width, rows = kernel.classes, 0
    product = kernel.matrix.clone()
    for root in output_roots(objective):
        for block in root.to(product):
            span = slice(rows, rows + width)
            product[span] = block @ product[span]
            product[:, span] = product[:, span] @ block
            rows += width
    return product


def output_roots(objective: Objective) -> list[Tensor]:
    """B_i^½ for the examples of each batch, (n, C, C) in float64.

    Raises:
        DiagnosticsError: a loss that is not convex in the outputs, or holds one example against another.
    """
    roots = []
    with quiet(objective.model, objective.mode):
        for index, (weight, examples) in enumerate(zip(objective.weights, lengths(objective), strict=True)):
            at = objective.batch_outputs(index, [value.requires_grad_() for value in objective.space.values()])
            roots.append(weight**0.5 * _root(_middle(at, examples)))
    return roots


def _middle(at: OutputLoss, examples: int) -> Tensor:
    """∂²ℓ/∂f² for each example, (n, C, C), in float64."""
    product = at.hessian()
    width = at.outputs.numel() // examples
    columns = []
    for place in range(width):
        unit = torch.zeros(examples, width, dtype=at.outputs.dtype, device=at.outputs.device)
        unit[:, place] = 1.0
        columns.append(product(unit.view_as(at.outputs)).detach().reshape(examples, width).double())
    if at.kind is None and examples > 1:
        _require_separate(at, examples, torch.stack(columns))
    return torch.stack(columns, 2)


def _require_separate(at: OutputLoss, examples: int, columns: Tensor) -> None:
    """Refuse a loss of which the outputs of one example change the gradient at another's.

    Raises:
        DiagnosticsError: they do.
    """
    direction = torch.zeros_like(at.outputs).reshape(examples, -1)
    # No multiple of what a loss may be blind to, as of a shift of all outputs.
    direction[::2] = torch.arange(direction[::2].numel()).view_as(direction[::2]).to(direction).cos()
    found = at.hessian()(direction.view_as(at.outputs)).detach().reshape(examples, -1)
    if float(found[1::2].abs().max()) > 1e-5 * float(columns.abs().max()):
        raise DiagnosticsError(
            "the curvature of the loss is not that of single examples",
            given="a loss that holds the outputs of one example against those of another",
            expected="a mean or a sum over examples, each by itself, as of cross-entropy or squared errors",
            attempt="GaussNewton(objective), which takes any loss",
        )


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
