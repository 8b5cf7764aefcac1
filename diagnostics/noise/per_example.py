"""The gradients of single examples: their norms, their inner products with a vector, and with one another.

One forward and one backward pass of a batch hold all of it: for every operation that uses a parameter, its input and
the gradient at its output are put together for each example, and the gradient of an example is never built where its
norm can be had for less. g_i is scaled such that the mean over the N examples is ∇L, so a batch of ragged sentences
or one with ignored labels counts as it does in training. **An example is a row of a batch: a sequence, not a token.**

Sums over examples, tokens and parameters are in float64 but for at most a thousand squares at a time; products are in
the precision of the model.

Source: Goodfellow, arXiv 1510.01799; Gray et al., arXiv 2411.00999.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.contractions import dots, norms_and_sum, squared_norms
from diagnostics.recorded.contributions import Contribution, Direct
from diagnostics.recorded.examples import square
from diagnostics.recorded.one_pass import OnePass
from diagnostics.recorded.sheets import sheets


@dataclass(frozen=True, repr=False)
class PerExampleNorms:
    """How long the gradients of single examples are.

    Attributes:
        norms: ‖g_i‖, (N,), in float64, in the order of the examples in the batches.
        mean_square: ‖∇L‖², the squared norm of their mean.
        squares: ‖g_i‖² for each parameter alone, (N,), by name.
        routes: how each parameter was measured, by name.
        how: in one line.
    """

    norms: Tensor
    mean_square: Estimate
    squares: Mapping[str, Tensor]
    routes: Mapping[str, str]
    how: str

    def __str__(self) -> str:
        low, middle, high = (float(self.norms.quantile(share)) for share in (0.0, 0.5, 1.0))
        return (
            f"gradients of {len(self.norms)} examples: norm {middle:.4g} in the middle, {low:.4g} to {high:.4g}; "
            f"{float(self.mean_square) ** 0.5:.4g} for their mean"
        )

    def __repr__(self) -> str:
        return f"PerExampleNorms({self})"


@dataclass(frozen=True, repr=False)
class GradientGram:
    """Inner products between the gradients of single examples.

    Attributes:
        matrix: ⟨g_i, g_j⟩, (N, N), in float64. The mean of its entries is ‖∇L‖².
        routes: how each parameter was measured, by name.
        how: in one line.
    """

    matrix: Tensor
    routes: Mapping[str, str]
    how: str

    def __str__(self) -> str:
        norms = self.matrix.diagonal().sqrt()
        return f"gradients of {len(norms)} examples, norms {float(norms.min()):.4g} to {float(norms.max()):.4g}"

    def __repr__(self) -> str:
        return f"GradientGram({self})"


def per_example_gradient_norms(objective: Objective) -> PerExampleNorms:
    """‖g_i‖ of every example, where the mean of the g_i is ∇L.

    Args:
        objective: the loss, a mean or a sum over examples.

    Raises:
        DiagnosticsError: batch normalisation or the loss couples the examples; a loss or gradient is not finite.

    Source: arXiv 1510.01799.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [-3.0]])
        >>> measured = per_example_gradient_norms(Objective(model, torch.nn.MSELoss(), (x, y)))  # g_i = -2 y_i x_i
        >>> measured.norms.tolist(), round(float(measured.mean_square), 9)
        ([2.0, 6.0], 10.0)
    """
    run = OnePass(objective, mean=True)
    count = run.examples
    with quiet(objective.model, objective.mode):
        squares = defaultdict[str, Tensor](lambda: torch.zeros(count, dtype=torch.float64, device=run.device))

        def recorded(name: str, size: int, at: slice, found: list[Contribution], built: bool) -> None:
            if not built:
                squares[name][at] = squared_norms(found, size)
                return
            squares[name][at], whole = norms_and_sum(found, size)
            run.average({name: whole})

        def alone(place: int, parts: Mapping[str, Tensor]) -> None:
            for name, part in parts.items():
                squares[name][place] = square(part)

        run.through(recorded, alone)
        by_name = {name: squares[name] for name in objective.space.names}
        total = torch.stack(list(by_name.values())).sum(0)
        run.require_finite(total)
        mean_square = sum(square(part) for part in run.total.values()) / count**2
    return PerExampleNorms(total.sqrt(), exact(mean_square, run.how), by_name, run.routes, run.how)


def per_example_gradient_dots(objective: Objective, vector: Tensor) -> Tensor:
    """⟨g_i, v⟩ of every example, (N,), in float64.

    Args:
        objective: the loss, a mean or a sum over examples.
        vector: v, (P,).

    Raises:
        DiagnosticsError: as for ``per_example_gradient_norms``; a vector of another shape.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> gradient = objective.gradient()
        >>> bool(torch.isclose(per_example_gradient_dots(objective, gradient).mean(), gradient.double().square().sum()))
        True
    """
    run = OnePass(objective)
    if tuple(vector.shape) != (objective.num_parameters,):
        raise DiagnosticsError(
            "vector is not one of the parameters", given=f"shape {tuple(vector.shape)}", expected="(P,)"
        )
    parts = dict(zip(objective.space.names, vector.split(list(objective.space.sizes)), strict=True))
    with quiet(objective.model, objective.mode):
        result = torch.zeros(run.examples, dtype=torch.float64, device=run.device)

        def recorded(name: str, _: int, at: slice, found: list[Contribution], __: bool) -> None:
            result[at] += dots(found, parts[name])

        def alone(place: int, gradients: Mapping[str, Tensor]) -> None:
            for name, part in gradients.items():
                result[place] += part.double().flatten() @ parts[name].double()

        run.through(recorded, alone)
        run.require_finite(result)
    return result


def gradient_gram(objective: Objective) -> GradientGram:
    """⟨g_i, g_j⟩ of all pairs of examples: N² numbers that hold all the noise there is in a batch.

    Holds the recorded inputs and gradients of all batches at once, and one parameter's gradients where those are built.

    Args:
        objective: the loss, a mean or a sum over examples.

    Raises:
        DiagnosticsError: as for ``per_example_gradient_norms``.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> gram = gradient_gram(objective).matrix
        >>> bool(torch.isclose(gram.mean(), objective.gradient().double().square().sum()))
        True
    """
    run = OnePass(objective)
    sizes = dict(zip(objective.space.names, objective.space.sizes, strict=True))
    with quiet(objective.model, objective.mode):
        matrix = torch.zeros(run.examples, run.examples, dtype=torch.float64, device=run.device)
        every = list(sheets(objective, run.mean))
        waiting: dict[str, dict[int, list[Contribution]]] = {}
        for name, size in sizes.items():
            known = {sheet.index: sheet.contributions(name, size) for sheet in every}
            found = {index: some for index, some in known.items() if some is not None}
            if len(found) == len(every):
                run.add(matrix, found, size)
            else:
                waiting[name] = found
        for sheet in every:
            run.note(sheet)
            rows: dict[str, list[Tensor]] = {name: [] for name in sheet.failed}

            def see(_: int, parts: Mapping[str, Tensor], rows: dict[str, list[Tensor]] = rows) -> None:
                for name, part in parts.items():
                    rows[name].append(part.flatten())

            run.alone(sheet, see)
            for name, parts in rows.items():
                waiting[name][sheet.index] = [Direct(torch.stack(parts))]
        for name, found in waiting.items():
            run.add(matrix, found, sizes[name])
        run.require_finite(matrix.diagonal())
    return GradientGram(matrix, run.routes, run.how)
