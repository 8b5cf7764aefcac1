"""How signals and gradients come through the depth of a network, against what theory says of random ones.

Two inputs with mean squares q and cosine c leave a wide random layer z' = W φ(z) + b with

    q' = σ_w² E φ(z)² + σ_b²,   q' c' = σ_w² E φ(z_1) φ(z_2) + σ_b²,   z Gaussian with q and c,

σ_w² the variance of the weights times the fan-in. Backwards, the squared norm of a gradient takes a factor
χ = σ_w² E φ'(z)² per layer. Where c goes to 1 all inputs look the same at depth; where it is far from 1 at χ ≠ 1
gradients explode or vanish. Measured are q, c and gradients of this network, with these weights; predicted is what a
wide network with the same σ_w and σ_b at every layer would have for these inputs. Other than fully-connected networks
are measured only.

Source: Poole et al., arXiv 1606.05340; Schoenholz et al., arXiv 1611.01232; Martens et al., arXiv 2110.01765 (what
makes a network hard to train).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from diagnostics.averages import mean, quotient
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.initialisation.passes import Kind, Seen, depth_of, run
from diagnostics.initialisation.predicted import Prediction, predict
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap

if TYPE_CHECKING:
    import pandas

GROWTH = 100.0
"""Gradients that differ by more than this from one end to the other."""

ROUNDING = 1e-9

DEGENERATE = 1e-2
"""Of what set inputs apart at the first place (1 − c), less than this is left at the last."""


@dataclass(frozen=True)
class PlaceSignal:
    """One place of a network.

    Attributes:
        layer: module path; ``#2`` for the second use of the same.
        length: q, mean square over units, over examples.
        cosine: c, over pairs of examples; each example is one vector, all its tokens or pixels together.
        gradient: root mean square over examples of the norm of the gradient here; of the loss, or of a random linear
            function of the outputs. The scale is that function's: compare places.
        weight_gradient: norm of the gradient in the parameters of this place's module.
        gradient_factor: squared gradient norm here over that at the next place; None at the last.
        predicted_length: q of a wide random network; None where theory does not speak.
        predicted_cosine: c likewise.
        predicted_factor: χ likewise; None at the last place.
    """

    layer: str
    length: Estimate
    cosine: Estimate
    gradient: Estimate
    weight_gradient: Estimate
    gradient_factor: Estimate | None
    predicted_length: Estimate | None
    predicted_cosine: Estimate | None
    predicted_factor: Estimate | None


@dataclass(frozen=True, repr=False)
class SignalPropagation:
    """A table with one row per place, in the order in which they run.

    Attributes:
        rows: the places.
        kind: what they are: pre-activations, blocks or layers.
        growth: gradient norm at the first place over that at the last; an output layer is left out.
        remaining: (1 − c) at the last place over that at the first; an output layer is left out.
        verdicts: of "degenerate", "exploding", "vanishing" those that hold; "shaped" where none does. Empty where
            neither growth nor what remains could be told.
        no_prediction: why theory does not speak; empty where it does.
    """

    rows: list[PlaceSignal]
    kind: Kind
    growth: Estimate
    remaining: Estimate
    verdicts: tuple[str, ...]
    no_prediction: str

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame. Needs pandas."""
        import pandas

        columns = [name for name in PlaceSignal.__dataclass_fields__ if name != "layer"]
        found = [
            {"layer": row.layer}
            | {name: None if (number := getattr(row, name)) is None else number.value for name in columns}
            for row in self.rows
        ]
        return pandas.DataFrame(found, columns=["layer", *columns])

    def __str__(self) -> str:
        width = max([5, *(len(row.layer) for row in self.rows)])
        theory = not self.no_prediction
        columns = ["length", "predicted_length", "cosine", "predicted_cosine", "gradient_factor", "predicted_factor"]
        columns = [name for name in columns if theory or not name.startswith("predicted")]
        head = ["(theory)" if name.startswith("predicted") else name.removeprefix("gradient_") for name in columns]
        lines = [f"{'layer':<{width}}  " + "  ".join(f"{name:>13}" for name in [*head, "gradient"])]
        for row in self.rows:
            cells = ["" if (number := getattr(row, name)) is None else str(number) for name in [*columns, "gradient"]]
            lines.append(f"{row.layer:<{width}}  " + "  ".join(f"{cell:>13}" for cell in cells))
        verdict = " and ".join(self.verdicts) or "no verdict"
        lines.append(f"{verdict}: gradients grow by {self.growth} from the last place to the first")
        if not theory:
            lines.append(f"measured only: {self.no_prediction}")
        return "\n".join(lines)

    __repr__ = __str__


