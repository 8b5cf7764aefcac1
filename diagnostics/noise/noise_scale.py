"""The gradient noise scale of an objective's own examples, by the norms of their gradients.

With g_i the gradients of N examples drawn from the data and ḡ their mean,

    tr Σ ≈ N/(N − 1) (mean ‖g_i‖² − ‖ḡ‖²),    |G|² ≈ ‖ḡ‖² − tr Σ/N,    B_simple = tr Σ/|G|²,

both unbiased, and divided only once each is known (``from_examples``); B_noise weighs both by curvature
(``curvature_weighted``). An optimizer that divides coordinates by P sees neither: in the coordinates P^½ θ, where its
step is a plain one, noise and signal are tr(P⁻¹Σ) and GᵀP⁻¹G, and P is meant to be what makes curvature equal there.

Source: McCandlish et al., arXiv 1812.06162; the coherence of m examples: Chatterjee & Zielinski, arXiv 2008.01217;
noise scales of preconditioned gradients: Qiao et al., arXiv 2008.12260.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.arguments import hessian_of, require_finite_loss, require_objective, whole_number
from diagnostics.averages import Draws
from diagnostics.curvature.layers import layers_of
from diagnostics.curvature.operators import Hessian
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.noise.curvature_weighted import Step, weighted_by_curvature
from diagnostics.noise.from_examples import Parts, parts_of
from diagnostics.noise.per_example import dots_by_parameter, per_example_gradient_dots, per_example_gradient_norms
from diagnostics.noise.tails import is_heavy, tail_index, top_share
from diagnostics.objective import Objective
from diagnostics.stability.preconditioner import scaling

FEWEST = 4
"""Examples without which signal and noise cannot be told apart at all."""

ROUNDING = 4.0
"""Of the last digits of the gradients' precision: one standard error of a squared norm."""


@dataclass(frozen=True)
class LayerNoise:
    """The noise scale of one module's own parameters.

    Attributes:
        layer: path of the module; empty for the model itself.
        gradient_sq: its part of |G|²: parts add up.
        trace_covariance: its part of tr Σ.
        simple: their quotient, in examples.
    """

    layer: str
    gradient_sq: Estimate
    trace_covariance: Estimate
    simple: Estimate


@dataclass(frozen=True, repr=False)
class NoiseScale:
    """How noisy the gradients of single examples are.

    Attributes:
        gradient_sq: |G|², the squared norm of the noiseless gradient. Unbiased, so it can come out negative.
        trace_covariance: tr Σ, the variance of single examples' gradients, summed over parameters.
        simple: B_simple = tr Σ/|G|², in examples; undetermined where the interval of |G|² reaches zero.
        hessian: B_noise = tr(HΣ)/GᵀHG, in examples; None when it was not asked for.
        preconditioned: tr(P⁻¹Σ)/GᵀP⁻¹G of the optimizer's P, in examples; None without an optimizer.
        preconditioned_hessian: tr(P⁻¹HP⁻¹Σ)/GᵀP⁻¹HP⁻¹G, B_noise of the optimizer's own step; None without either.
        coherence: N/(1 + B_simple): N where all gradients are equal, 1 where they are orthogonal.
        tail: α of P(‖g_i − ḡ‖ > x) ~ x^−α; at 2 and below there is no tr Σ, and no noise scale.
        top_share: of tr Σ, what the hundredth of examples with the longest gradients makes.
        median_norm: of ‖g_i‖, half the interquartile range as spread: where it falls and tr Σ does not, few examples
            are left to be learned.
        by_layer: one row for each module with parameters of its own.
        examples: N. An example is a row of a batch: a sequence, not a token.
    """

    gradient_sq: Estimate
    trace_covariance: Estimate
    simple: Estimate
    hessian: Estimate | None
    preconditioned: Estimate | None
    preconditioned_hessian: Estimate | None
    coherence: Estimate
    tail: Estimate
    top_share: Estimate
    median_norm: Estimate
    by_layer: tuple[LayerNoise, ...]
    examples: int

    @property
    def heavy_tailed(self) -> bool:
        """Whether the noise has no variance to speak of: all of the tail index's interval is below two."""
        return is_heavy(self.tail)

    def __str__(self) -> str:
        lines = [f"B_simple {_told(self.simple)} examples: tr Σ {self.trace_covariance} over |G|² {self.gradient_sq}"]
        if self.hessian is not None:
            lines.append(f"B_noise {_told(self.hessian)} examples, weighted by curvature")
        if self.preconditioned is not None:
            lines.append(f"B_simple {_told(self.preconditioned)} examples as the optimizer scales its coordinates")
        if self.preconditioned_hessian is not None:
            lines.append(f"B_noise {_told(self.preconditioned_hessian)} examples for the optimizer's own step")
        if self.heavy_tailed:
            lines.append(f"heavy tails, index {self.tail}: a few examples make tr Σ, and it grows with their number")
        return "\n".join(lines)

    __repr__ = __str__


