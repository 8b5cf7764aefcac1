"""The kernel layer by layer: how much of it each layer makes, and how well that part fits the targets.

A kernel is the sum of those of its parameters. The part of a layer is the kernel of the network with all others
frozen. In trained networks parts in the middle are often aligned better than the first and the last.

Source: Lou et al., arXiv 2110.11749; Baratin et al., arXiv 2008.00938.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.tangent_kernel.alignment import of_matrix, require_within
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.targets import target_values

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class KernelLayer:
    """The part of one layer.

    Attributes:
        layer: path of the module that holds the parameters, or the name of the parameter.
        share: of the trace of the kernel; shares sum to 1.
        alignment: of this part with the targets.
    """

    layer: str
    share: Estimate
    alignment: Estimate


@dataclass(frozen=True, repr=False)
class KernelLayers:
    """A table with one row per layer, in the model's order.

    Attributes:
        rows: one for each layer.
        whole: alignment of the whole kernel.
    """

    rows: list[KernelLayer]
    whole: Estimate

    def to_pandas(self) -> pandas.DataFrame:
        """Values as a DataFrame. Needs pandas."""
        import pandas

        return pandas.DataFrame(
            [{"layer": row.layer, "share": row.share.value, "alignment": row.alignment.value} for row in self.rows],
            columns=["layer", "share", "alignment"],
        )

    def __str__(self) -> str:
        names = [row.layer or "(the model itself)" for row in self.rows]
        width = max(5, *(len(name) for name in names))
        lines = [f"{'layer':<{width}}  share of trace  alignment"]
        lines += [
            f"{name:<{width}}  {row.share!s:>14}  {row.alignment}" for name, row in zip(names, self.rows, strict=True)
        ]
        return "\n".join([*lines, f"{'whole':<{width}}  {'':>14}  {self.whole}"])

    __repr__ = __str__


def kernel_layers(
    kernel: TangentKernel,
    targets: Any,
    *,
    by: Literal["layer", "parameter"] = "layer",
    centred: bool = False,
    unbiased: bool = False,
) -> KernelLayers:
    """Share of the trace and alignment with the targets, layer by layer.

    Args:
        kernel: made with ``by_layer=True``.
        targets: as for ``TangentKernel.alignment``.
        by: ``"layer"`` puts the parameters of a module together.
        centred: as for ``TangentKernel.alignment``.
        unbiased: likewise.

    Raises:
        DiagnosticsError: parts that were not kept; or as for ``TangentKernel.alignment``.

    Source: arXiv 2110.11749.

    Example:
        >>> from diagnostics import Objective, ntk
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)), torch.randn(6, 2)
        >>> kernel = ntk(Objective(model, torch.nn.MSELoss(), (x, x[:, :1])), by_layer=True)
        >>> table = kernel_layers(kernel, x[:, :1])
        >>> [row.layer for row in table.rows], round(sum(float(row.share) for row in table.rows), 9)
        (['0', '1'], 1.0)
    """
    if by not in ("layer", "parameter"):
        raise DiagnosticsError("by is unknown", given=repr(by), expected="'layer' or 'parameter'")
    wanted = target_values(kernel, targets)
    require_within(kernel, "alignment")
    total = float(kernel.matrix.diagonal().sum())
    rows = []
    parts = list(kernel.by_layer.items())
    for layer, members in groupby(parts, key=lambda part: part[0].rpartition(".")[0] if by == "layer" else part[0]):
        matrix = torch.stack([part for _, part in members]).sum(0)
        trace = float(matrix.diagonal().sum())
        share = (
            exact(trace / total, kernel.how)
            if total > 0
            else Estimate(math.nan, math.nan, "exact", f"the kernel is zero; {kernel.how}")
        )
        aligned = of_matrix(kernel, matrix, wanted, centred=centred, unbiased=unbiased)
        if kernel.samples is not None:
            # Errors are known of the whole kernel and not of its parts.
            share, aligned = (Estimate(one.value, math.inf, "standard error", one.how) for one in (share, aligned))
        rows.append(KernelLayer(layer, share, aligned))
    return KernelLayers(rows, of_matrix(kernel, kernel.matrix, wanted, centred=centred, unbiased=unbiased))