def signal_propagation(model: nn.Module, batch: Any) -> SignalPropagation:
    """Lengths, cosines and gradients by depth, measured, and for fully-connected networks against theory.

    Args:
        model: any module. Depth is counted in pre-activations where all parameters are those of linear layers, in
            blocks where some repeat, in layers elsewhere.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``: gradients are then
            of a random linear function of the outputs. Or an Objective of this model: gradients are then of its loss,
            in its mode. Two examples at least; 64 of each batch are looked at.

    Raises:
        DiagnosticsError: the batch cannot be run, nothing that counts depth is there, or values are not finite.

    Example:
        >>> parts = [part for _ in range(5) for part in (nn.Linear(200, 200, bias=False), nn.ReLU())]
        >>> for part in parts[::2]:
        ...     _ = nn.init.kaiming_normal_(part.weight)
        >>> signals = signal_propagation(nn.Sequential(*parts), torch.randn(20, 200))
        >>> signals.verdicts, round(float(signals.rows[0].predicted_factor), 1)
        (('shaped',), 1.0)
    """
    plain = unwrap(model)
    if isinstance(batch, Objective) and batch.model is not plain:
        raise DiagnosticsError("the objective was built on another model", given=type(plain).__name__)
    kind, modules = depth_of(plain)
    passes = run(plain, batch, modules)
    names = list(passes.batches[0].places)
    if not names:
        raise DiagnosticsError(
            "the model has no depth to look at",
            given=type(plain).__name__,
            expected="blocks that repeat, or layers with a matrix for weight, that run",
        )
    if any(list(one.places) != names for one in passes.batches):
        raise DiagnosticsError("the model runs other layers on another batch", given=type(plain).__name__)
    predictions: list[Prediction] = []
    reason = f"depth is counted in {kind}s, and theory speaks of fully-connected networks"
    if kind == "pre-activation":
        predictions, reason = predict(plain, batch, modules, passes.batches)
    seen = [[one.places[name] for one in passes.batches] for name in names]
    rows = []
    for index, name in enumerate(names):
        following = seen[index + 1] if index + 1 < len(names) else None
        predicted = predictions[index] if predictions else None
        rows.append(_row(name, seen[index], following, passes.weights[name.partition("#")[0]], predicted))
    # The output has few units and often weights of another scale: depth ends before it.
    deep = rows[:-1] if kind != "block" and len(rows) > 2 else rows
    growth = remaining = Estimate(math.nan, math.nan, "exact", "one place has no depth")
    if len(deep) > 1:
        growth, remaining = _root(_ratio(seen[0], seen[len(deep) - 1])), _remaining(deep)
    return SignalPropagation(rows, kind, growth, remaining, _verdicts(growth, remaining), reason)


