"""How well a kernel fits its targets: the cosine of K and Y Yᵀ, as matrices.

    A = ⟨K, L⟩ / (‖K‖ ‖L‖), L the kernel of the targets.

For a full kernel L = yyᵀ, y the targets of all examples and outputs as one vector, so A = yᵀKy/(‖K‖‖y‖²). For a trace
or sum kernel L = Y Yᵀ, N × N. The two differ. A is 1 for a kernel that knows nothing but the targets, and 1/√N for the
identity and targets ±1.

Centred, the mean over examples is taken out of the gradients and of the targets, output by output; A is centred kernel
alignment (CKA) then. A kernel without any structure in it is still aligned by about √(C/N): with few examples a number
close to that says nothing. Unbiased, pairs of an example with itself are left out, and what centring makes of the
others is put right (the U-statistic of HSIC): A is about 0 then for a kernel without structure, and may be negative.

Source: Cristianini et al., NeurIPS 2001; Cortes et al., arXiv 1203.0550 (centred); Song et al., JMLR 13 (unbiased);
Baratin et al., arXiv 2008.00938 (tangent kernels).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.tangent_kernel.targets import target_values

if TYPE_CHECKING:
    from diagnostics.tangent_kernel.kernel import TangentKernel

FEWEST = 4
"""Examples of which the unbiased centred form can be had."""


def alignment(kernel: TangentKernel, targets: Any, *, centred: bool, unbiased: bool) -> Estimate:
    """See ``TangentKernel.alignment``."""
    wanted = target_values(kernel, targets)
    require_within(kernel, "alignment")
    return of_matrix(kernel, kernel.matrix, wanted, centred=centred, unbiased=unbiased)


def of_matrix(kernel: TangentKernel, matrix: Tensor, wanted: Tensor, *, centred: bool, unbiased: bool) -> Estimate:
    """The alignment of a kernel or a part of it with targets (N, C)."""
    how = f"{'centred' if centred else 'uncentred'}{', unbiased' if unbiased else ''}, {kernel.outputs} kernel"
    how += f"; {kernel.how}"
    if unbiased and centred and kernel.examples < FEWEST:
        raise DiagnosticsError(
            "too few examples for the unbiased alignment",
            given=f"{kernel.examples}",
            expected=f"at least {FEWEST}",
            attempt="unbiased=False",
        )
    k, target = blocks(kernel, matrix), target_blocks(kernel, wanted)
    scales = tuple(float(torch.linalg.vector_norm(one)) for one in (k, target))
    if unbiased:
        k, target = (_without_pairs(one, centred) for one in (k, target))
    elif centred:
        k, target = (_centred(one) for one in (k, target))
    norms = tuple(float(torch.linalg.vector_norm(one)) for one in (k, target))
    for name, norm, scale in zip(("kernel", "targets"), norms, scales, strict=True):
        if not norm > 1e-12 * scale:
            left = "is nothing left" if scale > 0 else "is nothing"
            return Estimate(math.nan, math.nan, "exact", f"there {left} of the {name}, {how}")
    value = float((k * target).sum()) / (norms[0] * norms[1])
    return cosine_estimate(value, _sampling_error(kernel, norms[0]), how)


def distance(kernel: TangentKernel, other: TangentKernel) -> Estimate:
    """See ``TangentKernel.distance``."""
    if (kernel.outputs, kernel.matrix.shape) != (getattr(other, "outputs", None), other.matrix.shape):
        raise DiagnosticsError(
            "the kernels are not of the same examples and outputs",
            given=f"{kernel.outputs} {tuple(kernel.matrix.shape)} and {other.outputs} {tuple(other.matrix.shape)}",
            expected="two kernels of one set of examples, taken in the same way",
        )
    norms = [float(torch.linalg.vector_norm(one.matrix)) for one in (kernel, other)]
    if not min(norms) > 0:
        return Estimate(math.nan, math.nan, "exact", f"a kernel is zero; {kernel.how}")
    # 1 − cos as half a squared distance: exact also where the kernels are nearly the same.
    away = kernel.matrix / norms[0] - other.matrix.to(kernel.matrix.device) / norms[1]
    error = math.hypot(*(_sampling_error(one, norm) for one, norm in zip((kernel, other), norms, strict=True)))
    return cosine_estimate(0.5 * float(away.square().sum()), error, kernel.how)


def cosine_estimate(value: float, error: float, how: str) -> Estimate:
    """A cosine, exact for the examples it is of unless the kernel was sampled."""
    return Estimate(value, error, "standard error", how) if error else exact(value, how)


def require_within(kernel: TangentKernel, what: str) -> None:
    """Refuse a kernel between two sets of examples.

    Raises:
        DiagnosticsError: it is one.
    """
    if kernel._between:
        raise DiagnosticsError(
            f"{what} is of one set of examples",
            given=f"a kernel between {kernel.examples} and {kernel.columns} examples",
            expected="ntk(objective), without against=",
        )


def blocks(kernel: TangentKernel, matrix: Tensor) -> Tensor:
    """A kernel as (C, C, N, N): one matrix of examples for each pair of outputs; (1, 1, N, N) for others than full."""
    count = kernel.examples
    width = len(matrix) // count
    return matrix.view(count, width, count, width).permute(1, 3, 0, 2)


def target_blocks(kernel: TangentKernel, wanted: Tensor) -> Tensor:
    """The kernel of the targets in the same form."""
    if kernel.outputs == "full":
        return torch.einsum("na,mb->abnm", wanted, wanted)
    return (wanted @ wanted.T)[None, None]


def _centred(k: Tensor) -> Tensor:
    """Without the means over examples, on both sides."""
    return k - k.mean(2, keepdim=True) - k.mean(3, keepdim=True) + k.mean((2, 3), keepdim=True)


def _without_pairs(k: Tensor, centred: bool) -> Tensor:
    """Without the pairs of an example with itself; centred so that inner products are unbiased (U-centring)."""
    count = k.shape[-1]
    own = torch.eye(count, dtype=torch.bool, device=k.device)
    k = k.masked_fill(own, 0.0)
    if not centred:
        return k
    rows, columns = k.sum(3, keepdim=True), k.sum(2, keepdim=True)
    whole = k.sum((2, 3), keepdim=True)
    k = k - (rows + columns) / (count - 2) + whole / ((count - 1) * (count - 2))
    return k.masked_fill(own, 0.0)


def _sampling_error(kernel: TangentKernel, norm: float) -> float:
    """What the errors of a sampled kernel can make of a cosine with it, at most: ‖δK‖/‖K‖."""
    return 0.0 if kernel.errors is None else float(torch.linalg.vector_norm(kernel.errors)) / norm
