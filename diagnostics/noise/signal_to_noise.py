"""The gradient signal-to-noise ratio of every parameter: how well N examples agree on the sign of its step.

GSNR_j = G_j²/Σ_jj, with G_j and Σ_jj the mean and the variance of one entry of single examples' gradients. Measured as
ḡ_j²/s_j² it is too large by 1/N, which is all there is where there is no signal: that is taken off, so single values
can be negative. A parameter counts as *resolved* when N examples tell its gradient from zero, |ḡ_j| > 1.96 s_j/√N; of
parameters without any signal that is so for a twentieth. High ratios early in training go with a small generalisation
gap in the source.

Sums of squares are kept by parameter: no gradient of an example is held.

Source: Liu et al., arXiv 2001.07384.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import require_finite_loss, require_objective
from diagnostics.curvature.layers import layers_of
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.contributions import Contribution
from diagnostics.recorded.elementwise import sum_of_squares
from diagnostics.recorded.one_pass import OnePass

FEWEST = 4
"""Examples without which there is no variance to speak of."""


@dataclass(frozen=True)
class LayerSignal:
    """One module's own parameters.

    Attributes:
        layer: path of the module; empty for the model itself.
        median: of the ratios, half their interquartile range as spread.
        resolved: share of parameters whose gradient is told from zero, of those that have one.
        unused: parameters whose gradient is zero for every example; they have no ratio.
    """

    layer: str
    median: Estimate
    resolved: Estimate
    unused: int


@dataclass(frozen=True, repr=False)
class SignalToNoise:
    """The ratio of every parameter.

    Attributes:
        ratio: (P,), float64, the 1/N of pure noise taken off; ``nan`` where no example has a gradient.
        median: of all of them, half their interquartile range as spread.
        resolved: share of parameters whose gradient is told from zero.
        by_layer: the same for each module with parameters of its own.
        examples: N.
    """

    ratio: Tensor
    median: Estimate
    resolved: Estimate
    by_layer: tuple[LayerSignal, ...]
    examples: int

    def __str__(self) -> str:
        lines = [
            f"gradient signal-to-noise of {self.examples} examples: median {_told(self.median)}, {_part(self.resolved)}"
        ]
        lines += [
            f"  {row.layer or '(model)'}: median {_told(row.median)}, {_part(row.resolved)}" for row in self.by_layer
        ]
        return "\n".join(lines)

    __repr__ = __str__


def _told(median: Estimate) -> str:
    """A spread is no error, and a median is not rounded to it."""
    if not median.determined:
        return f"undetermined ({median.how.partition(';')[0]})"
    return f"{median.value:.3g} (spread {median.error:.2g} over parameters)"


def _part(resolved: Estimate) -> str:
    return f"{resolved.value:.0%} resolved" if resolved.determined else "none has a gradient"


def gradient_signal_to_noise(objective: Objective) -> SignalToNoise:
    """G_j²/Σ_jj of every parameter, from one recorded pass.

    Args:
        objective: the loss, on some hundreds of examples drawn at random.

    Raises:
        DiagnosticsError: fewer than four examples; or as ``per_example_gradient_norms``.

    Source: arXiv 2001.07384.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(50, 1)  # all agree on one weight, half on the other
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> found = gradient_signal_to_noise(Objective(model, torch.nn.MSELoss(), (x, torch.ones(100, 1))))
        >>> float(found.ratio[1]), bool(found.ratio[0] > 1e5), float(found.resolved)
        (-0.01, True, 0.5)
    """
    require_objective(objective)
    require_finite_loss(objective)
    squares, count = _second_moments(objective)
    if count < FEWEST:
        raise DiagnosticsError(
            "there are too few examples", given=f"{count}", expected=f"some hundreds, at least {FEWEST}"
        )
    mean = objective.gradient().double()
    second = torch.cat([squares[name] for name in objective.space.names]) / count
    # Differences of nearly equal numbers: below rounding there is no variance, and any signal is beyond all noise.
    rounding = 8 * torch.finfo(objective.space.dtype).eps
    variance = (second - mean.square()).clamp_min(0.0) * count / (count - 1)
    variance = torch.where(variance > rounding * second, variance, 0.0)
    ratio = torch.where(second > 0, mean.square() / variance - 1 / count, torch.nan)
    resolved = mean.abs() > 1.96 * (variance / count).sqrt()
    how = f"{count} examples, {objective.description}"
    return SignalToNoise(
        ratio=ratio,
        median=_median(ratio, how),
        resolved=_share(resolved, ratio, how),
        by_layer=tuple(
            LayerSignal(
                layer.name,
                _median(ratio[layer.span], how),
                _share(resolved[layer.span], ratio[layer.span], how),
                int(ratio[layer.span].isnan().sum()),
            )
            for layer in layers_of(objective.space)
        ),
        examples=count,
    )


def _second_moments(objective: Objective) -> tuple[dict[str, Tensor], int]:
    """Σ_i g_ij² of each parameter, by name, and the number of examples."""
    run = OnePass(objective)
    sizes = dict(zip(objective.space.names, objective.space.sizes, strict=True))
    total = {name: torch.zeros(size, dtype=torch.float64, device=run.device) for name, size in sizes.items()}
    with quiet(objective.model, objective.mode):

        def recorded(name: str, size: int, _: slice, found: list[Contribution], __: bool) -> None:
            total[name] += sum_of_squares(found, size)

        def alone(_: list[int], parts: Mapping[str, Tensor]) -> None:
            for name, rows in parts.items():
                total[name] += rows.double().square().sum(0)

        run.through(recorded, alone)
    for part in total.values():
        if not bool(torch.isfinite(part).all()):
            raise DiagnosticsError("the gradient of an example is not finite", expected="finite parameters and data")
    return total, run.examples


def _median(ratio: Tensor, how: str) -> Estimate:
    known = ratio[~ratio.isnan()]
    if not len(known):
        return Estimate(math.nan, math.nan, "spread", f"no parameter has a gradient; {how}")
    # torch.quantile refuses more than 16 million values.
    ordered = known.sort().values
    low, middle, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.25, 0.5, 0.75))
    if not math.isfinite(middle):
        return Estimate(math.nan, math.nan, "spread", f"most parameters have no noise beyond rounding; {how}")
    return Estimate(middle, (high - low) / 2, "spread", f"{how}; half the interquartile range over parameters")


def _share(resolved: Tensor, ratio: Tensor, how: str) -> Estimate:
    known = ~ratio.isnan()
    if not bool(known.any()):
        return Estimate(math.nan, math.nan, "exact", f"no parameter has a gradient; {how}")
    return exact(float(resolved[known].double().mean()), how)
