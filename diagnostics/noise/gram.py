"""The Gram matrix of the gradients of single examples: N² numbers that hold all the noise there is in a batch.

What each batch's pass recorded is held until it has met that of every other. Where that takes too much memory, batches
are recorded in groups, each again for every group before it, and those that are too large for that are cut.

Source: the contractions are those of arXiv 1510.01799.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy
import torch
from torch import Tensor

from diagnostics.averages import Draws
from diagnostics.errors import DiagnosticsError
from diagnostics.microbatch import in_microbatches
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.contributions import Contribution, Direct
from diagnostics.recorded.gram import Batch, add_products
from diagnostics.recorded.one_pass import OnePass
from diagnostics.recorded.sheets import Sheet, share_plans, sheets

HELD_BYTES = 2**30
"""Of what was recorded, and of gradients that come example by example, held at once. The pass of the largest batch
comes on top, and what is made of one parameter at a time."""

PIECES = 8
"""How many pieces of a batch that was cut are held at once, at least."""

MATRIX_BYTES = 2**32
"""The largest matrix that is made."""

ROUNDING = 1e-15
"""Of mean ‖g_i‖²: what a mean gradient of zero may still have for a square."""


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


def gradient_gram(objective: Objective) -> GradientGram:
    """⟨g_i, g_j⟩ of all pairs of examples: N² numbers that hold all the noise there is in a batch.

    Takes about three gigabytes at most beside the matrix and the pass of one batch; ``how`` says where batches had to
    be recorded more than once for that.

    Args:
        objective: the loss, a mean or a sum over examples.

    Raises:
        DiagnosticsError: as for ``per_example_gradient_norms``; more than some 23 thousand examples.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> gram = gradient_gram(objective).matrix
        >>> bool(torch.isclose(gram.mean(), objective.gradient().double().square().sum()))
        True
    """
    run = OnePass(objective)
    _require_room(run)
    examples = run.examples
    while True:
        try:
            with quiet(objective.model, objective.mode):
                matrix, groups = _filled(run)
                run.require_finite(matrix.diagonal())
            break
        except _TooLargeError as problem:
            pieces = in_microbatches(run.objective, problem.examples)
            share_plans(run.objective, pieces)
            run, examples = OnePass(pieces), problem.examples
    how = f"{run.how}; records of all batches held at once"
    if groups > 1:
        how = f"{run.how}; recorded in {groups} groups of batches for memory, each again for every one before it"
    if run.objective is not objective:
        how += f"; batches cut to at most {examples} example{'' if examples == 1 else 's'}"
    return GradientGram(matrix, run.routes, how)


def gram_matrix(source: Objective | GradientGram) -> Draws:
    """⟨g_i, g_j⟩ (N, N) in float64 on the host, of an Objective or of what was measured already.

    Raises:
        DiagnosticsError: neither; a matrix that is none of inner products; or as ``gradient_gram``.
    """
    if not isinstance(source, GradientGram):
        source = gradient_gram(source)
    found: Draws = source.matrix.detach().cpu().double().numpy()
    square = found.ndim == 2 and len(found) == found.shape[1] and len(found)
    if not (square and numpy.isfinite(found).all() and (found.diagonal() >= 0).all()):
        raise DiagnosticsError(
            "matrix is not one of inner products",
            given=f"shape {found.shape}",
            expected="⟨g_i, g_j⟩ of all pairs of examples, (N, N), finite",
        )
    return found


def mean_square_of(gram: Draws) -> float:
    """‖∇L‖²; 0 where it is what rounding leaves of gradients that cancel, and quotients over it would say anything.

    Example:
        >>> mean_square_of(numpy.array([[1.0, -1.0], [-1.0, 1.0 + 1e-16]])), mean_square_of(numpy.eye(2))
        (0.0, 0.5)
    """
    square = float(gram.mean())
    return square if square > ROUNDING * float(gram.diagonal().mean()) else 0.0


class _TooLargeError(Exception):
    """A batch cannot be held; so many of its examples could be."""

    def __init__(self, examples: int) -> None:
        super().__init__(examples)
        self.examples = examples


@dataclass(frozen=True)
class _Group:
    """Batches that are held at once: what is known of each parameter, and the first batch that did not fit."""

    found: Mapping[str, list[Batch]]
    end: int


def _filled(run: OnePass) -> tuple[Tensor, int]:
    """The matrix, and in how many groups it was made.

    Raises:
        _TooLargeError: a batch cannot be held.
    """
    matrix = torch.zeros(run.examples, run.examples, dtype=torch.float64, device=run.device)
    sizes = dict(zip(run.objective.space.names, run.objective.space.sizes, strict=True))
    last = len(run.counts)
    whole = _held(run, 0, HELD_BYTES)
    if whole.end == last:
        for name, size in sizes.items():
            add_products(matrix, whole.found[name], whole.found[name], size)
        return matrix, 1
    del whole
    first = groups = 0
    while first < last:
        rows = _held(run, first, HELD_BYTES // 2)
        for name, size in sizes.items():
            add_products(matrix, rows.found[name], rows.found[name], size)
        first, groups = rows.end, groups + 1
        at = first
        while at < last:
            columns = _held(run, at, HELD_BYTES // 2)
            for name, size in sizes.items():
                add_products(matrix, rows.found[name], columns.found[name], size)
            at = columns.end
    return matrix, groups


def _held(run: OnePass, first: int, most: int) -> _Group:
    """Batches from one on, as many as can be held.

    Raises:
        _TooLargeError: not even one.
    """
    space = run.objective.space
    found: dict[str, list[Batch]] = {name: [] for name in space.names}
    held = 0
    for sheet in sheets(run.objective, run.mean, first):
        known = {name: sheet.contributions(name, size) for name, size in zip(space.names, space.sizes, strict=True)}
        each = sum(p.numel() * p.element_size() for name, p in space.items() if name in sheet.failed)
        needed = _bytes(known.values()) + sheet.count * each
        if held + needed > most and (held or sheet.count > 1):
            if held:
                return _Group(found, sheet.index)
            raise _TooLargeError(max(1, math.floor(sheet.count * HELD_BYTES / (PIECES * needed))))
        rows = _by_themselves(run, sheet)
        places = torch.arange(run.examples, device=run.device)[run.slice(sheet.index)]
        for name in space.names:
            some: list[Contribution] | None = [Direct(rows[name])] if name in rows else known[name]
            if some:
                found[name].append((places, some))
        held += needed
        following = sheet.index + 1
        # A pass whose record will not fit is spared.
        if following < len(run.counts) and held + needed * run.counts[following] / sheet.count > most:
            return _Group(found, following)
        sheet.watched = None
        del sheet, known
    return _Group(found, len(run.counts))


def _by_themselves(run: OnePass, sheet: Sheet) -> dict[str, Tensor]:
    """(N, P) for each parameter of which the record is not enough."""
    rows = {
        name: torch.zeros(sheet.count, p.numel(), dtype=p.dtype, device=p.device)
        for name, p in run.objective.space.items()
        if name in sheet.failed
    }

    def see(places: Sequence[int], parts: Mapping[str, Tensor]) -> None:
        for name, part in parts.items():
            rows[name][list(places)] = part

    run.finish(sheet, see)
    return rows


def _bytes(known: Iterable[Sequence[Contribution] | None]) -> int:
    """What is held by contributions, which share some of it."""
    tensors = (
        tensor for some in known for one in some or () for tensor in vars(one).values() if isinstance(tensor, Tensor)
    )
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def _require_room(run: OnePass) -> None:
    """Refuse so many examples that the matrix alone is too large.

    Raises:
        DiagnosticsError: it is.
    """
    most = math.isqrt(MATRIX_BYTES // 8)
    if run.examples > most:
        batches = sum(total <= most for total in accumulate(run.counts))
        raise DiagnosticsError(
            "there are too many examples for the inner products of all pairs",
            given=f"{run.examples:,}, for a matrix of {8 * run.examples**2 / 2**30:.3g} GiB",
            expected=f"at most {most:,}",
            attempt=f"limit={batches}, for {batches} of {len(run.counts)} batches" if batches else "fewer examples",
        )