def _row(
    name: str, here: Sequence[Seen], following: Sequence[Seen] | None, weight: float, predicted: Prediction | None
) -> PlaceSignal:
    lengths = torch.cat([one.lengths for one in here]).tolist()
    squares = _squares(here)
    theory: list[Estimate | None] = [None, None, None]
    if predicted is not None:
        bounds = predicted.length * predicted.bound, predicted.bound
        theory = [
            Estimate(value, error, "residual", f"{predicted.how}; the series left out")
            if error > ROUNDING * abs(value)
            else exact(value, predicted.how)
            for value, error in zip((predicted.length, predicted.cosine), bounds, strict=True)
        ]
        theory.append(None if predicted.factor is None else exact(predicted.factor, predicted.how))
    return PlaceSignal(
        layer=name,
        length=mean(lengths, f"mean square over units, over {len(lengths)} examples, these weights"),
        cosine=_cosine([one.cosines for one in here]),
        gradient=_root(mean(squares, f"over {len(squares)} examples, these weights")) if squares else _NO_GRADIENT,
        weight_gradient=exact(weight, "norm of the gradient in the parameters here") if squares else _NO_GRADIENT,
        gradient_factor=None if following is None else _ratio(here, following),
        predicted_length=theory[0],
        predicted_cosine=theory[1],
        predicted_factor=theory[2],
    )


_NO_GRADIENT = Estimate(math.nan, math.nan, "exact", "no gradient came by: the outputs do not depend on this place")


def _squares(places: Sequence[Seen]) -> list[float]:
    """Squared gradient norms of all examples; none where a batch has none."""
    found = [one.gradients for one in places if one.gradients is not None]
    return torch.cat(found).tolist() if len(found) == len(places) else []


def _ratio(above: Sequence[Seen], below: Sequence[Seen]) -> Estimate:
    """Mean squared gradient norm over another."""
    tops, bottoms = _squares(above), _squares(below)
    if not tops or len(tops) != len(bottoms):
        return _NO_GRADIENT
    if sum(square > 0 for square in bottoms) < min(2, len(bottoms)):
        return Estimate(math.nan, math.nan, "exact", "the gradient is zero at the place that this is held against")
    return quotient(tops, bottoms, f"mean squared gradient norms, over {len(tops)} examples, these weights")


def _root(square: Estimate) -> Estimate:
    if not square.determined:
        return square
    value = math.sqrt(square.value)
    return Estimate(value, square.error / (2 * value) if value else 0.0, square.kind, f"root of: {square.how}")


def _cosine(matrices: Sequence[Tensor]) -> Estimate:
    """The mean over pairs within batches; its error by leaving out an example at a time, as pairs share examples."""
    sums = torch.cat([matrix.sum(1) - matrix.diagonal() for matrix in matrices]).numpy()
    counts = numpy.concatenate([numpy.full(len(matrix), len(matrix) - 1.0) for matrix in matrices])
    pairs = counts.sum() / 2
    if not pairs:
        return Estimate(math.nan, math.nan, "exact", "no batch has two examples")
    value = float(sums.sum() / 2 / pairs)
    how = f"over {pairs:,.0f} pairs of {len(sums)} examples, these weights"
    if (pairs == counts).any():
        return Estimate(value, math.inf, "standard error", how)
    without = (sums.sum() / 2 - sums) / (pairs - counts)
    error = math.sqrt((len(sums) - 1) / len(sums) * float(numpy.square(without - without.mean()).sum()))
    return Estimate(value, error, "standard error", how)


def _remaining(rows: Sequence[PlaceSignal]) -> Estimate:
    first, last = 1 - rows[0].cosine.value, 1 - rows[-1].cosine.value
    if not math.isfinite(first) or first <= ROUNDING:
        reason = rows[0].cosine.how if not math.isfinite(first) else "the examples are the same at the first place"
        return Estimate(math.nan, math.nan, "exact", reason)
    error = math.hypot(rows[-1].cosine.error, last / first * rows[0].cosine.error) / first
    return Estimate(last / first, error, "standard error", "1 − c at the last place over that at the first")


def _verdicts(growth: Estimate, remaining: Estimate) -> tuple[str, ...]:
    found = []
    if remaining.determined and remaining.value < DEGENERATE:
        found.append("degenerate")
    if growth.determined and growth.value > GROWTH:
        found.append("exploding")
    if growth.determined and growth.value < 1 / GROWTH:
        found.append("vanishing")
    known = growth.determined and remaining.determined
    return tuple(found) or (("shaped",) if known else ())