def noise_scale(
    objective: Objective,
    *,
    optimizer: Optimizer | None = None,
    draws: int = 16,
    hessian: Hessian | None = None,
    seed: int = 0,
) -> NoiseScale:
    """How many examples a batch needs before its gradient is mostly signal.

    A proxy for the critical batch size, not that itself: it supposes steps of the best size, and it changes over
    training (Merrill et al., arXiv 2505.23971).

    Args:
        objective: the trainer's loss on examples drawn at random; some hundreds of them.
        optimizer: the live optimizer, for the noise scales of its own metric.
        draws: halves of the examples for B_noise, at a gradient and a Hessian-vector product each; with as many as
            there are examples each is taken by itself, and the error is theirs; 0 leaves it out.
        hessian: one already made for this objective, to share its graph.
        seed: of the halves.

    Raises:
        DiagnosticsError: fewer than four examples, examples that batch normalisation couples, a gradient that is
            not finite, or an optimizer that has no preconditioner yet, no rule, or a learning rate of zero.

    Source: arXiv 1812.06162.

    Example:
        >>> import torch
        >>> class Mean(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
        ...     def forward(self, x):
        ...         return self.at - x
        >>> data = torch.randn(400, 2), torch.zeros(400, 2)
        >>> half = lambda outputs, targets: 0.5 * (outputs - targets).square().sum(1).mean()
        >>> n = noise_scale(Objective(Mean(), half, data))  # tr Σ = 2, |G|² = 4, H = 1
        >>> 0.3 < float(n.simple) < 0.8, 0.3 < float(n.hessian) < 0.8
        (True, True)
    """
    draws = whole_number("draws is not a number of halves", draws, "0, or at least 2", 0)
    if draws == 1:
        raise DiagnosticsError("draws is too small", given="1", expected="0, or at least 2: one draw has no error")
    require_objective(objective)
    require_finite_loss(objective)
    gradient = objective.gradient()
    metric = None if optimizer is None else _metric(objective, optimizer, gradient)
    measured = per_example_gradient_norms(objective)
    count = len(measured.norms)
    if count < FEWEST:
        raise DiagnosticsError(
            "there are too few examples to tell noise from signal",
            given=f"{count}",
            expected=f"some hundreds, at least {FEWEST}",
        )
    along = {name: part.cpu().numpy() for name, part in dots_by_parameter(objective, gradient).items()}
    squares = {name: part.cpu().numpy() for name, part in measured.squares.items()}
    total, projected = _summed(squares), _summed(along)
    rounding = ROUNDING * torch.finfo(objective.space.dtype).eps
    noise = parts_of(total, projected, measured.mean_square.value, measured.how, rounding=rounding)
    weighted: list[Estimate | None] = [None, None]
    if draws:
        steps: list[Step] = [lambda g: g] if metric is None else [lambda g: g, lambda g: g * metric]
        found = weighted_by_curvature(
            objective, hessian_of(objective, hessian), gradient, steps, draws, seed, noise.ratio.determined
        )
        weighted = [*found, None][:2]
    tail, share = _tail(total, total - 2 * projected + measured.mean_square.value, rounding)
    return NoiseScale(
        gradient_sq=noise.signal,
        trace_covariance=noise.noise,
        simple=noise.ratio,
        hessian=weighted[0],
        preconditioned=None if metric is None else _in_metric(objective, gradient, metric, rounding).ratio,
        preconditioned_hessian=weighted[1],
        coherence=_coherence(noise.ratio, count),
        tail=tail,
        top_share=share,
        median_norm=_median(numpy.sqrt(total), measured.how),
        by_layer=_layers(objective, squares, along, gradient, measured.how, rounding),
        examples=count,
    )


