"""Neural collapse: whether features have shrunk onto one point per class, and the points onto a simplex.

With h the features before the classifier, μ_c the mean of class c, M the class means less their mean μ_G, and Σ_W and
Σ_B the covariances within and between classes:

* NC1, variability: tr(Σ_W Σ_B⁺)/C, which goes to 0;
* NC2, simplex: the coefficient of variation of ‖M_c‖, and the mean of |cos(M_c, M_c') + 1/(C − 1)|; both go to 0;
* NC3, self-duality: ‖W/‖W‖ − M/‖M‖‖², W the classifier's weight; from 0 to 4, 2 where they have nothing in common;
* NC4, nearest centre: the share of examples that the classifier puts elsewhere than the nearest class mean would.

Every class counts alike: μ_G is the mean of the class means, and Σ_W that of the covariances of classes. With equal
classes this is the definition of the source; with unequal ones a large class would otherwise decide alone, and no
cosine could reach −1/(C − 1).

Source: Papyan, Han & Donoho, arXiv 2008.08186.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing

CHUNK = 1 << 22
"""Numbers turned into float64 at a time."""


@dataclass(frozen=True, repr=False)
class NeuralCollapse:
    """The four signs of neural collapse. What is not defined is ``nan``, with the reason in ``how``.

    Attributes:
        variability: NC1, tr(Σ_W Σ_B⁺)/C over the classes with more than one example.
        norm_variation: NC2, standard deviation over mean of the distances of class means from their centre.
        angle_deviation: NC2, mean of |cos + 1/(C − 1)| over pairs of centred class means.
        self_duality: NC3; None without ``weight``.
        weight_norm_variation: the norm variation of the classifier's rows; None without ``weight``.
        nearest_centre_mismatch: NC4, a share of the examples; None without ``weight``.
        cosines: (C, C), cosines between centred class means.
        classes: (C,), the labels that occur, in order.
        counts: (C,), examples of each.
    """

    variability: Estimate
    norm_variation: Estimate
    angle_deviation: Estimate
    self_duality: Estimate | None
    weight_norm_variation: Estimate | None
    nearest_centre_mismatch: Estimate | None
    cosines: Tensor = field(repr=False, compare=False)
    classes: Tensor = field(repr=False, compare=False)
    counts: Tensor = field(repr=False, compare=False)

    def __str__(self) -> str:
        return listing(self)

    __repr__ = __str__


def neural_collapse(
    features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> NeuralCollapse:
    """NC1 to NC4, exact for the examples given.

    Args:
        features: h, (N, d): what goes into the classifier, for training examples.
        labels: (N,), whole numbers; with ``weight`` they are its rows.
        weight: W, (classes, d), the classifier's. Rows of classes without an example are left out of NC3, but may win
            in NC4.
        bias: (classes,), the classifier's.

    Raises:
        DiagnosticsError: shapes that do not go together, fewer than two classes, or values that are not finite.

    Source: arXiv 2008.08186.

    Example:
        >>> corners = torch.eye(3).repeat(2, 1)
        >>> collapsed = neural_collapse(corners, torch.arange(3).repeat(2), weight=torch.eye(3) - 1 / 3)
        >>> f"{collapsed.variability:.2f} {collapsed.angle_deviation:.2f} {collapsed.self_duality:.2f}"
        '0.00 0.00 0.00'
    """
    _check(features, labels, weight, bias)
    with torch.inference_mode(False), torch.no_grad():
        features = features.detach()
        classes, index, counts = labels.detach().long().unique(return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise DiagnosticsError(
                "labels hold one class only", given=f"class {int(classes[0])}", expected="examples of at least two"
            )
        means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=features.device)
        for part, place in _pieces(features, index):
            means.index_add_(0, place, part)
        means /= counts[:, None]
        centred = means - means.mean(0)
        how = _how(features, counts)
        # Class means that agree up to the rounding of their features are one.
        same = torch.finfo(features.dtype).eps * float(torch.linalg.vector_norm(means))
        spread = torch.linalg.vector_norm(centred, dim=1)
        norms, deviation, cosines = _simplex(centred, spread, same, how)
        duality = weight_norms = mismatch = None
        if weight is not None:
            rows = weight.detach().double()[classes]
            duality = _duality(rows, centred, same, how)
            weight_norms = _variation(torch.linalg.vector_norm(rows, dim=1), 0.0, f"of the classifier's rows; {how}")
            mismatch = _mismatch(features, index, means, classes, weight, bias, how)
        return NeuralCollapse(
            variability=_variability(features, index, counts, means, centred, same, how),
            norm_variation=norms,
            angle_deviation=deviation,
            self_duality=duality,
            weight_norm_variation=weight_norms,
            nearest_centre_mismatch=mismatch,
            cosines=cosines.cpu(),
            classes=classes.cpu(),
            counts=counts.cpu(),
        )


def _check(features: Tensor, labels: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, tensor in (("features", features), ("weight", weight), ("bias", bias)):
        wanted = 1 if name == "bias" else 2
        if tensor is None and name != "features":
            continue
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim == wanted and tensor.numel()):
            raise DiagnosticsError(
                f"{name} has the wrong form",
                given=_describe(tensor),
                expected="a floating tensor (classes,)" if name == "bias" else f"a floating tensor (rows, d) of {name}",
                attempt="features.flatten(1)" if name == "features" and isinstance(tensor, Tensor) else "",
            )
        if not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise DiagnosticsError(
                f"{name} is not finite", given=f"{bad:,} of {tensor.numel():,} values", expected="finite values"
            )
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.shape != features.shape[:1]:
        raise DiagnosticsError(
            "labels do not go with the features",
            given=_describe(labels),
            expected=f"whole numbers ({len(features)},), one for each row",
        )
    if bias is not None and (weight is None or len(bias) != len(weight)):
        raise DiagnosticsError(
            "bias does not go with the weight", given=_describe(bias), expected="one number for each row of weight"
        )
    if weight is None:
        return
    if weight.shape[1] != features.shape[1]:
        raise DiagnosticsError(
            "weight does not go with the features",
            given=f"{_describe(weight)}, features {_describe(features)}",
            expected=f"rows of {features.shape[1]} numbers",
            attempt="the input of the classifier as features",
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(weight):
        raise DiagnosticsError(
            "labels are no rows of the weight",
            given=f"{int(labels.min())} to {int(labels.max())}",
            expected=f"0 to {len(weight) - 1}",
        )


def _describe(thing: object) -> str:
    return f"shape {tuple(thing.shape)}, {thing.dtype}" if isinstance(thing, Tensor) else type(thing).__name__


def _how(features: Tensor, counts: Tensor) -> str:
    fewest, most = int(counts.min()), int(counts.max())
    each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    weighed = "" if fewest == most else ", every class counting alike"
    return f"{len(features):,} examples, {each} of each of {len(counts)} classes{weighed}"


def _pieces(features: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK // features.shape[1])
    for part, place in zip(features.split(rows), index.split(rows), strict=True):
        yield part.double(), place


def _nothing(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, "exact", reason)


def _variability(
    features: Tensor, index: Tensor, counts: Tensor, means: Tensor, centred: Tensor, same: float, how: str
) -> Estimate:
    several = counts > 1
    single = int((~several).sum())
    if single == len(counts):
        return _nothing(f"every class has one example, which has no variability; {how}")
    # Σ_B⁺ = C V S⁻² Vᵀ from the decomposition of the centred class means, which has rank C − 1 at most.
    _, sigma, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = sigma > max(same, len(counts) * torch.finfo(torch.float64).eps * float(sigma[0]))
    rank = int(kept.sum())
    if rank == 0:
        return _nothing(f"all class means are the same; {how}")
    whitened = directions[kept].mT / sigma[kept] * math.sqrt(len(counts))
    squares = torch.zeros(len(counts), dtype=torch.float64, device=features.device)
    for part, place in _pieces(features, index):
        squares.index_add_(0, place, ((part - means[place]) @ whitened).square().sum(1))
    trace = float((squares / counts)[several].mean())
    notes = f"tr(Σ_W Σ_B⁺)/C; {how}"
    if single:
        notes += f"; {single} with one example left out of Σ_W"
    if rank < min(len(counts) - 1, features.shape[1]):
        notes += f"; Σ_B has rank {rank} only, and nothing outside it counts"
    return exact(trace / len(counts), notes)


def _simplex(centred: Tensor, spread: Tensor, same: float, how: str) -> tuple[Estimate, Estimate, Tensor]:
    count = len(centred)
    norms = _variation(spread, same, f"of the class means' distances from their centre; {how}")
    at_centre = spread <= same
    cosines = centred @ centred.mT / (spread[:, None] * spread)
    if bool(at_centre.any()):
        reason = f"{int(at_centre.sum())} class means lie at the centre of all, and have no direction; {how}"
        return norms, _nothing(reason), cosines
    pairs = cosines[~torch.eye(count, dtype=torch.bool, device=cosines.device)]
    notes = f"mean of |cos + 1/{count - 1}| over {count * (count - 1) // 2} pairs; {how}"
    if count == 2:
        notes += "; zero for any two classes"
    return norms, exact(float((pairs + 1 / (count - 1)).abs().mean()), notes), cosines


def _variation(norms: Tensor, same: float, how: str) -> Estimate:
    """Standard deviation over mean."""
    mean = float(norms.mean())
    if mean <= same:
        return _nothing(f"all are the same point: {how}")
    return exact(float(norms.std(correction=0)) / mean, f"standard deviation over mean {how}")


def _duality(rows: Tensor, centred: Tensor, same: float, how: str) -> Estimate:
    sizes = float(torch.linalg.vector_norm(rows)), float(torch.linalg.vector_norm(centred))
    if sizes[0] == 0.0 or sizes[1] <= same:
        return _nothing(f"{'the classifier is zero' if sizes[0] == 0.0 else 'all class means are the same'}; {how}")
    return exact(float((rows / sizes[0] - centred / sizes[1]).square().sum()), f"‖W/‖W‖ − M/‖M‖‖²; {how}")


def _mismatch(
    features: Tensor,
    index: Tensor,
    means: Tensor,
    classes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: str,
) -> Estimate:
    offset = torch.zeros(len(weight), dtype=torch.float64, device=features.device)
    offset = offset if bias is None else bias.detach().double()
    # ‖h − μ‖² less ‖h‖², which is the same for every class. About the centre, where rounding is least.
    centre = means.mean(0)
    around = means - centre
    elsewhere = 0
    for part, _ in _pieces(features, index):
        chosen = (part @ weight.detach().double().mT + offset).argmax(1)
        nearest = (around.square().sum(1) - 2 * (part - centre) @ around.mT).argmin(1)
        elsewhere += int((chosen != classes[nearest]).sum())
    return exact(elsewhere / len(features), f"{elsewhere:,} of {len(features):,} not at the nearest class mean; {how}")
