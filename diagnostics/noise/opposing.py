"""Opposing signals: the few examples whose losses a step changes most, some up and as many down.

In natural data a few examples share a feature that is large and speaks for different answers: bright skies over planes
and over birds. Their gradients point in opposite directions and cancel as long as the network keeps the balance. A step
that tips it lowers the losses of one group and raises those of the other, the next step the reverse; with rising
curvature along that feature the swings grow, and these examples carry most of what happens to the loss.

With ℓ_i scaled such that their mean is L, and δ_i what a step θ → θ + Δ makes of it: the examples of largest δ and of
smallest δ are the two groups. They oppose each other where their mean gradients have a cosine near −1, and oscillate
where δ of this step and of the next are anticorrelated over the examples. A step picks those that rise and those that
fall by the sign of g_i·Δ, so that the cosine comes out somewhat negative for any two groups; with a handful of
parameters it is −1 whatever the data. It takes all three together: a large share, a cosine near −1, alternating signs.

Source: Rosenfeld & Risteski, arXiv 2311.04163.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from torch import Tensor

from diagnostics.arguments import real_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.minibatches import Minibatches
from diagnostics.noise.losses import per_example_losses
from diagnostics.objective import Objective
from diagnostics.recorded.examples import mean_gradient
from diagnostics.stability.directional import CAUTION, checked_direction, last_digits, moved

FEWEST = 4
"""Examples. Among fewer, one that rises and one that falls are most of them."""

ROUNDED = "the step changes the losses by no more than rounding does"

SHOWN = 5
"""Of each group, where it is printed."""


@dataclass(frozen=True, repr=False)
class OpposingSignals:
    """What one step does to the loss of every example, and the two groups it does most to.

    Attributes:
        changes: δ_i, (N,), float64, in the order of the examples in the batches. Their mean is the change of L.
        errors: what rounding may have made of each, (N,).
        rising: which examples' losses rise most, largest first: places in ``changes``, (k,) or fewer.
        falling: which fall most, largest first. Both are empty where all changes are no more than rounding.
        carried: the share of Σ|δ_i| that the two groups make up.
        gaussian: the share that as many examples would make up if changes were Gaussian around zero.
        net: |Σδ_i| / Σ|δ_i| over the two groups: 0 where rise and fall cancel, 1 where there is one of them only.
        cosine: between the mean gradients of the two groups, at the start of the step.
        alternation: correlation, over the examples, of these changes with those of the step after it; near −1 where
            the losses swing back and forth. None where no step after it was given.
        growth: how large the spread of the changes is in the step after it, over that in this one: a swing of 1 or more
            lasts, and one below it dies away. None likewise.
        loss_change: L(θ + Δ) − L(θ).
    """

    changes: Tensor
    errors: Tensor
    rising: Tensor
    falling: Tensor
    carried: Estimate
    gaussian: float
    net: Estimate
    cosine: Estimate
    alternation: Estimate | None
    growth: Estimate | None
    loss_change: Estimate

    def __str__(self) -> str:
        if not self.carried.determined:
            return f"opposing signals undetermined ({self.carried.how})"
        few = len(self.rising) + len(self.falling)
        lines = [
            f"{few} of {len(self.changes)} examples carry {float(self.carried):.0%} of the change of the losses "
            f"({self.gaussian:.0%} if changes were Gaussian); cosine between the gradients of the two groups "
            f"{self.cosine}"
        ]
        if self.alternation is not None:
            lines.append(
                f"correlation with the changes of the step after it {self.alternation}, which are {self.growth} times "
                "as large"
            )
        lines += [f"{name}: {_listed(group)}" for name, group in (("rising", self.rising), ("falling", self.falling))]
        return "\n".join(lines)

    __repr__ = __str__


def opposing_signals(
    objective: Objective, update: Tensor, *, following: Tensor | None = None, share: float = 0.01
) -> OpposingSignals:
    """Which examples' losses a step changes most, whether they oppose each other, and whether they alternate.

    Costs three passes of losses, one more where a second step follows, and the gradients of the two groups. The
    examples are taken as they are: nothing is drawn, and errors are those of rounding.

    Args:
        objective: the loss, a mean or a sum over examples.
        update: Δ, shape (P,), in the order of ``objective.space``: θ' − θ, learning rate and all.
        following: the step after it, θ'' − θ', (P,).
        share: of the examples in each group, at least one. By default 1 %, so that shares compare from step to step
            and run to run; a cut by size would make groups of another size each time, and none at all where changes
            are Gaussian. Only those whose losses rise are in one, and only those whose losses fall in the other.

    Raises:
        DiagnosticsError: examples that are coupled, or fewer than four; a step of another shape, not finite or zero; a
            loss that is not finite before or after it.

    Source: arXiv 2311.04163.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x = torch.tensor([[9.0, 1.0], [9.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # two share a large feature, and
        >>> y = torch.tensor([[1.0], [-1.0], [0.1], [0.2]])  # want opposite answers
        >>> objective = Objective(model, torch.nn.MSELoss(), (x, y))
        >>> found = opposing_signals(objective, torch.tensor([0.01, 0.0]))
        >>> found.rising.tolist(), found.falling.tolist(), round(float(found.cosine), 3)
        ([1], [0], -1.0)
    """
    part = real_number(
        "share is not one of the examples", share, "above 0, at most 0.5: each of two groups", lambda x: 0 < x <= 0.5
    )
    delta = checked_direction(objective, update, "update")
    with torch.inference_mode(False):
        start = objective.space.flatten(objective.space.values()).double()
    now = per_example_losses(objective)
    if len(now) < FEWEST:
        raise DiagnosticsError(
            "there are too few examples to single out some", given=f"{len(now)}", expected="some hundreds, at least 4"
        )
    doubt = per_example_losses(objective, moved(objective, start, last_digits(objective, start))) - now
    # A sample of rounding may be zero by chance: no example is taken to have less than is usual.
    errors = CAUTION * doubt.abs().clamp_min(float(doubt.square().mean().sqrt()))
    reached = per_example_losses(objective, moved(objective, start, delta))
    changes = reached - now
    how = f"losses before and after a step; {objective.description}"
    alternation = growth = None
    if following is not None:
        onwards = moved(objective, start + delta, checked_direction(objective, following, "following"))
        alternation, growth = _compared(changes, per_example_losses(objective, onwards) - reached, errors, how)
    everything, rounding = float(changes.abs().sum()), float(errors.sum())
    loss_change = Estimate(float(changes.mean()), rounding / len(changes), "residual", how)
    if not 2 * rounding < everything:
        nothing = Estimate(math.nan, math.nan, "residual", f"{ROUNDED}; {how}")
        nobody = torch.zeros(0, dtype=torch.int64, device=changes.device)
        return OpposingSignals(
            changes, errors, nobody, nobody, nothing, math.nan, nothing, nothing, alternation, growth, loss_change
        )
    count = max(1, round(part * len(changes)))
    rising, falling = (_largest(sign * changes, errors, count) for sign in (1.0, -1.0))
    both = torch.cat([rising, falling])
    swings = float(changes[both].abs().sum())
    net = abs(float(changes[both].sum())) / swings
    return OpposingSignals(
        changes=changes,
        errors=errors,
        rising=rising,
        falling=falling,
        carried=Estimate(swings / everything, 2 * rounding / everything, "residual", how),
        gaussian=sum(_gaussian(len(group) / len(changes)) for group in (rising, falling)),
        net=Estimate(net, 2 * float(errors[both].sum()) / swings, "residual", how),
        cosine=_cosine(objective, rising, falling, len(changes)),
        alternation=alternation,
        growth=growth,
        loss_change=loss_change,
    )


def _largest(changes: Tensor, errors: Tensor, count: int) -> Tensor:
    """The examples of the largest changes among those that are positive beyond their errors."""
    beyond = changes.where(changes > errors, 0.0)
    chosen: Tensor = beyond.topk(min(count, int((beyond > 0).sum()))).indices
    return chosen


def _gaussian(fraction: float) -> float:
    """E[x; x > z] / E|x| with z exceeded by this fraction of a standard normal x: what one tail carries."""
    if not fraction:
        return 0.0
    return 0.5 * math.exp(-0.5 * float(ndtri(1.0 - fraction)) ** 2)


def _cosine(objective: Objective, rising: Tensor, falling: Tensor, count: int) -> Estimate:
    if not (len(rising) and len(falling)):
        side = "falls" if len(rising) else "rises"
        return Estimate(math.nan, math.nan, "exact", f"no example's loss {side} in this step")
    summed = Minibatches(objective, 1).summed
    gradients = []
    for group in (rising, falling):
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[group.cpu()] = True
        gradients.append(mean_gradient(objective, chosen, summed).double())
    how = f"mean gradients of {len(rising)} and {len(falling)} examples; {objective.description}"
    sizes = [float(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    if not all(0 < size < math.inf for size in sizes):
        return Estimate(math.nan, math.nan, "exact", f"a group's gradient is zero or not finite; {how}")
    one, other = (gradient / size for gradient, size in zip(gradients, sizes, strict=True))
    return exact(float(one @ other), how)


def _compared(changes: Tensor, after: Tensor, errors: Tensor, how: str) -> tuple[Estimate, Estimate]:
    """Pearson's correlation and the quotient of spreads, with the most that rounding of both may do."""
    how = f"changes over two steps; {how}"
    spreads = [one - one.mean() for one in (changes, after)]
    sizes = [float(torch.linalg.vector_norm(spread)) for spread in spreads]
    rounding = float(torch.linalg.vector_norm(errors))
    error = sum(rounding / size if size else math.inf for size in sizes)
    if not error < 0.5:
        nothing = Estimate(math.nan, math.nan, "residual", f"{ROUNDED}, in one of two steps; {how}")
        return nothing, nothing
    one, other = (spread / size for spread, size in zip(spreads, sizes, strict=True))
    growth = sizes[1] / sizes[0]
    return Estimate(float(one @ other), error, "residual", how), Estimate(growth, growth * error, "residual", how)


def _listed(group: Tensor) -> str:
    shown = ", ".join(str(place) for place in group[:SHOWN].tolist())
    return (shown or "none") + (f" and {len(group) - SHOWN} more" if len(group) > SHOWN else "")