def _metric(objective: Objective, optimizer: Optimizer, gradient: Tensor) -> Tensor:
    """P⁻¹, (P,), up to a factor."""
    root = scaling(optimizer, objective.space, gradient).root
    if not bool((root > 0).any()):
        raise DiagnosticsError(
            "the optimizer takes no step now, and has no metric",
            given="a learning rate of zero, as warm-up begins with",
            expected="a learning rate above zero",
        )
    return root.square()


def _layers(
    objective: Objective,
    squares: dict[str, Draws],
    along: dict[str, Draws],
    gradient: Tensor,
    how: str,
    rounding: float,
) -> tuple[LayerNoise, ...]:
    rows = []
    for layer in layers_of(objective.space):
        names = objective.space.names[layer.group]
        mean = float(gradient[layer.span].double().square().sum())
        own, projected = (_summed({n: part[n] for n in names}) for part in (squares, along))
        parts = parts_of(own, projected, mean, how, rounding=rounding)
        rows.append(LayerNoise(layer.name, parts.signal, parts.noise, parts.ratio))
    return tuple(rows)


def _in_metric(objective: Objective, gradient: Tensor, metric: Tensor, rounding: float) -> Parts:
    """Noise and signal in the coordinates where the optimizer takes plain steps."""
    measured = per_example_gradient_norms(objective, metric=metric)
    along = per_example_gradient_dots(objective, gradient.double() * metric.double()).cpu().numpy()
    own = measured.norms.square().cpu().numpy()
    return parts_of(own, along, measured.mean_square.value, measured.how, signal="GᵀP⁻¹G", rounding=rounding)


def _summed(parts: dict[str, Draws]) -> Draws:
    total: Draws = numpy.sum(list(parts.values()), axis=0)
    return total


def _tail(total: Draws, apart: Draws, rounding: float) -> tuple[Estimate, Estimate]:
    """From ‖g_i‖² and ‖g_i − ḡ‖², (N,): of gradients that are all but equal, what rounding leaves has no tail."""
    if not apart.mean() > 4 * rounding * total.mean():
        how = f"the gradients of all {len(total)} examples are equal but for rounding"
        return (Estimate(math.nan, math.nan, "standard error", how), Estimate(math.nan, math.nan, "exact", how))
    away = numpy.sqrt(numpy.maximum(apart, 0.0))
    return tail_index(away), top_share(away)


def _coherence(simple: Estimate, count: int) -> Estimate:
    value = count / (1 + simple.value)
    return Estimate(value, value / (1 + simple.value) * simple.error, simple.kind, simple.how)


def _median(norms: Draws, how: str) -> Estimate:
    low, middle, high = (float(value) for value in numpy.quantile(norms, (0.25, 0.5, 0.75)))
    return Estimate(middle, (high - low) / 2, "spread", f"{how}; half the interquartile range")


def _told(estimate: Estimate) -> str:
    return str(estimate) if estimate.determined else f"undetermined ({estimate.how.partition(';')[0]})"
