"""Plasticity: how well a network can still learn, measured by letting copies of it learn something new.

Random targets are put to the objective's own inputs. From the present parameters, and from those of a fresh network,
the same optimizer takes k steps on the same batches in the same order. With ℓ_c the loss of the best prediction that is
the same for every example, and ℓ_p that of a perfect one, the share of the targets that is fitted is

    (ℓ_c − ℓ_k) / (ℓ_c − ℓ_p):    1 for a perfect fit, 0 where nothing was learned of any example.

The ratio of both shares is 1 for a network that is as good as new, and 0 for one that can learn no more. Outputs are
counted from where they are: a network that is sure of its answers needs steps to unlearn them, and a well trained one
would pass for one that cannot learn (``unlearn=True`` counts these steps in).

It is a number of its own. Networks with few dead or dormant units can have lost it, and some with many keep it.

Source: Lyle et al., arXiv 2303.01486 (loss on new targets after a fixed number of steps, against a baseline), which
centres targets of regressions on present predictions; Dohare et al., arXiv 2306.13812.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from diagnostics.arguments import real_number, require_finite_loss, require_objective, whole_number
from diagnostics.averages import mean, quotient
from diagnostics.curvature.draws import random_stream
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, listing
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.stability.rules import unwrap_optimizer
from diagnostics.units.fitting import Fit, Fitting, Training, adam, like
from diagnostics.units.fresh_start import Factory, FreshStartError, fresh_values
from diagnostics.units.random_targets import RandomTargets, RandomTask, Targets

LEARNING_RATE = 3e-3
"""Of Adam, where nothing else is given."""


@dataclass(frozen=True, repr=False)
class Plasticity:
    """How well a network fits random targets, beside a fresh one.

    Attributes:
        fitted: share of the random targets that the network fits; 0 is no better than one prediction for all.
        fresh_fitted: the same of a fresh network.
        ratio: the first over the second; undetermined where a fresh network does not learn in so few steps either.
        lost: the second less the first, from draw to draw: what training has taken away.
        accuracy: share of random labels that are predicted right; None where there are no classes.
        fresh_accuracy: the same of a fresh network.
        steps: optimizer steps of each network in each draw.
        draws: how often targets, and a fresh network, were drawn.
        gradients: what it cost, in forward and backward passes over one batch; forward passes over all batches, some
            five for each network and draw, come on top.
    """

    fitted: Estimate
    fresh_fitted: Estimate
    ratio: Estimate
    lost: Estimate
    accuracy: Estimate | None
    fresh_accuracy: Estimate | None
    steps: int
    draws: int
    gradients: int

    def __str__(self) -> str:
        return f"{listing(self)}\n{self.steps} steps, {self.draws} draws, {self.gradients:,} gradients"

    __repr__ = __str__


def plasticity(
    objective: Objective,
    *,
    steps: int = 100,
    lr: float | None = None,
    optimizer: Optimizer | None = None,
    moments: bool = False,
    targets: Targets | None = None,
    fresh: Factory | None = None,
    unlearn: bool = False,
    draws: int = 4,
    seed: int = 0,
) -> Plasticity:
    """Fit random targets from the present parameters and from fresh ones, on copies.

    Costs 2 ``draws`` × ``steps`` gradients of one batch. Frozen parameters keep their values in both networks; in train
    mode the random numbers of dropout are the same in every step on a batch.

    Args:
        objective: the model, its inputs and its loss: cross-entropy, binary cross-entropy, squared, absolute or Huber
            error. Some hundred examples are enough.
        steps: k, on one batch each. A fresh network must learn a good part of the targets in these.
        lr: of a fresh Adam, 0.003 by default.
        optimizer: the run's, to train with a copy of it instead: its class and settings as they are now, and its
            learning rate. Only ``state`` is emptied; what an optimizer keeps elsewhere stays.
        moments: let the network itself start with the optimizer's present moments: old ones can make its first steps
            too small, or far too large. A fresh network has none.
        targets: ``(batch, generator) -> batch`` with new targets from a CPU generator, for other losses; the share that
            is fitted then is of the loss that the fresh network began with.
        fresh: makes a new network of the same kind, drawn from the global random state. Without it the modules of a
            copy initialise themselves (``reset_parameters``): pass it where the model is initialised in another way.
        unlearn: count outputs from zero, so that what the network has learned must be unlearned first; always so with
            ``targets``.
        draws: of targets and fresh networks, at least 2; errors are over these, in pairs.
        seed: of all draws.

    Raises:
        DiagnosticsError: no random targets can be made for the loss, the loss is not finite, batch normalisation in
            evaluation mode, an optimizer that cannot be copied, a factory of other networks, arguments out of range.

    Source: arXiv 2303.01486, 2306.13812.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> objective = Objective(model, torch.nn.CrossEntropyLoss(), (torch.randn(16, 8), torch.randint(2, (16,))))
        >>> alive = plasticity(objective, steps=40, lr=0.01, draws=2)
        >>> with torch.no_grad():
        ...     _ = model[0].bias.fill_(-100.0)
        >>> dead = plasticity(objective, steps=40, lr=0.01, draws=2)
        >>> alive.ratio.value > 0.8, abs(dead.ratio.value) < 0.2
        (True, True)
    """
    require_objective(objective)
    whole_number("steps is out of range", steps, "a whole number from 1", 1)
    whole_number("draws is out of range", draws, "at least 2: one draw has no error", 2)
    training = _training(objective, lr, optimizer, moments)
    anew = training if optimizer is None else partial(like, optimizer, objective.space, False)
    require_finite_loss(objective)
    _require_own_statistics(objective)
    centred, seen = targets is None and not unlearn, targets is None
    stream, pairs, no_fresh = random_stream(seed), [], ""
    with quiet(objective.model, objective.mode):
        objective.require_differentiable([value.requires_grad_() for value in objective.space.values()])
        source = RandomTargets(objective, targets, centred)
        for _ in range(draws):
            task, start = source.draw(stream), int(torch.randint(2**31, (), generator=stream))
            own = Fitting(training, steps, centred, seen).fit(task.objective, objective.space.values())
            other = None
            if not no_fresh:
                try:
                    values = fresh_values(objective, start, fresh)
                except FreshStartError as reason:
                    no_fresh = str(reason)
                else:
                    other = Fitting(anew, steps, centred, seen).fit(task.objective, values)
            pairs.append(_Pair(task, own, other))
    how = (
        f"{draws} draws of random targets, {steps} steps of {_named(lr, optimizer, moments)}"
        f"{', on top of present outputs' if centred else ''}; {objective.description}"
    )
    return _summary(pairs, how, no_fresh, steps)


@dataclass(frozen=True)
class _Pair:
    """One draw: the network itself, and a fresh one where there is any."""

    task: RandomTask
    own: Fit
    other: Fit | None

    def share(self, fit: Fit | None) -> float:
        """How much of the targets a fit has got; nan where that cannot be told."""
        constant = self.task.constant
        if constant is None and self.other is not None:
            constant = self.other.start
        if fit is None or constant is None or not constant > self.task.perfect:
            return math.nan
        return (constant - fit.loss) / (constant - self.task.perfect)


def _summary(pairs: list[_Pair], how: str, no_fresh: str, steps: int) -> Plasticity:
    own, other = ([pair.share(fit) for pair, fit in fits] for fits in _both(pairs))
    unknown = no_fresh if all(pair.task.constant is None for pair in pairs) else ""
    fitted, fresh = _mean(own, how, unknown), _mean(other, how, no_fresh)
    if not (fitted.determined and fresh.determined):
        reason = fresh.how if fitted.determined else fitted.how
        ratio = lost = Estimate(math.nan, math.nan, "standard error", reason)
    else:
        lost = mean([theirs - ours for ours, theirs in zip(own, other, strict=True)], how)
        ratio = quotient(own, other, how)
        if fresh.interval()[0] <= 0.0:
            reason = f"a fresh network does not fit the targets in {steps} steps either, its share is {fresh}"
            ratio = Estimate(math.nan, math.nan, "standard error", reason)
    counted = [
        [fit.accuracy for _, fit in fits if fit is not None and fit.accuracy is not None] for fits in _both(pairs)
    ]
    accuracies = [mean(found, how) if len(found) == len(pairs) else None for found in counted]
    return Plasticity(
        fitted=fitted,
        fresh_fitted=fresh,
        ratio=ratio,
        lost=lost,
        accuracy=accuracies[0],
        fresh_accuracy=accuracies[1],
        steps=steps,
        draws=len(pairs),
        gradients=steps * sum(1 + (pair.other is not None) for pair in pairs),
    )


def _both(pairs: list[_Pair]) -> tuple[list[tuple[_Pair, Fit | None]], list[tuple[_Pair, Fit | None]]]:
    return [(pair, pair.own) for pair in pairs], [(pair, pair.other) for pair in pairs]


def _mean(shares: list[float], how: str, missing: str) -> Estimate:
    """Over draws; one that came to nothing leaves the whole undetermined, for it is no accident which one does."""
    lost = sum(not math.isfinite(share) for share in shares)
    if missing or lost:
        reason = missing or (
            f"training ran away in {lost} of {len(shares)} draws, or the targets were all alike; {how}"
        )
        return Estimate(math.nan, math.nan, "standard error", reason)
    return mean(shares, how)


def _training(objective: Objective, lr: float | None, optimizer: Optimizer | None, moments: bool) -> Training:
    if optimizer is None:
        if moments:
            raise DiagnosticsError(
                "moments go with an optimizer", given="optimizer=None", expected="the run's optimizer"
            )
        rate = LEARNING_RATE if lr is None else lr
        return partial(adam, lr=real_number("lr is not positive", rate, "as 0.003", lambda value: 0 < value < math.inf))
    if lr is not None:
        raise DiagnosticsError(
            "lr goes with a fresh Adam", given=f"lr={lr!r} and an optimizer", expected="one of the two"
        )
    if not isinstance(unwrap_optimizer(optimizer), Optimizer):
        raise DiagnosticsError("optimizer is not a torch optimizer", given=type(optimizer).__name__)
    groups = unwrap_optimizer(optimizer).param_groups
    held = {id(tensor) for group in groups for tensor in group["params"]}
    if not any(id(tensor) in held for tensor in objective.space.tensors):
        raise DiagnosticsError("the optimizer holds none of the objective's parameters", given=type(optimizer).__name__)
    return partial(like, optimizer, objective.space, moments)


def _named(lr: float | None, optimizer: Optimizer | None, moments: bool) -> str:
    if optimizer is None:
        return f"a fresh Adam at {LEARNING_RATE if lr is None else lr:g}"
    inner = unwrap_optimizer(optimizer)
    rates = sorted({float(group["lr"]) for group in inner.param_groups if "lr" in group})
    at = f" at {', '.join(f'{rate:g}' for rate in rates)}" if rates else ""
    return f"a copy of {type(inner).__name__}{at}, {'with its moments' if moments else 'without moments'}"


def _require_own_statistics(objective: Objective) -> None:
    """Refuse running statistics of one network under the weights of another."""
    held = (module for module in objective.model.modules() if isinstance(module, _BatchNorm))
    if objective.mode == "eval" and any(module.running_mean is not None for module in held):
        raise DiagnosticsError(
            "batch normalisation is in evaluation mode",
            given="running statistics, which belong to the present weights only",
            expected="statistics of the batches themselves",
            attempt="Objective(..., mode='train')",
        )
