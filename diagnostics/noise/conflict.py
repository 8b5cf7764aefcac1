"""Whether groups of examples, or several losses, pull the parameters in opposite directions.

With G_a the gradient of group a, conflict is a negative cosine cos(G_a, G_b): a step for one raises the loss of the
other. From n_a and n_b examples the inner product ⟨ḡ_a, ḡ_b⟩ is unbiased where they share none, but ‖ḡ_a‖² is too large
by tr Σ_a/n_a, which pulls every cosine of noisy gradients towards zero; it is taken off. Errors are the jackknife's
over the examples of both, and so is the bias of the quotient: noise along a group's own gradient turns nothing. Where
the interval of |G_a|² reaches zero the group has no direction yet, and no cosine.

Several losses on the same examples are not independent: their cosine is that of exactly these, without an error.

Source: Yu et al., arXiv 2001.06782 (conflicting gradients of tasks); domains: Parascandolo et al., arXiv 2009.00329.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.utils._pytree import tree_leaves

from diagnostics.averages import Draws, deviation
from diagnostics.batches import describe
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.noise.from_examples import parts_of
from diagnostics.noise.gram import GradientGram, gram_matrix
from diagnostics.noise.per_example import per_example_gradient_dots, per_example_gradient_norms
from diagnostics.objective import Objective

FEWEST = 4
"""Examples in a group; with fewer its own noise is not known."""


@dataclass(frozen=True, repr=False)
class Pair:
    """Two groups.

    Attributes:
        first: name of one.
        second: name of the other.
        cosine: between their gradients, noise taken off; ``nan`` with the reason where one has no direction yet.
    """

    first: str
    second: str
    cosine: Estimate

    @property
    def conflicting(self) -> bool:
        """Whether all of the cosine's interval is below zero."""
        return self.cosine.determined and self.cosine.interval()[1] < 0.0


@dataclass(frozen=True, repr=False)
class GradientConflict:
    """Every pair of groups.

    Attributes:
        pairs: each pair once, the most opposed first and those that are undetermined last.
    """

    pairs: tuple[Pair, ...]

    @property
    def conflicting(self) -> tuple[Pair, ...]:
        """Pairs that pull in opposite directions, errors allowed for."""
        return tuple(pair for pair in self.pairs if pair.conflicting)

    def __str__(self) -> str:
        return "\n".join(
            f"{pair.first} against {pair.second}: cosine {pair.cosine}"
            + ("" if pair.cosine.determined else f" ({pair.cosine.how.partition(';')[0]})")
            for pair in self.pairs
        )

    __repr__ = __str__


def gradient_conflict(objectives: Mapping[str, Objective]) -> GradientConflict:
    """Cosines between the gradients of several losses or domains on one model.

    Args:
        objectives: by name, one for each domain's data or each loss, on one model and selection of parameters.

    Raises:
        DiagnosticsError: fewer than two, of different models or parameters, or with fewer than four examples.

    Source: arXiv 2001.06782.

    Example:
        >>> import torch
        >>> model, x = torch.nn.Linear(3, 1), torch.randn(50, 3) + 1
        >>> up, down = (Objective(model, torch.nn.MSELoss(), (x, torch.full((50, 1), y))) for y in (9.0, -9.0))
        >>> found = gradient_conflict({"up": up, "down": down})
        >>> len(found.conflicting), float(found.pairs[0].cosine) < -0.5
        (1, True)
    """
    if not isinstance(objectives, Mapping) or len(objectives) < 2:
        raise DiagnosticsError(
            "objectives are not several",
            given=f"a {type(objectives).__name__}",
            expected="a dict of at least two Objectives by name",
            attempt='gradient_conflict({"first": objective, "second": other})',
        )
    first = next(iter(objectives.values()))
    for name, one in objectives.items():
        if not isinstance(one, Objective) or one.model is not first.model or one.space.names != first.space.names:
            raise DiagnosticsError(
                f"objectives[{name!r}] is not of the same model and parameters",
                expected="Objectives on one model object with one selection of parameters",
            )
    gradients = {name: one.gradient() for name, one in objectives.items()}
    dots = {
        (name, other): per_example_gradient_dots(one, gradients[other]).cpu().numpy()
        for name, one in objectives.items()
        for other in objectives
    }
    squares = {name: per_example_gradient_norms(one).norms.square().cpu().numpy() for name, one in objectives.items()}
    groups = {name: _Group(name, squares[name], {other: dots[name, other] for other in objectives}) for name in squares}
    together = {
        (name, other) for name, one in objectives.items() for other, its in objectives.items() if _same_inputs(one, its)
    }
    return _conflict(groups, together)


