"""B_noise = tr(HΣ)/GᵀHG: noise over signal as the loss weighs them, by curvature.

A step of η on a gradient of B examples changes a quadratic loss by −η|G|² + ½η²(GᵀHG + tr(HΣ)/B). For an optimizer
that takes P⁻¹g, step and curvature meet as P⁻¹HP⁻¹, and so do both parts of the quotient.

Where all N examples can be afforded a product each, their inner products in H are known, and the jackknife leaves one
out at a time. Otherwise the numerator is a mean over random halves S: Δ = g_S − ḡ has E ΔΔᵀ = Σ/N, so that
tr(HΣ) = N E ΔᵀHΔ; that error is of the halves alone, the examples are taken as they are.

Source: McCandlish et al., arXiv 1812.06162.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from diagnostics.averages import mean
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.operators import Hessian
from diagnostics.estimate import Estimate
from diagnostics.minibatches import Minibatches
from diagnostics.noise.from_examples import parts_of
from diagnostics.objective import Objective
from diagnostics.recorded.examples import lengths, mean_gradient

Step = Callable[[Tensor], Tensor]
"""From a gradient (P,) to the step an optimizer makes of it."""


def weighted_by_curvature(
    objective: Objective, hessian: Hessian, gradient: Tensor, steps: list[Step], draws: int, seed: int, signal: bool
) -> list[Estimate]:
    """B_noise for each kind of step, from the same draws.

    Args:
        objective: whose examples.
        hessian: of the same.
        gradient: ḡ (P,).
        steps: P⁻¹ of each optimizer.
        draws: halves, at least 2; with as many as there are examples, each is taken once instead.
        seed: of the halves.
        signal: whether |G|² is known to be above zero.
    """
    count = sum(lengths(objective))
    if draws >= count:
        return _from_every_example(objective, hessian, gradient, steps)
    forms = [_Form(hessian, step) for step in steps]
    curved: list[list[float]] = [[] for _ in steps]
    for away in halves(objective, gradient, draws, seed):
        for found, form in zip(curved, forms, strict=True):
            found.append(form(away, away))
    factor = count * (count // 2) / (count - count // 2)
    how = f"{draws} random halves of {count} examples, {hessian.route}; the error is of the halves"
    return [
        _quotient(form(gradient, gradient), [factor * each for each in found], count, how, signal)
        for form, found in zip(forms, curved, strict=True)
    ]


@dataclass(frozen=True)
class _Form:
    """aᵀP⁻¹HP⁻¹b."""

    hessian: Hessian
    step: Step

    def __call__(self, one: Tensor, other: Tensor) -> float:
        return float(self.step(one).double() @ (self.hessian @ self.step(other)).double())


def _quotient(along: float, drawn: list[float], count: int, how: str, signal: bool) -> Estimate:
    """tr(HΣ)/GᵀHG, with GᵀHG ≈ ḡᵀHḡ − tr(HΣ)/N."""
    weighted = mean(drawn, "")
    bottom = along - weighted.value / count
    if not signal:
        return Estimate(math.nan, math.nan, "standard error", f"the interval of |G|² reaches zero; {how}")
    if not bottom > 1.96 * weighted.error / count:
        return Estimate(math.nan, math.nan, "standard error", f"GᵀHG is not positive beyond its error; {how}")
    # The same draws stand above and below: d/dT of T/(a − T/N) is a/(a − T/N)².
    return Estimate(weighted.value / bottom, along / bottom * (weighted.error / bottom), "standard error", how)


def _from_every_example(objective: Objective, hessian: Hessian, gradient: Tensor, steps: list[Step]) -> list[Estimate]:
    count = sum(lengths(objective))
    summed = Minibatches(objective, 1).summed
    products = [hessian @ step(gradient) for step in steps]
    own: list[list[float]] = [[] for _ in steps]
    along: list[list[float]] = [[] for _ in steps]
    for place in range(count):
        one = mean_gradient(objective, torch.arange(count) == place, summed)
        for index, step in enumerate(steps):
            own[index].append(_Form(hessian, step)(one, one))
            along[index].append(float(step(one).double() @ products[index].double()))
    how = f"each of {count} examples, {hessian.route}; jackknife over examples"
    found = []
    for index, step in enumerate(steps):
        middle = float(step(gradient).double() @ products[index].double())
        parts = parts_of(numpy.array(own[index]), numpy.array(along[index]), middle, how, signal="GᵀHG")
        found.append(parts.ratio)
    return found


def halves(objective: Objective, gradient: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """g_S − ḡ of random halves."""
    count = sum(lengths(objective))
    summed = Minibatches(objective, 1).summed
    generator = random_stream(seed)
    for _ in range(draws):
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.randperm(count, generator=generator)[: count // 2]] = True
        yield mean_gradient(objective, chosen, summed) - gradient
