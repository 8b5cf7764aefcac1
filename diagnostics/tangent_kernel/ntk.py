"""The tangent kernel Θ(x, x')_ab = ⟨∂f_a(x)/∂θ, ∂f_b(x')/∂θ⟩: how a step on one example moves the outputs of another.

The forward pass is recorded once for each batch and differentiated once for each output. What a layer saw and the
gradients behind it are contracted layer by layer, without a Jacobian: for a linear layer (X Xᵀ) ∘ (G Gᵀ).

An example is a row of a batch, and its outputs are all numbers that the model puts out for it: C = T V for a sequence
of T tokens with V logits each.

Source: Jacot et al., arXiv 1806.07572; Novak et al., arXiv 2206.08720 (ways to compute it); Mohamadi et al., arXiv
2206.12543 (the kernel of the sum of outputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diagnostics.arguments import require_objective, whole_number
from diagnostics.batches import describe, keep
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import PairForm
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths
from diagnostics.recorded.one_pass import RECORDED
from diagnostics.recorded.outputs import Weights, unit
from diagnostics.tangent_kernel.filled import all_pairs, equal_pairs
from diagnostics.tangent_kernel.kernel import NORMALISATIONS, Outputs, TangentKernel
from diagnostics.tangent_kernel.records import Records, count_outputs

MATRIX_BYTES = 2**32
"""The largest matrix that is made."""

MOST_PASSES = 2**13
"""Backward passes of each batch. With more outputs, their trace kernel is to be had from samples of them."""


def ntk(
    objective: Objective,
    *,
    outputs: Outputs = "full",
    against: Objective | Tensor | None = None,
    samples: int | None = None,
    seed: int = 0,
    by_layer: bool = False,
) -> TangentKernel:
    """The tangent kernel of a model on the examples of an Objective, whose loss and targets do not matter.

    ``"full"`` has an entry for each pair of examples and of outputs. ``"trace"`` is its sum Σ_c over equal outputs, not
    divided by C (neural-tangents divides). ``"sum"`` is the kernel of f̄ = Σ_c f_c / √C, one backward pass in all, and
    close to the trace divided by C in wide networks at initialisation.

    Args:
        objective: made with ``Objective(model, loss, batches)`` or ``Objective.huggingface``, which know the outputs.
        outputs: which of the three.
        against: columns for other examples than the rows: an Objective of the same model and parameters, or a tensor
            of inputs.
        samples: for ``"trace"`` with many outputs: k combinations Σ_c ±f_c with random signs, a backward pass each.
            Their mean kernel is the trace kernel in expectation; ``errors`` says how far off it is.
        seed: of the signs.
        by_layer: whether the part of each parameter is kept as well.

    Raises:
        DiagnosticsError: outputs that cannot be seen (``Objective.from_loss``), differ in number from example to
            example, or are too many; batch normalisation in train mode, which couples the examples; a kernel that is
            not finite or too large.

    Source: arXiv 1806.07572; for ``"sum"`` arXiv 2206.12543.

    Example:
        >>> model = torch.nn.Linear(2, 3)  # f = Wx + b: Θ = (XXᵀ + 1) ⊗ I
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> objective = Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 3)))
        >>> ntk(objective, outputs="trace").matrix.tolist()
        [[6.0, 6.0], [6.0, 18.0]]
        >>> ntk(objective).matrix.shape
        torch.Size([6, 6])
    """
    require_objective(objective)
    if not (isinstance(outputs, str) and outputs in NORMALISATIONS):
        raise DiagnosticsError("outputs is unknown", given=repr(outputs), expected="'full', 'trace' or 'sum'")
    seed = whole_number("seed is out of range", seed, "a whole number from 0", 0)
    if samples is not None:
        samples = whole_number("samples is out of range", samples, "at least 2 combinations of outputs", 2)
        if outputs != "trace":
            raise DiagnosticsError(
                "samples are of the trace kernel", given=f"outputs={outputs!r}", expected="outputs='trace'"
            )
    other = None if against is None else _other(objective, against)
    with quiet(objective.model, objective.mode):
        classes = count_outputs(objective)
        if other is not None and (others := count_outputs(other)) != classes:
            raise DiagnosticsError(
                "examples differ in the number of their outputs",
                given=f"{classes:,} in objective and {others:,} in against",
                expected="the same number for every example",
            )
        cotangents = _cotangents(outputs, classes, samples, seed)
        parts = len(objective.space.names) if by_layer else 1
        _require_room(objective, other, outputs, len(cotangents), parts)
        rows = Records(objective, cotangents)
        columns = rows if other is None else Records(other, cotangents)
        if outputs == "full":
            found = all_pairs(rows, columns, by_layer)
        else:
            found = equal_pairs(rows, columns, by_layer, mean=samples is not None)
    _require_finite(found.whole, classes if outputs == "full" else 1)
    return TangentKernel(
        matrix=found.whole,
        outputs=outputs,
        examples=rows.run.examples,
        columns=columns.run.examples,
        classes=classes,
        normalisation=NORMALISATIONS[outputs],
        samples=samples,
        errors=found.errors,
        rounding=torch.finfo(objective.space.dtype).eps,
        routes=_routes(rows, columns),
        how=_how(objective, rows, columns, samples, found.groups),
        _parts=found.parts if by_layer else None,
        _between=other is not None,
        _trace_error=found.trace_error,
    )


def _other(objective: Objective, against: Objective | Tensor) -> Objective:
    """The examples of the columns.

    Raises:
        DiagnosticsError: they are of another model, or not inputs.
    """
    if isinstance(against, Tensor) and isinstance(objective.form, PairForm):
        inputs = keep(against, objective.space.device)
        return objective.rebatched([(inputs, inputs)], [1.0], [float(len(inputs))], [(0, 0)])
    if not isinstance(against, Objective):
        raise DiagnosticsError(
            "against is not a set of examples",
            given=describe(against),
            expected="an Objective of the same model"
            + (", or a tensor of inputs" if isinstance(objective.form, PairForm) else ""),
        )
    same = against.model is objective.model and against.space.names == objective.space.names
    if not (same and against.mode == objective.mode):
        raise DiagnosticsError(
            "against is of another function",
            given=f"a {type(against.model).__name__} with {len(against.space.names)} parameters, {against.mode} mode",
            expected="the same model, params= and mode= as objective",
        )
    return against


def _cotangents(outputs: Outputs, classes: int, samples: int | None, seed: int) -> list[Weights]:
    if outputs == "sum":
        return [lambda count: torch.full((count,), count**-0.5, dtype=torch.float64)]
    if samples is None:
        return [unit(place) for place in range(classes)]
    return [_signs(seed, draw) for draw in range(samples)]


def _signs(seed: int, draw: int) -> Weights:
    def weights(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(2**20 * seed + draw)
        return 2.0 * torch.randint(2, (count,), generator=generator).double() - 1.0

    return weights


def _require_room(objective: Objective, other: Objective | None, outputs: Outputs, passes: int, parts: int) -> None:
    """Refuse what would be too large or take too long, before anything is run.

    Raises:
        DiagnosticsError: it would.
    """
    if passes > MOST_PASSES:
        raise DiagnosticsError(
            "there are too many outputs to differentiate one by one",
            given=f"{passes:,} for each example",
            expected=f"at most {MOST_PASSES:,}",
            attempt="outputs='trace' with samples=64, outputs='sum', or a module around the model with fewer outputs",
        )
    width = passes if outputs == "full" else 1
    rows, columns = (sum(lengths(side)) * width for side in (objective, other or objective))
    needed = 8 * rows * columns * (parts + (parts > 1))
    if needed > MATRIX_BYTES:
        each = f"{passes:,} outputs each" if outputs == "full" else "one row each"
        smaller = "outputs='trace' or 'sum', " if outputs == "full" else ""
        raise DiagnosticsError(
            "the kernel is too large",
            given=f"{rows // width:,} examples with {each}: {needed / 2**30:,.3g} GiB"
            + (f" in {parts} parts" if parts > 1 else ""),
            expected=f"at most {MATRIX_BYTES / 2**30:.3g} GiB",
            attempt=f"{smaller}{'by_layer=False, ' if parts > 1 else ''}or fewer examples, as by limit=",
        )


def _require_finite(matrix: Tensor, width: int) -> None:
    """Refuse what is not finite.

    Raises:
        DiagnosticsError: some of it is not.
    """
    bad = ~torch.isfinite(matrix)
    if bool(bad.any()):
        raise DiagnosticsError(
            f"the gradients of the outputs of example {int(bad.any(1).nonzero()[0]) // width} are not finite",
            expected="finite parameters, data and gradients",
        )


def _routes(rows: Records, columns: Records) -> dict[str, str]:
    """How each parameter was measured; where rows and columns differ, the more unusual of both."""
    return {name: route if route != RECORDED else columns.run.routes[name] for name, route in rows.run.routes.items()}


def _how(objective: Objective, rows: Records, columns: Records, samples: int | None, groups: int) -> str:
    passes = len(rows.cotangents)
    text = f"one recorded forward pass for each batch, {passes:,} backward{'' if passes == 1 else 's'}"
    text += " for sums of outputs with random signs" if samples is not None else ""
    text += f"; {rows.run.examples:,} examples"
    text += f" against {columns.run.examples:,}" if columns is not rows else ""
    text += f" in {len(objective.batches)} batch{'' if len(objective.batches) == 1 else 'es'}, {objective.mode} mode"
    text += f", {str(objective.space.dtype).removeprefix('torch.')}"
    text += f"; recorded in {groups} groups for memory, each again for every one before it" if groups > 1 else ""
    return text + rows.run.exceptions