def group_conflict(source: Objective | GradientGram, groups: Sequence[Any]) -> GradientConflict:
    """Cosines between the gradients of groups of examples of one loss, such as classes or domains.

    Args:
        source: the loss, or its ``gradient_gram``.
        groups: which group each example is of, (N,), in the order of the batches: text, numbers, whatever prints. 1
            and "1" are two groups. Those of fewer than four examples are told as undetermined.

    Raises:
        DiagnosticsError: another number of labels than examples, fewer than two groups of four examples; or as
            ``gradient_gram``.

    Source: arXiv 2009.00329.

    Example:
        >>> import torch
        >>> up = torch.tensor([1.0, 0.1]) + 0.1 * torch.randn(20, 2)
        >>> gradients = torch.cat([up, -up]).double()
        >>> gram = GradientGram(gradients @ gradients.T, {}, "by hand")
        >>> len(group_conflict(gram, ["up"] * 20 + ["down"] * 20).conflicting)
        1
    """
    gram = gram_matrix(source)
    labels = group_names(groups)
    if len(labels) != len(gram):
        raise DiagnosticsError(
            "groups do not fit the examples", given=f"{len(labels)} labels", expected=f"one for each of {len(gram)}"
        )
    every = {name: numpy.flatnonzero([label == name for label in labels]) for name in dict.fromkeys(labels)}
    places = {name: found for name, found in every.items() if len(found) >= FEWEST}
    if len(places) < 2:
        raise DiagnosticsError(
            "groups are not several",
            given=f"{len(places)} of {len(every)} with at least {FEWEST} examples",
            expected="at least two",
        )
    found = _conflict(
        {
            name: _Group(
                name,
                gram.diagonal()[mine],
                {other: gram[numpy.ix_(mine, theirs)].mean(1) for other, theirs in places.items()},
            )
            for name, mine in places.items()
        },
        set(),
    )
    return GradientConflict((*found.pairs, *_too_small({name: len(found) for name, found in every.items()})))


def group_names(groups: Any) -> list[str]:
    """A name for the group of every example: what its label prints as, or its code where others print the same.

    Raises:
        DiagnosticsError: not one label for each example.

    Example:
        >>> group_names(["web", 1, "1"])
        ['web', '1', "'1'"]
    """
    try:
        labels = [getattr(label, "item", lambda label=label: label)() for label in groups]
        names = [str(label) for label in labels]
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DiagnosticsError(
            "groups are not one label for each example",
            given=f"{describe(groups)}; {problem}",
            expected="a list, array or tensor (N,)",
        ) from problem
    kinds = defaultdict[str, set[type]](set)
    for name, label in zip(names, labels, strict=True):
        kinds[name].add(type(label))
    return [name if len(kinds[name]) == 1 else repr(label) for name, label in zip(names, labels, strict=True)]


def _too_small(sizes: Mapping[str, int]) -> Iterator[Pair]:
    """Every pair with a group of too few examples."""
    for one, other in combinations(sizes, 2):
        name = min(one, other, key=lambda group: sizes[group])
        least = sizes[name]
        if least < FEWEST:
            reason = f"{name!r} has {least} example{'' if least == 1 else 's'}, and at least {FEWEST} are needed"
            yield Pair(one, other, Estimate(math.nan, math.nan, "standard error", reason))


@dataclass(frozen=True)
class _Group:
    """Squared norms of its examples' gradients, (n,), and their inner products with each group's mean, (n,)."""

    name: str
    squares: Draws
    along: Mapping[str, Draws]

    def square(self) -> float:
        return float(self.along[self.name].mean())

    def squares_without(self) -> Draws:
        """|G|² with each example left out, noise taken off."""
        count, own = len(self.squares), self.along[self.name]
        mean = (count**2 * self.square() - 2 * count * own + self.squares) / (count - 1) ** 2
        each = (self.squares.sum() - self.squares) / (count - 1)
        return numpy.asarray(mean - (each - mean) / (count - 2))


def _conflict(groups: Mapping[str, _Group], together: set[tuple[str, str]]) -> GradientConflict:
    for name, group in groups.items():
        if len(group.squares) < FEWEST:
            raise DiagnosticsError(
                f"{name!r} has too few examples", given=f"{len(group.squares)}", expected=f"at least {FEWEST}"
            )
    signals = {
        name: parts_of(group.squares, group.along[name], group.square(), "").signal for name, group in groups.items()
    }
    names = list(groups)
    pairs = [
        Pair(one, other, _cosine(groups[one], groups[other], signals, (one, other) in together))
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    ]
    return GradientConflict(tuple(sorted(pairs, key=lambda p: (not p.cosine.determined, p.cosine.value))))


def _cosine(one: _Group, other: _Group, signals: Mapping[str, Estimate], together: bool) -> Estimate:
    how = f"{len(one.squares)} and {len(other.squares)} examples"
    for group in (one, other):
        if not signals[group.name].interval()[0] > 0.0:
            reason = f"the interval of |G|² of {group.name!r} reaches zero: more of its examples are needed; {how}"
            return Estimate(math.nan, math.nan, "standard error", reason)
    inner, sizes = float(one.along[other.name].mean()), [signals[g.name].value for g in (one, other)]
    if together:
        whole = inner / math.sqrt(one.square()) / math.sqrt(other.square())
        return exact(whole, f"exactly these {len(one.squares)} examples")
    value = inner / math.sqrt(sizes[0]) / math.sqrt(sizes[1])
    counts = [len(one.squares), len(other.squares)]
    left = [
        (n * inner - group.along[another.name]) / (n - 1)
        for n, group, another in zip(counts, (one, other), (other, one), strict=True)
    ]
    with numpy.errstate(invalid="ignore"):
        roots = [numpy.sqrt(group.squares_without()) for group in (one, other)]
    without = (left[0] / (roots[0] * math.sqrt(sizes[1])), left[1] / (roots[1] * math.sqrt(sizes[0])))
    error = math.hypot(*(_spread(one) for one in without))
    if not math.isfinite(error):
        return Estimate(math.nan, math.nan, "standard error", f"one example makes up a group's gradient; {how}")
    bias = sum((n - 1) * (float(one.mean()) - value) for n, one in zip(counts, without, strict=True))
    reach = float(stdtrit(min(counts) - 1, 0.975)) / 1.96
    return Estimate(value - bias, reach * error, "standard error", f"{how}; noise taken off, jackknife over examples")


def _spread(without: Draws) -> float:
    count = len(without)
    return math.sqrt((count - 1) / count) * deviation(without)


def _same_inputs(one: Objective, other: Objective) -> bool:
    """Whether two objectives hold the same examples, by the first tensor of each batch."""
    firsts = [
        [next(leaf for leaf in tree_leaves(b) if isinstance(leaf, Tensor)) for b in o.batches] for o in (one, other)
    ]
    return len(firsts[0]) == len(firsts[1]) and all(torch.equal(a, b) for a, b in zip(*firsts, strict=True))
